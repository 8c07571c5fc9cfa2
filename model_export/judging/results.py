"""How well contenders name clips that they were not trained on: figures, intervals and comparisons."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from model_export.judging.intervals import Floats, group_indices, interval, resample_groups, resample_means
from model_export.network.arrays import Probabilities

Metric = Literal["accuracy", "precision", "recall"]
METRICS: tuple[Metric, ...] = ("accuracy", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric, as a fraction.

    Attributes:
        value: The metric over all clips at once.
        low: Lower end of its 95 % interval, by bootstrap over groups.
        high: Upper end of the interval.
        mean: Mean over the folds, as in the paper's Table 3.
        deviation: Sample standard deviation (n − 1) over the folds; ``None`` for a single fold.
    """

    value: float
    low: float
    high: float
    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of one class: precision (eq 12; 0 if never predicted), recall (eq 13) and number of clips."""

    label: str
    precision: float
    recall: float
    clips: int


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

    def figures(self, seed: int = 0) -> dict[Metric, Figure]:
        """Compute accuracy (eq 11, as correct / total), macro precision (eq 12) and macro recall (eq 13).

        Macro figures weigh all classes that have clips equally; the precision of a class never predicted is 0.
        """
        cluster = group_indices(self.groups)
        resamples = _metrics(resample_groups(int(cluster.max()) + 1, seed) @ self._counts(cluster))
        values = _metrics(self._counts(np.zeros_like(self.folds)))[:, 0]

        def figure(value: float, resampled: Floats, folds: Floats) -> Figure:
            deviation = float(folds.std(ddof=1)) if len(folds) > 1 else None
            return Figure(float(value), *interval(value, resampled, 0, 1), float(folds.mean()), deviation)

        return dict(zip(METRICS, map(figure, values, resamples, self.per_fold), strict=True))

    def per_class(self) -> list[ClassFigures]:
        """Compute the figures of each class that has clips, in index order."""
        hits, named, actual = self._counts(np.zeros_like(self.folds))[:, 0]
        return [
            ClassFigures(label, float(hit / max(1, name)), float(hit / clips), int(clips))
            for label, hit, name, clips in zip(self.labels, hits, named, actual, strict=True)
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
    present = (actual > 0).sum(axis=1)
    # A class without clips has no hits either, so it adds nothing to the sums.
    precision = (hits / np.maximum(named, 1)).sum(axis=1) / present
    recall = (hits / np.maximum(actual, 1)).sum(axis=1) / present
    return np.stack([hits.sum(axis=1) / actual.sum(axis=1), precision, recall])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two contenders on the same clips.

    Attributes:
        first: Name of the first contender.
        second: Name of the second contender.
        difference: Accuracy of the first minus that of the second, as a fraction.
        low: Lower end of the difference's 95 % interval, by bootstrap over groups.
        high: Upper end of the interval.
        only_first: Number of clips that only the first predicted correctly.
        only_second: Number of clips that only the second predicted correctly.
        p: P-value of the exact two-sided McNemar test. It assumes independent clips, which those of one video are not,
            and is therefore too small; the interval is not affected.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float


def compare(first: Results, second: Results, seed: int = 0) -> Comparison:
    """Compare two contenders clip by clip.

    Raises:
        ValueError: They were not tested on the same clips in the same folds.
    """
    if first.names != second.names or not np.array_equal(first.folds, second.folds):
        raise ValueError(f"{first.contender} and {second.contender} were not tested on the same folds")
    gain = first.correct.astype(np.int64) - second.correct
    difference = float(gain.mean())
    low, high = interval(difference, resample_means(gain, first.groups, seed), -1, 1)
    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return Comparison(
        first.contender,
        second.contender,
        difference,
        low,
        high,
        only_first,
        only_second,
        float(p),
    )
