"""What VGG19 computes in float16: tensor cores sum products in float32 and store each layer's result in float16.

ONNX Runtime has no float16 kernels for these layers on a CPU and computes in float32 there, so running the fp16 file on
a CPU does not show whether a layer exceeds float16's largest number, 65,504. This module rounds as a GPU does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from model_export.network.arrays import Cuboids, Frames
from model_export.network.spec import IMAGE_SIZE

LARGEST = float(np.finfo(np.float16).max)
# Frames per call, for speed; see ``model_export.data.encoders``.
CHUNK = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Features, and what the layers reached on the way.

    Attributes:
        cuboids: The features.
        peaks: Largest activation of each convolution, by the layer's name, in order.
    """

    cuboids: Cuboids
    peaks: dict[str, float]

    @property
    def overflow(self) -> str | None:
        """The first layer with an activation that is not finite."""
        return next((layer for layer, peak in self.peaks.items() if not math.isfinite(peak)), None)


def measured_encoder(encoder: keras.Model, *, float16: bool = False) -> Callable[[Frames], Measured]:
    """Return the encoder as a function that also measures its activations.

    Args:
        encoder: The encoder in float32 (see ``build_encoder``).
        float16: Whether weights and the result of every layer are rounded to float16. What is too large for it becomes
            infinite, as on a GPU. Sums stay float32.
    """
    twin = keras.models.clone_model(encoder)
    twin.set_weights([_rounded(weights) if float16 else weights for weights in encoder.get_weights()])
    x, names, peaks = twin.input, [], []
    for layer in twin.layers[1:]:
        x = layer(x)
        if float16:
            x = keras.ops.cast(keras.ops.cast(x, "float16"), "float32")
        if isinstance(layer, keras.layers.Conv2D):
            names.append(layer.name)
            peaks.append(keras.ops.max(x, axis=(1, 2, 3)))
    network = keras.Model(twin.input, [x, keras.ops.stack(peaks, axis=1)])

    def encode(frames: Frames) -> Measured:
        parts = [network.predict_on_batch(frames[i : i + CHUNK]) for i in range(0, len(frames), CHUNK)]
        cuboids, found = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Measured(cuboids, dict(zip(names, found.max(axis=0).tolist(), strict=True)))

    return encode


def _rounded(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return weights.astype(np.float16).astype(np.float32)


def crafted_frame() -> Frames:
    """Return a frame, uint8 ``(224, 224, 3)``, on which the published VGG19 exceeds float16's largest number.

    It shows rings with a period of 8 pixels, whose blue follows red and green by a third of a period. They were found
    by comparing simple patterns and varying the best one; they may not be the worst of all frames.
    """
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    angle = 2 * np.pi * np.hypot(x - 108.5, y - 115) / 8
    phases = np.array([0, 0, 2 * np.pi / 3])
    return np.where(np.sin(angle[..., np.newaxis] + phases) > 0, 255, 0).astype(np.uint8)
