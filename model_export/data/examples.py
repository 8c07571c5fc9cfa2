"""A clip as training and evaluation see it: cached features, class and source video."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_export.network.arrays import Cuboids


@dataclass(frozen=True, slots=True)
class Example:
    """The features of one clip, kept on disk, and its class.

    Features are read when they are needed: those of UCF-101 (27 GB) do not fit in memory, and keeping their files open
    would exhaust a process's file descriptors.

    Attributes:
        features: ``.npy`` file of the cuboids X_t, float16 or float32 ``(40, 7, 7, channels)``.
        label: index of the class.
        group: source video; clips of one group must never be on both sides of an evaluation.
        name: ``class/file``, for reports.
        flipped: ``.npy`` file of the clip mirrored left to right, if it was encoded.
    """

    features: Path
    label: int
    group: str
    name: str
    flipped: Path | None = None

    def load(self, *, flipped: bool = False) -> Cuboids:
        """Return the features as float32 ``(40, 7, 7, channels)``; see ``read``."""
        return self.read(flipped=flipped).astype(np.float32)

    def read(self, *, flipped: bool = False) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
        """Return the features as they are stored.

        Args:
            flipped: read those of the mirrored clip.

        Raises:
            OSError: the file is gone.
            ValueError: the mirrored clip was not encoded, or the file is damaged.
        """
        if flipped and self.flipped is None:
            raise ValueError(f"{self.name} has no features of its mirrored view")
        stored: npt.NDArray[np.float16] = np.load(self.flipped if flipped and self.flipped else self.features)
        return stored
