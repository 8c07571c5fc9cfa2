"""A clip as training and evaluation see it: features on disk, class and source video."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Example:
    """Where the features of one clip lie, and what the clip shows.

    Features are read when they are needed: those of UCF-101 (27 GB) fit neither in memory nor, kept open, in a
    process's table of files.

    Attributes:
        features: ``.npy`` file of the cuboids X_t, float16 or float32 ``(40, 7, 7, channels)``.
        label: index of the class.
        group: source video; clips of one must never stand on both sides of an evaluation.
        name: ``class/file``, for reports.
        flipped: features of the clip mirrored left to right, where they were made.
    """

    features: Path
    label: int
    group: str
    name: str
    flipped: Path | None = None

    def load(self, *, flipped: bool = False) -> npt.NDArray[np.float32]:
        """The features, float32 ``(40, 7, 7, channels)``; see ``read``."""
        return self.read(flipped=flipped).astype(np.float32)

    def read(self, *, flipped: bool = False) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
        """The features as they are stored; of the mirrored view where asked for.

        Raises:
            OSError: the file is gone.
            ValueError: the mirrored view was never made, or the file is damaged.
        """
        if flipped and self.flipped is None:
            raise ValueError(f"{self.name} has no features of its mirrored view")
        stored: npt.NDArray[np.float16] = np.load(self.flipped if flipped and self.flipped else self.features)
        return stored
