"""The arrays that go into the network and come out of it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.model.bundle import Outputs

Frames = npt.NDArray[np.uint8]
"""RGB frames ``(n, 224, 224, 3)``; with a clip axis ``(clips, 40, 224, 224, 3)``."""

Cuboids = npt.NDArray[np.float32]
"""Features X_t ``(n, 7, 7, channels)``; with a clip axis ``(clips, 40, 7, 7, channels)``."""

Maps = npt.NDArray[np.float32]
"""Attention of one clip, ``(40, 7, 7)``; each map sums to 1."""

Probabilities = npt.NDArray[np.float64]
"""``(clips, classes)``."""


def as_outputs(named: Mapping[str, npt.ArrayLike]) -> Outputs:
    """Build the outputs from arrays by name, as Keras and ONNX Runtime return them."""
    attention = named.get("attention")
    return Outputs(np.asarray(named["probabilities"]), None if attention is None else np.asarray(attention))


def all_values(outputs: Outputs) -> npt.NDArray[np.float32]:
    """Return all probabilities and attention values as one flat array."""
    parts = [outputs.probabilities] if outputs.attention is None else [outputs.probabilities, outputs.attention]
    return np.concatenate([part.ravel() for part in parts])


def largest_difference(found: Outputs, expected: Outputs) -> float:
    """Return the largest absolute difference in any probability or attention value."""
    return float(np.abs(all_values(found) - all_values(expected)).max())


Predict = Callable[[Cuboids], Outputs]
"""A head as a function of features with a clip axis."""


def predictor(head: Any) -> Predict:
    """Wrap a Keras head (see ``build_head``) in a function that computes in inference mode."""

    def predict(features: Cuboids) -> Outputs:
        return as_outputs(head.predict_on_batch(features))

    return predict
