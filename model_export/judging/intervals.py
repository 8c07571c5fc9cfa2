"""95 % intervals over source videos.

Clips cut from one video are right or wrong together, so that the number of videos decides how much a figure may be
trusted, not that of clips. All intervals follow one rule, without random numbers:

1. *Jackknife.* Each video is left out once. If a figure is ``v`` over ``G`` videos, and ``v_g`` without video ``g``,
   the pseudo-value of that video is ``v + (G − 1)(v − v_g)``. For the mean over equally many clips of each video, it is
   the mean over the video's own clips.
2. *Two more videos.* One pseudo-value at each end of the scale is added, such as 0 and 1 for accuracy, because videos
   that were not seen may differ from all that were. Without them, twelve videos that are all right would give an
   interval of no width.
3. *Student's t.* The interval is the mean of the ``G + 2`` pseudo-values ± the t quantile with ``G + 1`` degrees of
   freedom times their standard error.

Sources: J. W. Tukey, "Bias and confidence in not quite large samples", Ann. Math. Statist. 29 (1958) 614, for 1 and 3;
A. Agresti and B. Caffo, "Simple and effective confidence intervals for proportions", Amer. Statist. 54 (2000) 280,
for 2, with clips in place of videos. ``benchmarks/bench_intervals.py`` simulates the coverage.

An interval shows what other videos of the same classes could change, not what another training could.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95

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


@dataclass(frozen=True, slots=True, eq=False)
class Jackknife:
    """Figures and what each video contributes to them.

    Attributes:
        value: The figures over all videos, float64 ``(...)``.
        deviations: Pseudo-value of each video − the figure, float64 ``(..., videos)``.
        least: Lower end of the scale, or the smallest value that was seen.
        most: Upper end of the scale, or the largest value that was seen.
    """

    value: Floats
    deviations: Floats
    least: float
    most: float

    def interval(self) -> tuple[Floats, Floats]:
        """Return the ends of the 95 % intervals, each ``(...)``; they may lie beyond ``least`` and ``most``."""
        centre, error = self._moments()
        reach = stdtrit(self.deviations.shape[-1] + 1, (1 + CONFIDENCE) / 2) * error
        return centre - reach, centre + reach

    def p_value(self) -> Floats:
        """Return the two-sided p-values ``(...)`` of the hypothesis that the figure is 0.

        A p-value is below 0.05 exactly if the interval does not contain 0.
        """
        centre, error = self._moments()
        p_value: Floats = 2 * stdtr(self.deviations.shape[-1] + 1, -np.abs(centre) / error)
        return p_value

    def _moments(self) -> tuple[Floats, Floats]:
        """Compute mean and standard error of the pseudo-values, with the two at the ends, each ``(...)``."""
        videos = self.deviations.shape[-1]
        centre = (videos * self.value + self.least + self.most) / (videos + 2)
        squares = ((self.deviations + (self.value - centre)[..., np.newaxis]) ** 2).sum(axis=-1)
        squares = squares + (self.least - centre) ** 2 + (self.most - centre) ** 2
        return centre, np.sqrt(squares / (videos + 1) / (videos + 2))


def group_indices(groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number the groups from 0, in the order of their first clips; return the number of each clip's group."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], np.int64)


def jackknife_mean(values: npt.ArrayLike, groups: Sequence[str], least: float, most: float) -> Jackknife:
    """Leave each group out of the mean over clips; the scale is from ``least`` to ``most``."""
    values, member_of = np.asarray(values, np.float64), group_indices(groups)
    value, clips = np.asarray(values.mean()), np.bincount(member_of)
    without = (values.sum() - np.bincount(member_of, values)) / np.maximum(len(values) - clips, 1)
    return Jackknife(value, (len(clips) - 1) * (value - without), least, most)


def mean_over_groups(
    values: npt.ArrayLike, groups: Sequence[str] | None = None, *, least: float = -math.inf, most: float = math.inf
) -> Estimate:
    """Estimate the mean of real values over clips, and its interval.

    The two added pseudo-values are the smallest and the largest value of any clip, because the ends of the scale are
    too far away if most values are small. If all clips have the same value, the ends of the scale are added; without
    ends, nothing is known then, and the interval has none either. With fewer than 40 videos, the interval is too narrow
    if large values are rare and the clips of a video are all alike.

    Args:
        values: One value per clip, ``(clips,)``.
        groups: Source video of each clip; ``None``: every clip is a group of its own.
        least: Smallest possible value.
        most: Largest possible value.

    Raises:
        ValueError: There are fewer than two groups, or the numbers of groups and values differ.
    """
    values = np.asarray(values, np.float64)
    names = groups if groups is not None else [str(index) for index in range(len(values))]
    if len(names) != len(values):
        raise ValueError(f"{len(values)} clips were measured, but {len(names)} have a source video")
    if len(set(names)) < 2:
        raise ValueError(f"an interval needs clips of at least two source videos, got {len(set(names))}")
    ends = float(values.min()), float(values.max())
    if ends[0] == ends[1]:
        ends = least, most
    if not all(map(math.isfinite, ends)):
        return Estimate(float(values.mean()), least, most)
    found = jackknife_mean(values, names, *ends)
    low, high = found.interval()
    return Estimate(float(found.value), max(float(low), least), min(float(high), most))
