from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt


def write_vgg19_weights(path: Path, layers: Mapping[str, Sequence[npt.NDArray[np.float32]]]) -> None:
    """Write a file with the published layout: kernel ``(3, 3, in, out)``, in the order B, G, R, and bias by layer."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, values in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}_{part}_1:0" for part in ("W", "b")[: len(values)]]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, values, strict=True):
                group[name] = value
