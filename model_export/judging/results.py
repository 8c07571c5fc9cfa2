"""How well contenders name clips that they were not trained on: figures, intervals and comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from model_export.judging.intervals import Floats, Jackknife, group_indices, jackknife_mean
from model_export.network.arrays import Probabilities

Metric = Literal["accuracy", "precision", "recall"]
METRICS: tuple[Metric, ...] = ("accuracy", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric, as a fraction.

    Attributes:
        value: The metric over all clips at once.
        low: Lower end of the 95 % interval of ``value``, over groups.
        high: Upper end of the interval.
        mean_of_folds: Mean over the folds, as in the paper's Table 3. The interval is not its own.
        deviation_of_folds: Sample standard deviation (n − 1) over the folds; ``None`` for a single fold.
    """

    value: float
    low: float
    high: float
    mean_of_folds: float
    deviation_of_folds: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of one class: precision (eq 12; 0 if never predicted), recall (eq 13), numbers of clips and of groups."""

    label: str
    precision: float
    recall: float
    clips: int
    videos: int


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Number of clips of one class that were predicted as another."""

    truth: str
    predicted: str
    clips: int


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """What one contender predicted for clips that it was not trained on, and the figures that follow.

    Attributes:
        contender: Name of the contender.
        recipe: Its settings.
        labels: Names of the classes, in index order.
        names: Names of the clips.
        groups: Groups of the clips.
        truth: Class indices of the clips, int64 ``(clips,)``.
        probabilities: Predicted probabilities, float64 ``(clips, classes)``.
        folds: The fold that each clip was tested in, from 0, int64 ``(clips,)``.
        leaked: Whether other clips of the same group were trained on, bool ``(clips,)``.
    """

    contender: str
    recipe: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    truth: npt.NDArray[np.int64]
    probabilities: Probabilities
    folds: npt.NDArray[np.int64]
    leaked: npt.NDArray[np.bool_]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Index of each clip's most probable class, int64 ``(clips,)``."""
        predicted: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each clip was predicted correctly, bool ``(clips,)``."""
        return np.equal(self.predicted, self.truth)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Number of clips by class (rows) and predicted class (columns), int64 ``(classes, classes)``."""
        classes = len(self.labels)
        return np.bincount(self.truth * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    @property
    def per_fold(self) -> Floats:
        """Accuracy, macro precision and macro recall of each fold, float64 ``(3, folds)``."""
        return _metrics(self._counts(self.folds))

    def figures(self) -> dict[Metric, Figure]:
        """Compute accuracy (eq 11, as correct / total), macro precision (eq 12) and macro recall (eq 13).

        Macro figures weigh all classes that have clips equally; the precision of a class never predicted is 0. As means
        of one figure for each class, they leave ``G − C`` degrees of freedom of ``G`` groups in ``C`` classes: the
        deviations of the groups are multiplied by √(G / (G − C)).
        """
        counts = self._counts(group_indices(self.groups))
        total, groups = counts.sum(axis=1, keepdims=True), counts.shape[1]
        values = _metrics(total)
        deviations = (groups - 1) * (values - _metrics(total - counts))
        deviations[1:] *= math.sqrt(groups / max(1, groups - len(np.unique(self.truth))))
        ends = np.clip(Jackknife(values[:, 0], deviations, 0, 1).interval(), 0, 1)
        folds = self.per_fold
        spread = folds.std(axis=1, ddof=1).tolist() if folds.shape[1] > 1 else [None] * len(METRICS)
        columns = (values[:, 0].tolist(), *ends.tolist(), folds.mean(axis=1).tolist(), spread)
        return dict(zip(METRICS, map(Figure, *columns), strict=True))

    def per_class(self) -> list[ClassFigures]:
        """Compute the figures of each class that has clips, in index order."""
        hits, named, actual = self._counts(np.zeros_like(self.folds))[:, 0]
        videos = (self._counts(group_indices(self.groups))[2] > 0).sum(axis=0)
        return [
            ClassFigures(label, float(hit / max(1, name)), float(hit / clips), int(clips), int(of_class))
            for label, hit, name, clips, of_class in zip(self.labels, hits, named, actual, videos, strict=True)
            if clips
        ]

    def confused_pairs(self, limit: int = 10) -> list[ConfusedPair]:
        """Return the pairs of classes most often confused, most confused first; each direction is a pair of its own."""
        wrong = self.confusion
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [ConfusedPair(self.labels[i], self.labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def _counts(self, cluster: npt.NDArray[np.int64]) -> Floats:
        """Count clips by cluster and class, ``(3, clusters, classes)``: correctly predicted, predicted, and actual."""
        clusters, classes = int(cluster.max()) + 1, len(self.labels)

        def count(clips: npt.NDArray[np.bool_] | slice, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            cells = cluster[clips] * classes + index[clips]
            return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)

        every = slice(None)
        return np.stack(
            [count(self.correct, self.truth), count(every, self.predicted), count(every, self.truth)]
        ).astype(np.float64)


def _metrics(counts: Floats) -> Floats:
    """Compute accuracy, macro precision and macro recall ``(3, n)`` from counts ``(3, n, classes)``."""
    hits, named, actual = counts
    present = np.maximum((actual > 0).sum(axis=1), 1)
    # A class without clips has no hits either, so it adds nothing to the sums.
    precision = (hits / np.maximum(named, 1)).sum(axis=1) / present
    recall = (hits / np.maximum(actual, 1)).sum(axis=1) / present
    return np.stack([hits.sum(axis=1) / np.maximum(actual.sum(axis=1), 1), precision, recall])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two contenders on the same clips.

    Attributes:
        first: Name of the first contender.
        second: Name of the second contender.
        difference: Accuracy of the first minus that of the second, as a fraction.
        low: Lower end of the difference's 95 % interval, over groups.
        high: Upper end of the interval.
        only_first: Number of clips that only the first predicted correctly.
        only_second: Number of clips that only the second predicted correctly.
        p: Two-sided p-value of this comparison alone, over groups: below 0.05 if the interval does not contain 0.
        p_holm: P-value that allows for all comparisons that were made with it.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float
    p_holm: float


def compare(first: Results, others: Sequence[Results]) -> list[Comparison]:
    """Compare a contender with others, clip by clip.

    Raises:
        ValueError: They were not tested on the same clips in the same folds.
    """
    gains = [_gain(first, other) for other in others]
    found = [jackknife_mean(gain, first.groups, -1, 1) for gain in gains]
    p_values = [float(one.p_value()) for one in found]
    comparisons = []
    for other, gain, one, p, p_holm in zip(others, gains, found, p_values, holm(p_values), strict=True):
        low, high = np.clip(one.interval(), -1, 1).tolist()
        only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
        names = first.contender, other.contender
        comparisons.append(Comparison(*names, float(one.value), low, high, only_first, only_second, p, p_holm))
    return comparisons


def _gain(first: Results, second: Results) -> npt.NDArray[np.int64]:
    """Compute 1 for each clip that only the first named correctly, −1 for each that only the second did, else 0."""
    if first.names != second.names or not np.array_equal(first.folds, second.folds):
        raise ValueError(f"{first.contender} and {second.contender} were not tested on the same folds")
    gain: npt.NDArray[np.int64] = first.correct.astype(np.int64) - second.correct
    return gain


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (S. Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]
