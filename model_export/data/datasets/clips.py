"""A labelled clip, and choosing some of many."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path


class DatasetError(Exception):
    """The data set cannot be used as it is: one sentence that names the file or folder and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """One clip of a data set.

    Attributes:
        path: of the file.
        label: the class, named as its folder.
        group: clips cut from one source video share it; they must never stand on both sides of an evaluation.
    """

    path: Path
    label: str
    group: str


def class_names(clips: Iterable[Clip]) -> list[str]:
    """The labels that occur, sorted: a label's position is its index in the network's output."""
    return sorted({clip.label for clip in clips})


def clips_per_class(clips: Iterable[Clip], count: int) -> list[Clip]:
    """At most ``count`` clips of each class, taken in turn from each of its groups, so that they differ most.

    The choice depends on nothing but the class's own clips, and a larger ``count`` keeps what a smaller one chose:
    features computed for a small run serve a larger one.

    Returns:
        The chosen clips, sorted.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    by_class: defaultdict[str, defaultdict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in sorted(clips):
        by_class[clip.label][clip.group].append(clip)
    chosen: list[Clip] = []
    for by_group in by_class.values():
        in_turn = [clip for turn in zip_longest(*by_group.values()) for clip in turn if clip]
        chosen += in_turn[:count]
    return sorted(chosen)
