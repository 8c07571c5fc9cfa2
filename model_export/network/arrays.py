"""The arrays that go into the network and come out of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
"""RGB frames ``(n, 224, 224, 3)``; with a clip axis ``(clips, 40, 224, 224, 3)``."""

Cuboids = npt.NDArray[np.float32]
"""Features X_t ``(n, 7, 7, channels)``; with a clip axis ``(clips, 40, 7, 7, channels)``."""

Maps = npt.NDArray[np.float32]
"""Attention of one clip, ``(40, 7, 7)``; each map sums to 1."""

Probabilities = npt.NDArray[np.float64]
"""``(clips, classes)``."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutputs:
    """What a head answers for a batch of clips.

    Attributes:
        probabilities: float32 ``(clips, classes)``.
        attention: float32 ``(clips, 40, 7, 7)``; each map sums to 1. ``None`` from the variant ``base``.
    """

    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None


def as_outputs(named: Mapping[str, npt.ArrayLike]) -> HeadOutputs:
    """Build the outputs from arrays by name, as Keras and ONNX Runtime return them."""
    attention = named.get("attention")
    return HeadOutputs(np.asarray(named["probabilities"]), None if attention is None else np.asarray(attention))


def all_values(outputs: HeadOutputs) -> npt.NDArray[np.float32]:
    """Return all probabilities and attention values, flat."""
    parts = [outputs.probabilities] if outputs.attention is None else [outputs.probabilities, outputs.attention]
    return np.concatenate([part.ravel() for part in parts])


def largest_difference(found: HeadOutputs, expected: HeadOutputs) -> float:
    """Return the largest absolute difference in any probability or attention value."""
    return float(np.abs(all_values(found) - all_values(expected)).max())


Predict = Callable[[Cuboids], HeadOutputs]
"""A head as a function of features with a clip axis."""


def predictor(head: Any) -> Predict:
    """A Keras head (see ``build_head``) as a function that computes in inference mode."""

    def predict(features: Cuboids) -> HeadOutputs:
        return as_outputs(head.predict_on_batch(features))

    return predict
