"""Dividing examples into parts to train on and parts to test: folds, official splits, held-out groups."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from model_export.data.dealing import deal, linked, shuffled
from model_export.data.examples import Example, groups_by_content
from model_export.errors import FoldError


@dataclass(frozen=True, slots=True)
class Fold:
    """Indices of the examples to train on and of those to test."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def grouped_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal clips to ``k`` folds, stratified by class, with all clips of a group in the same one.

    Each clip is tested once, by a network that was trained on other clips of its class.

    Raises:
        FoldError: A class has fewer than ``k`` groups, or groups are in several classes in such a way that some fold
            would have nothing to test, or a class nothing to train on.
    """
    name, videos = _scarcest(examples, lambda example: example.group)
    if videos < k:
        raise FoldError(
            f"{name} has too few source videos ({videos}) for {k} folds; lower --k-fold, add clips of other videos or "
            "leave the class out"
        )
    names = groups_by_content(examples)
    classes = _classes(examples, names)
    order = {group: i for i, group in enumerate(sorted(classes, key=lambda group: (min(classes[group]), group)))}
    labels, groups = [example.label for example in examples], [order[names[example.group]] for example in examples]
    folds = _folds(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(labels, labels, groups))
    if all(fold.test and _labels(examples, fold.test) <= _labels(examples, fold.train) for fold in folds):
        return folds
    sizes = _sizes(classes)
    sides = deal(classes, {label: [size / k] * k for label, size in sizes.items()}, 0, seed)
    if sides is None:
        raise FoldError(
            f"there are no {k} folds that each leave clips of every class to train on, because videos are in several "
            "classes; change --k-fold, add clips of other videos or leave a class out"
        )
    on = [sides[names[example.group]] for example in examples]
    return tuple(_parts(on, side) for side in range(k))


def random_folds(examples: Sequence[Example], k: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal clips to ``k`` folds, stratified by class, regardless of groups.

    Clips of one video are then trained on and tested, so that figures are too good. Each clip is tested once. The folds
    depend on the order of the examples.

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
        FoldError: A side has no clip, a tested class has no clip to train on, or only one class has any.
    """
    train, test = frozenset(train), frozenset(test)
    fold = Fold(
        train=tuple(i for i, example in enumerate(examples) if example.name in train),
        test=tuple(i for i, example in enumerate(examples) if example.name in test),
    )
    if not (fold.train or fold.test):
        raise FoldError(
            "the split lists none of the clips; give the split lists of this data set with --split-files, or leave "
            "--split out to use folds"
        )
    for side, indices in (("training", fold.train), ("test", fold.test)):
        if not indices:
            raise FoldError(
                f"none of the clips is on the split's {side} side; add clips of that side, or leave --split out to use "
                "folds"
            )
    known = {examples[i].label for i in fold.train}
    for i in fold.test:
        if examples[i].label not in known:
            raise FoldError(
                f"{_class_name(examples[i])} has test clips but none to train on; leave the class out or add clips"
            )
    if len(known) < 2:
        raise FoldError(
            f"{_class_name(examples[fold.train[0]])} is the only class with clips on the split's training side; add "
            "clips of another, or leave --split out to use folds"
        )
    return fold


def hold_out_groups(examples: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and a share of each class's groups to choose the epoch by.

    Of n groups, ``round(share * n)`` are held out, at least one and at most all but one, whatever other classes have.
    Only where groups are in several classes, a class may get a few more or fewer, so that each class keeps one and has
    one held out. The choice depends on the seed and the content of the groups, not on names or the order of the
    examples.

    Raises:
        FoldError: A class has clips of one group only, or no choice leaves each class groups on both sides.
    """
    name, groups = _scarcest(examples, lambda example: example.group)
    if groups < 2:
        raise FoldError(
            f"{name} has one source video to train on, so none can be held out; add clips of other videos or leave the "
            "class out"
        )
    names = groups_by_content(examples)
    classes = _classes(examples, names)
    held: set[str] = set()
    component = linked((group, label) for group, labels in classes.items() for label in labels)
    for number in set(component.values()):
        part = {group: labels for group, labels in classes.items() if component[group] == number}
        out = {label: min(max(round(share * size), 1), size - 1) for label, size in _sizes(part).items()}
        if len(out) == 1:
            held.update(shuffled(part, seed)[: sum(out.values())])
            continue
        sides = deal(part, {label: (_sizes(part)[label] - n, n) for label, n in out.items()}, 1, seed)
        if sides is None:
            name = next(_class_name(example) for example in examples if names[example.group] in part)
            raise FoldError(
                f"no source videos of {name} can be held out, because it shares them with other classes, which need "
                "them to train on; add clips of other videos or leave a class out"
            )
        held.update(group for group, side in sides.items() if side == 1)
    return (
        [example for example in examples if names[example.group] not in held],
        [example for example in examples if names[example.group] in held],
    )


def _classes(examples: Iterable[Example], names: Mapping[str, str]) -> dict[str, set[int]]:
    """Return the classes of each group, by its name in ``names``."""
    classes: defaultdict[str, set[int]] = defaultdict(set)
    for example in examples:
        classes[names[example.group]].add(example.label)
    return classes


def _sizes(classes: Mapping[str, Set[int]]) -> Counter[int]:
    """Count the groups of each class."""
    return Counter(label for labels in classes.values() for label in labels)


def _labels(examples: Sequence[Example], indices: Iterable[int]) -> set[int]:
    return {examples[i].label for i in indices}


def _parts(on: Sequence[int], side: int) -> Fold:
    """Return the fold that tests the examples on one side."""
    return Fold(
        train=tuple(i for i, other in enumerate(on) if other != side),
        test=tuple(i for i, other in enumerate(on) if other == side),
    )


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
    return PurePosixPath(example.name).parts[0]
