"""Measures how well heads and baselines name clips they were not trained on: folds, figures, intervals, comparisons.

Nothing here knows how anything is trained: a contender is a function from training and test clips to probabilities.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from model_export.data.examples import Example

Probabilities = npt.NDArray[np.float64]
# Trains on the first clips, answers probabilities (clips, classes) of the second.
Fit = Callable[[Sequence[Example], Sequence[Example]], Probabilities]
Event = Literal["reused", "started", "finished"]
# Told the contender's name, the fold (from 1) and what happens to it.
Progress = Callable[[str, int, Event], None]
Metric = Literal["accuracy", "precision", "recall"]

METRICS: tuple[Metric, ...] = ("accuracy", "precision", "recall")
RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


class EvaluationError(Exception):
    """The evaluation cannot be done as asked. One sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that can be trained and judged.

    Attributes:
        name: for reports.
        fit: trains and predicts; must depend on nothing but its arguments and what ``recipe`` tells.
        recipe: every setting that the probabilities depend on; predictions kept from an interrupted run are used
            again only under the same recipe.
    """

    name: str
    fit: Fit
    recipe: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Indices of the examples to train on and of those to test."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def grouped_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """``k`` folds, stratified by class; all clips of a group are tested in the same one. Each clip is tested once.

    Raises:
        EvaluationError: a class has fewer groups than ``k``.
    """
    name, videos = _scarcest(examples, lambda example: example.group)
    if videos < k:
        raise EvaluationError(
            f"{name} has too few source videos ({videos}) for {k} folds; ask for fewer folds, add clips of others "
            "or leave the class out"
        )
    labels, groups = [example.label for example in examples], [example.group for example in examples]
    return _folds(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(labels, labels, groups))


def random_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """``k`` folds, stratified by class, with no heed to groups: what they measure flatters. Each clip is tested once.

    Raises:
        EvaluationError: a class has fewer clips than ``k``.
    """
    name, clips = _scarcest(examples, lambda example: example.name)
    if clips < k:
        raise EvaluationError(
            f"{name} has too few clips ({clips}) for {k} folds; ask for fewer folds, add clips or leave the class out"
        )
    labels = [example.label for example in examples]
    return _folds(StratifiedKFold(k, shuffle=True, random_state=seed).split(labels, labels))


def split_fold(examples: Sequence[Example], train: Collection[str], test: Collection[str]) -> Fold:
    """The fold of an official split, given the names of the clips on its sides; other clips are on neither.

    Raises:
        EvaluationError: a side has no clip, or a class is tested that has no clip to train on.
    """
    train, test = frozenset(train), frozenset(test)
    fold = Fold(
        train=tuple(i for i, example in enumerate(examples) if example.name in train),
        test=tuple(i for i, example in enumerate(examples) if example.name in test),
    )
    for side, indices in (("training", fold.train), ("test", fold.test)):
        if not indices:
            raise EvaluationError(
                f"none of the clips at hand is on the split's {side} side; take the split of this data set"
            )
    known = {examples[i].label for i in fold.train}
    for i in fold.test:
        if examples[i].label not in known:
            raise EvaluationError(
                f"{_class_name(examples[i])} has test clips but none to train on; leave the class out or add clips"
            )
    return fold


def hold_out_groups(examples: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Splits into clips to train on and about ``share`` of each class's groups to stop the training by.

    Where a class has too few groups for that share, more are held out.

    Raises:
        EvaluationError: a class has clips of one group only.
    """
    name, groups = _scarcest(examples, lambda example: example.group)
    if groups < 2:
        raise EvaluationError(
            f"{name} has one source video to train on, so none can be held out; add clips of other videos or leave the "
            "class out"
        )
    fold = grouped_folds(examples, max(2, min(round(1 / share), groups)), seed)[0]
    return [examples[i] for i in fold.train], [examples[i] for i in fold.test]


def _folds(indices: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> tuple[Fold, ...]:
    return tuple(Fold(tuple(train.tolist()), tuple(test.tolist())) for train, test in indices)


def _scarcest(examples: Sequence[Example], unit_of: Callable[[Example], str]) -> tuple[str, int]:
    """The class with the fewest different units, and how many it has."""
    units: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        units[_class_name(example)].add(unit_of(example))
    name = min(units, key=lambda name: len(units[name]))
    return name, len(units[name])


def _class_name(example: Example) -> str:
    return str(PurePosixPath(example.name).parent)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric, as a share of 1.

    Attributes:
        value: over all clips at once.
        low, high: its 95 % interval, by bootstrap over groups.
        mean: over the folds, as in the paper's Table 3.
        deviation: over the folds (of a sample: n − 1); None of a single fold.
    """

    value: float
    low: float
    high: float
    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How one class fared: precision (eq 12), 0 where it was never predicted, recall (eq 13), number of its clips."""

    label: str
    precision: float
    recall: float
    clips: int


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """How many clips of one class were taken for another."""

    truth: str
    predicted: str
    clips: int


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """What one contender predicted of clips it was not trained on, and what follows from it.

    Attributes:
        contender: its name.
        recipe: its settings.
        labels: names of the classes, in index order.
        names: of the clips.
        groups: of the clips.
        truth: class indices, int64 ``(clips,)``.
        probabilities: float64 ``(clips, classes)``.
        folds: in which each clip was tested, from 0, int64 ``(clips,)``.
        leaked: whether clips of the same group were trained on, bool ``(clips,)``.
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
        """Index of each clip's likeliest class, int64 ``(clips,)``."""
        predicted: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether that is its class, bool ``(clips,)``."""
        return np.equal(self.predicted, self.truth)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Clips by class (rows) and predicted class (columns), int64 ``(classes, classes)``."""
        classes = len(self.labels)
        return np.bincount(self.truth * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    @property
    def per_fold(self) -> npt.NDArray[np.float64]:
        """Accuracy, macro precision and macro recall of each fold, float64 ``(3, folds)``."""
        return _metrics(self._counts(self.folds))

    def figures(self, seed: int = 0) -> dict[Metric, Figure]:
        """Accuracy (eq 11, as correct / total), macro precision (eq 12) and macro recall (eq 13).

        Macro means that each class which has clips counts the same; the precision of one never predicted is 0.

        The intervals come from 2,000 resamples of the groups, not of the clips: clips cut from one video are right or
        wrong together, and taking them for independent would make the intervals too narrow. They tell what other videos
        of these classes could do to the figure, not what another training could.
        """
        cluster = np.unique(self.groups, return_inverse=True)[1]
        resamples = _metrics(_resamples(int(cluster.max()) + 1, seed) @ self._counts(cluster))
        values = _metrics(self._counts(np.zeros_like(self.folds)))[:, 0]

        def figure(value: float, resampled: npt.NDArray[np.float64], folds: npt.NDArray[np.float64]) -> Figure:
            deviation = float(folds.std(ddof=1)) if len(folds) > 1 else None
            return Figure(float(value), *_interval(value, resampled), float(folds.mean()), deviation)

        return dict(zip(METRICS, map(figure, values, resamples, self.per_fold), strict=True))

    def per_class(self) -> list[ClassFigures]:
        """Figures of each class that has clips, in index order."""
        hits, named, actual = self._counts(np.zeros_like(self.folds))[:, 0]
        return [
            ClassFigures(label, float(hit / max(1, name)), float(hit / clips), int(clips))
            for label, hit, name, clips in zip(self.labels, hits, named, actual, strict=True)
            if clips
        ]

    def confused_pairs(self, limit: int = 10) -> list[ConfusedPair]:
        """The pairs of classes most often confused, most confused first; both directions count apart."""
        wrong = self.confusion
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [ConfusedPair(self.labels[i], self.labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def _counts(self, cluster: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Clips rightly named, named and of each class, by cluster (indices from 0): ``(3, clusters, classes)``."""
        clusters, classes = int(cluster.max()) + 1, len(self.labels)

        def count(clips: npt.NDArray[np.bool_] | slice, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            cells = cluster[clips] * classes + index[clips]
            return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)

        every = slice(None)
        return np.stack(
            [count(self.correct, self.truth), count(every, self.predicted), count(every, self.truth)]
        ).astype(np.float64)


def _metrics(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Accuracy, macro precision and macro recall ``(3, n)`` of counts ``(3, n, classes)``, see `Results._counts`."""
    hits, named, actual = counts
    present = (actual > 0).sum(axis=1)
    # A class without clips has no hits either, so that it adds nothing to the sums.
    precision = (hits / np.maximum(named, 1)).sum(axis=1) / present
    recall = (hits / np.maximum(actual, 1)).sum(axis=1) / present
    return np.stack([hits.sum(axis=1) / actual.sum(axis=1), precision, recall])


def _resamples(groups: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each group was drawn in each of `RESAMPLES` draws with replacement: ``(RESAMPLES, groups)``."""
    drawn = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    cells = drawn + groups * np.arange(RESAMPLES)[:, np.newaxis]
    return np.bincount(cells.ravel(), minlength=RESAMPLES * groups).reshape(RESAMPLES, groups).astype(np.float64)


def _interval(value: float, resampled: npt.NDArray[np.float64], least: float = 0) -> tuple[float, float]:
    """Percentile interval of 95 %, within ``least`` and 1, moved by what the resamples are off the value on average.

    Nothing for accuracy, but a resample lacks a third of the groups, which tends to lower macro precision.
    """
    low, high = np.clip(np.quantile(resampled, INTERVAL) + value - resampled.mean(), least, 1)
    return float(low), float(high)


def cross_validate(
    examples: Sequence[Example],
    folds: Sequence[Fold],
    contenders: Sequence[Contender],
    labels: Sequence[str],
    *,
    log: Path | None = None,
    progress: Progress = lambda name, fold, event: None,
) -> list[Results]:
    """Trains and tests every contender on every fold.

    Args:
        examples: of all classes.
        folds: none or an official split counts as one fold.
        contenders: each gets the same folds.
        labels: names of the classes, in index order.
        log: folder that predictions are kept in, one file a contender and fold, so that a run started again goes on
            where the last one stopped. What is kept is used only for the same contender, recipe and clips, whose
            feature files must have the same names (which tell the encoder and the frames too, see ``FeatureCache``).
        progress: called before and after each training.

    Returns:
        One for each contender, in order; clips in the order in which the folds test them.

    Raises:
        EvaluationError: a contender's probabilities are not finite, or a file of the log is damaged.
        ValueError: a contender's probabilities have another shape than ``(clips, classes)``.
    """
    tested = [examples[i] for fold in folds for i in fold.test]
    numbers = [number for number, fold in enumerate(folds) for _ in fold.test]
    trained_on = [{examples[i].group for i in fold.train} for fold in folds]

    def judge(contender: Contender) -> Results:
        found = []
        for number, fold in enumerate(folds, 1):
            train, test = [examples[i] for i in fold.train], [examples[i] for i in fold.test]
            kept = log / _log_name(contender, train, test) if log else None
            found.append(_predict(contender, train, test, len(labels), kept, partial(progress, contender.name, number)))
        return Results(
            contender=contender.name,
            recipe=contender.recipe,
            labels=tuple(labels),
            names=tuple(example.name for example in tested),
            groups=tuple(example.group for example in tested),
            truth=np.array([example.label for example in tested]),
            probabilities=np.concatenate(found),
            folds=np.array(numbers),
            leaked=np.array([example.group in trained_on[i] for example, i in zip(tested, numbers, strict=True)]),
        )

    return [judge(contender) for contender in contenders]


def _predict(
    contender: Contender,
    train: Sequence[Example],
    test: Sequence[Example],
    classes: int,
    kept: Path | None,
    tell: Callable[[Event], None],
) -> Probabilities:
    """Probabilities of one fold: those that were kept, or else new ones, which are kept."""
    if kept and kept.exists():
        tell("reused")
        return _read(kept, (len(test), classes))
    tell("started")
    found = contender.fit(train, test)
    if found.shape != (len(test), classes):
        raise ValueError(f"{contender.name} answered {found.shape} for {len(test)} clips and {classes} classes")
    if not np.isfinite(found).all():
        raise EvaluationError(f"the training of {contender.name} diverged; give it a lower learning rate")
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, found)
        part.replace(kept)
    tell("finished")
    return found


def _log_name(contender: Contender, train: Sequence[Example], test: Sequence[Example]) -> str:
    """File name that no other contender, recipe or list of clips and features has."""
    clips = [[(e.name, e.label, e.group, e.features.name) for e in side] for side in (train, test)]
    facts = json.dumps([contender.name, contender.recipe, clips])
    readable = re.sub(r"[^a-z0-9]+", "-", contender.name.lower()).strip("-")
    return f"{readable}.{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npy"


def _read(kept: Path, shape: tuple[int, int]) -> Probabilities:
    try:
        found: Probabilities = np.load(kept)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(f"{kept} cannot be read ({error}); remove it") from error
    if found.shape != shape:
        raise EvaluationError(f"{kept} holds predictions of the shape {found.shape}, not {shape}; remove it")
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two contenders on the same clips.

    Attributes:
        first, second: their names.
        difference: accuracy of the first minus that of the second, as a share of 1.
        low, high: its 95 % interval, by bootstrap over groups.
        only_first, only_second: clips that this one named rightly and the other did not.
        p: of the exact McNemar test, two-sided. It takes clips for independent, which those of one video are not, so
            that it errs towards small; the interval does not.
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
    """Compares two contenders clip by clip.

    Raises:
        ValueError: they were not tested on the same clips in the same folds.
    """
    if first.names != second.names or not np.array_equal(first.folds, second.folds):
        raise ValueError(f"{first.contender} and {second.contender} were not tested on the same folds")
    gain = first.correct.astype(np.int64) - second.correct
    cluster = np.unique(first.groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(cluster, gain), np.bincount(cluster)], axis=1)
    resampled = _resamples(len(sums), seed) @ sums
    low, high = _interval(gain.mean(), resampled[:, 0] / resampled[:, 1], least=-1)
    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return Comparison(
        first.contender,
        second.contender,
        float(gain.mean()),
        low,
        high,
        only_first,
        only_second,
        float(p),
    )
