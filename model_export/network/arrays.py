"""The arrays that go into the network and come out of it."""

from collections.abc import Callable
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
    attention: npt.NDArray[np.float32] | None = None

    @property
    def arrays(self) -> list[npt.NDArray[np.float32]]:
        """The outputs that there are."""
        return [self.probabilities] if self.attention is None else [self.probabilities, self.attention]

    def largest_difference(self, other: "HeadOutputs") -> float:
        """The largest absolute difference in any probability or attention value."""
        pairs = zip(self.arrays, other.arrays, strict=True)
        return max(float(np.abs(one - another).max()) for one, another in pairs)


Predict = Callable[[Cuboids], HeadOutputs]
"""A head as a function of features with a clip axis."""


def predictor(head: Any) -> Predict:
    """A Keras head (see ``build_head``) as a function that computes in inference mode."""

    def predict(features: Cuboids) -> HeadOutputs:
        return HeadOutputs(**{name: np.asarray(value) for name, value in head.predict_on_batch(features).items()})

    return predict
