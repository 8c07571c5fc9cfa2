"""95 % bootstrap intervals over source videos.

Clips cut from one video are right or wrong together; resampling clips as if they were independent would make intervals
too narrow. Whole groups are drawn instead, with replacement, as many as there are. The intervals show what other videos
of the same classes could change, not what another training could.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
QUANTILES = (0.025, 0.975)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Format the mean and its interval, each number by ``spec``."""
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def resample_groups(groups: int, seed: int) -> Floats:
    """Draw groups with replacement, ``RESAMPLES`` times.

    The same seed draws the same groups, so that intervals of several measurements on the same clips are comparable.

    Returns:
        How often each group was drawn, ``(RESAMPLES, groups)``.
    """
    drawn = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    cells = drawn + groups * np.arange(RESAMPLES)[:, np.newaxis]
    return np.bincount(cells.ravel(), minlength=RESAMPLES * groups).reshape(RESAMPLES, groups).astype(np.float64)


def interval(value: float, resampled: Floats, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """Return the 95 % percentile interval of a figure, within ``least`` and ``most``.

    The interval is moved by the resamples' mean deviation from the value. That is next to nothing for means, but a
    resample lacks a third of the groups, which tends to lower macro precision.

    Args:
        value: The figure over all clips.
        resampled: The figure over each resample.
        least: Smallest possible value of the figure.
        most: Largest possible value of the figure.
    """
    low, high = np.clip(np.quantile(resampled, QUANTILES) + value - resampled.mean(), least, most)
    return float(low), float(high)


def group_indices(groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number the groups from 0; return the number of each clip's group."""
    indices: npt.NDArray[np.int64] = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    return indices


def resample_means(values: npt.ArrayLike, groups: Sequence[str], seed: int) -> Floats:
    """Compute the mean over clips of each resample of the groups, ``(RESAMPLES,)``."""
    member_of = group_indices(groups)
    drawn = resample_groups(int(member_of.max()) + 1, seed)
    means: Floats = (drawn @ np.bincount(member_of, np.asarray(values))) / (drawn @ np.bincount(member_of))
    return means


def mean_over_groups(values: npt.ArrayLike, groups: Sequence[str] | None = None, *, seed: int = 0) -> Estimate:
    """Estimate the mean over clips and its interval.

    Args:
        values: One value per clip, ``(clips,)``.
        groups: Source video of each clip; ``None``: every clip is a group of its own.
        seed: Seed of the resamples.

    Raises:
        ValueError: There are fewer than two groups, or the numbers of groups and values differ.
    """
    values = np.asarray(values, np.float64)
    names = groups if groups is not None else [str(index) for index in range(len(values))]
    if len(names) != len(values):
        raise ValueError(f"{len(values)} clips were measured, but {len(names)} have a source video")
    if len(set(names)) < 2:
        raise ValueError(f"an interval needs clips of at least two source videos, got {len(set(names))}")
    mean = float(values.mean())
    return Estimate(mean, *interval(mean, resample_means(values, names, seed)))
