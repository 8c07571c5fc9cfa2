"""Dividing examples into parts to train on and parts to test: folds, official splits, held-out groups."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from model_export.data.examples import Example
from model_export.errors import FoldError


@dataclass(frozen=True, slots=True)
class Fold:
    """Indices of the examples to train on and of those to test."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def grouped_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal clips to ``k`` folds, stratified by class, with all clips of a group in the same one.

    Each clip is tested once.

    Raises:
        FoldError: A class has fewer than ``k`` groups.
    """
    name, videos = _scarcest(examples, lambda example: example.group)
    if videos < k:
        raise FoldError(
            f"{name} has too few source videos ({videos}) for {k} folds; lower --k-fold, add clips of other videos or "
            "leave the class out"
        )
    labels, groups = [example.label for example in examples], [example.group for example in examples]
    return _folds(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(labels, labels, groups))


def random_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal clips to ``k`` folds, stratified by class, regardless of groups.

    Clips of one video are then trained on and tested, so that figures are too good. Each clip is tested once.

    Raises:
        FoldError: A class has fewer than ``k`` clips.
    """
    name, clips = _scarcest(examples, lambda example: example.name)
    if clips < k:
        raise FoldError(
            f"{name} has too few clips ({clips}) for {k} folds; lower --k-fold, add clips or leave the class out"
        )
    labels = [example.label for example in examples]
    return _folds(StratifiedKFold(k, shuffle=True, random_state=seed).split(labels, labels))


def split_fold(examples: Sequence[Example], train: Collection[str], test: Collection[str]) -> Fold:
    """Build the fold of an official split from the names of the clips on its sides; other clips are not used.

    Raises:
        FoldError: A side has no clip, or a tested class has no clip to train on.
    """
    train, test = frozenset(train), frozenset(test)
    fold = Fold(
        train=tuple(i for i, example in enumerate(examples) if example.name in train),
        test=tuple(i for i, example in enumerate(examples) if example.name in test),
    )
    for side, indices in (("training", fold.train), ("test", fold.test)):
        if not indices:
            raise FoldError(
                f"none of the clips is on the split's {side} side; give the split lists of this data set with "
                "--split-files"
            )
    known = {examples[i].label for i in fold.train}
    for i in fold.test:
        if examples[i].label not in known:
            raise FoldError(
                f"{_class_name(examples[i])} has test clips but none to train on; leave the class out or add clips"
            )
    return fold


def hold_out_groups(examples: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and about ``share`` of each class's groups to choose the epoch by.

    If a class has too few groups for that share, more are held out.

    Raises:
        FoldError: A class has clips of one group only.
    """
    name, groups = _scarcest(examples, lambda example: example.group)
    if groups < 2:
        raise FoldError(
            f"{name} has one source video to train on, so none can be held out; add clips of other videos or leave the "
            "class out"
        )
    fold = grouped_folds(examples, max(2, min(round(1 / share), groups)), seed)[0]
    return [examples[i] for i in fold.train], [examples[i] for i in fold.test]


def _folds(indices: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> tuple[Fold, ...]:
    return tuple(Fold(tuple(train.tolist()), tuple(test.tolist())) for train, test in indices)


def _scarcest(examples: Sequence[Example], unit_of: Callable[[Example], str]) -> tuple[str, int]:
    """Return the class with the fewest different units, and their number."""
    units: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        units[_class_name(example)].add(unit_of(example))
    name = min(units, key=lambda name: len(units[name]))
    return name, len(units[name])


def _class_name(example: Example) -> str:
    return str(PurePosixPath(example.name).parent)
