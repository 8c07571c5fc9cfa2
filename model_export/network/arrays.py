"""The arrays that go into the network and come out of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.errors import OutputsError
from service.model.bundle import Outputs

Frames = npt.NDArray[np.uint8]
"""RGB frames ``(n, 224, 224, 3)``; with a clip axis ``(clips, 40, 224, 224, 3)``."""

Cuboids = npt.NDArray[np.float32]
"""Features X_t ``(n, 7, 7, channels)``; with a clip axis ``(clips, 40, 7, 7, channels)``."""

StoredCuboids = Cuboids | npt.NDArray[np.float16]
"""The same as they are kept on disk; Keras converts them faster than NumPy."""

Maps = npt.NDArray[np.float32]
"""Attention of one clip, ``(40, 7, 7)``; each map sums to 1."""

Probabilities = npt.NDArray[np.float64]
"""``(clips, classes)``."""


def as_outputs(named: Mapping[str, npt.ArrayLike]) -> Outputs:
    """Build the outputs from arrays by name, as Keras and ONNX Runtime return them."""
    attention = named.get("attention")
    return Outputs(np.asarray(named["probabilities"]), None if attention is None else np.asarray(attention))


def largest_difference(found: Outputs, expected: Outputs) -> float:
    """Return the largest absolute difference in any probability or attention value, infinity if one is not finite.

    Raises:
        OutputsError: One side has no attention maps, or arrays differ in shape.
    """
    parts, expected_parts = _arrays(found), _arrays(expected)
    shapes, expected_shapes = ([part.shape for part in side] for side in (parts, expected_parts))
    if shapes != expected_shapes:
        raise OutputsError(
            f"a network returns arrays of shapes {shapes}, and its head in Keras {expected_shapes}; export the bundle "
            "again from its own head"
        )
    if not (found.finite and expected.finite):
        return math.inf
    return max(float(np.abs(a - b).max()) for a, b in zip(parts, expected_parts, strict=True))


def _arrays(outputs: Outputs) -> list[npt.NDArray[np.float32]]:
    return [part for part in (outputs.probabilities, outputs.attention) if part is not None]


Predict = Callable[[Cuboids], Outputs]
"""A head as a function of features with a clip axis."""


def predictor(head: Any) -> Predict:
    """Wrap a Keras head (see ``build_head``) in a function that computes in inference mode."""

    def predict(features: Cuboids) -> Outputs:
        return as_outputs(head.predict_on_batch(features))

    return predict
