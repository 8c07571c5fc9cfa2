"""How well contenders name clips that they were not trained on: figures, intervals and comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from model_export.judging.intervals import Floats, Jackknife, group_indices, jackknife_mean
from model_export.network.arrays import Probabilities

Metric = Literal["accuracy", "top5", "precision", "recall", "f1"]
METRICS: tuple[Metric, ...] = ("accuracy", "top5", "precision", "recall", "f1")
# Those that are means of one figure for each class come last.
MACRO = slice(-3, None)
TOP = 5


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
class MeanOfSplits:
    """One metric, averaged over official splits, as a fraction.

    Attributes:
        mean: Mean of the splits' figures.
        low: Lower end of the 95 % interval of the mean, over groups.
        high: Upper end of the interval.
        deviation: Sample standard deviation (n − 1) over the splits.
    """

    mean: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of one class: precision (eq 12; 0 if never predicted), recall (eq 13), F1, clips and groups."""

    label: str
    precision: float
    recall: float
    f1: float
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
    def in_top(self) -> npt.NDArray[np.bool_]:
        """Whether each clip's class is among the five most probable ones, bool ``(clips,)``."""
        # Among equally probable classes the first comes first, as in ``predicted``.
        top = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :TOP]
        found: npt.NDArray[np.bool_] = (top == self.truth[:, np.newaxis]).any(axis=1)
        return found

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Names of the figures; five guesses say nothing if there are no more classes."""
        return tuple(metric for metric in METRICS if metric != "top5" or len(self.labels) > TOP)

    @property
    def per_fold(self) -> Floats:
        """The metrics of each fold, float64 ``(metrics, folds)``."""
        return _metrics(self._counts(self.folds))

    def figures(self) -> dict[Metric, Figure]:
        """Compute accuracy (eq 11, as correct / total), macro precision (eq 12), macro recall (eq 13) and macro F1.

        With more than five classes, also the top-5 accuracy. Macro figures weigh all classes that have clips equally;
        precision and F1 of a class never predicted are 0.
        """
        found, folds = _jackknife([self]), self.per_fold
        spread = folds.std(axis=1, ddof=1).tolist() if folds.shape[1] > 1 else [None] * len(folds)
        ends = np.clip(found.interval(), 0, 1).tolist()
        columns = (found.value.tolist(), *ends, folds.mean(axis=1).tolist(), spread)
        return dict(zip(self.metrics, map(Figure, *columns), strict=True))

    def per_class(self) -> list[ClassFigures]:
        """Compute the figures of each class that has clips, in index order."""
        hits, named, actual = self._counts(np.zeros_like(self.folds))[:3, 0]
        videos = (self._counts(group_indices(self.groups))[2] > 0).sum(axis=0)
        ratios = hits / np.maximum(1, named), hits / np.maximum(1, actual), 2 * hits / np.maximum(1, named + actual)
        return [
            ClassFigures(label, float(precision), float(recall), float(f1), int(clips), int(of_class))
            for label, precision, recall, f1, clips, of_class in zip(self.labels, *ratios, actual, videos, strict=True)
            if clips
        ]

    def confused_pairs(self, limit: int = 10) -> list[ConfusedPair]:
        """Return the pairs of classes most often confused, most confused first; each direction is a pair of its own."""
        wrong = self.confusion
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [ConfusedPair(self.labels[i], self.labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def _counts(self, cluster: npt.NDArray[np.int64], clusters: int | None = None) -> Floats:
        """Count clips by cluster and class: correctly predicted, predicted and actual.

        With more than five classes, also those whose class is among the five most probable ones.

        Returns:
            Counts, float64 ``(3 or 4, clusters, classes)``.
        """
        clusters, classes = clusters or int(cluster.max()) + 1, len(self.labels)

        def count(clips: npt.NDArray[np.bool_] | slice, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            cells = cluster[clips] * classes + index[clips]
            return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)

        every = slice(None)
        counts = [count(self.correct, self.truth), count(every, self.predicted), count(every, self.truth)]
        if "top5" in self.metrics:
            counts.append(count(self.in_top, self.truth))
        return np.stack(counts).astype(np.float64)


def mean_of_splits(splits: Sequence[Results]) -> dict[Metric, MeanOfSplits]:
    """Average the figures of one contender over several official splits.

    The interval follows the rule of all others: each video is left out once, of every split that tests it, so that a
    video counts once however many splits test it.
    """
    values = np.stack([_metrics(split._counts(np.zeros_like(split.folds)))[:, 0] for split in splits])
    found = _jackknife(splits)
    ends = np.clip(found.interval(), 0, 1).tolist()
    columns = (found.value.tolist(), *ends, values.std(axis=0, ddof=1).tolist())
    return dict(zip(splits[0].metrics, map(MeanOfSplits, *columns), strict=True))


def _jackknife(results: Sequence[Results]) -> Jackknife:
    """Average the metrics over results, and leave each group out of all of them.

    Macro figures are means of one figure for each class. Of ``G`` groups in ``C`` classes they leave ``G − C`` degrees
    of freedom: the deviations of the groups are multiplied by √(G / (G − C)).
    """
    members = group_indices([group for result in results for group in result.groups])
    groups = int(members.max()) + 1
    ends = np.cumsum([len(result.groups) for result in results])[:-1]
    values, changes = [], []
    for result, own in zip(results, np.split(members, ends), strict=True):
        counts, tested = result._counts(own, groups), len(np.unique(own))
        total = counts.sum(axis=1, keepdims=True)
        values.append(_metrics(total))
        changes.append(values[-1] - _metrics(total - counts))
        changes[-1][MACRO] *= math.sqrt(tested / max(1, tested - len(np.unique(result.truth))))
    return Jackknife(np.mean(values, axis=0)[:, 0], (groups - 1) * np.mean(changes, axis=0), 0, 1)


def _metrics(counts: Floats) -> Floats:
    """Compute the metrics ``(metrics, n)`` from counts ``(3 or 4, n, classes)``."""
    hits, named, actual, *in_top = counts
    clips, present = np.maximum(actual.sum(axis=1), 1), np.maximum((actual > 0).sum(axis=1), 1)
    # A class without clips has no hits either, so it adds nothing to the sums.
    precision, recall = hits / np.maximum(named, 1), hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(named + actual, 1)
    shares = [right.sum(axis=1) / clips for right in (hits, *in_top)]
    return np.stack([*shares, *(figures.sum(axis=1) / present for figures in (precision, recall, f1))])


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
