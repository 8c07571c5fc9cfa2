"""Joining the groups of clips that have the same content: copies of a file, and videos of the same sampled frames."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model_export.data.dealing import linked
from model_export.data.examples import Example


@dataclass(frozen=True, slots=True)
class EqualClips:
    """Clips with the same content, which are in several groups or classes.

    Attributes:
        names: The clips, as ``class/file``, sorted.
        groups: Their groups before joining, sorted.
        group: Their group after joining: the first of all groups that were joined into it, in alphabetical order.
        classes: Number of their classes.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    group: str
    classes: int


def join_copies(examples: Sequence[Example]) -> list[Example]:
    """Join the groups of clips whose files are equal, which needs no features."""
    return _join(examples, [example.content for example in examples])[0]


def join_equal(examples: Sequence[Example]) -> tuple[list[Example], list[EqualClips]]:
    """Join the groups of clips with equal features.

    Features are equal if the bytes of the files are (see ``FeatureCache``), or if the sampled frames are, as they can
    be after copying a stream to another container. A clip that was encoded again, cut differently or mirrored is not
    found, nor is one in a container that times frames otherwise, so that one of the 40 is another. All 40 cuboids must
    be equal, so that clips that share a black or still beginning stay apart; clips that are black throughout are equal.

    Returns:
        The examples in their order, each with the name of its group after joining; and the clips that are equal.

    Raises:
        OSError: Features cannot be read.
        ValueError: A file of features is damaged.
    """
    contents = _contents([example.features for example in examples])
    return _join(examples, [contents[example.features] for example in examples])


def _join(examples: Sequence[Example], contents: Sequence[str]) -> tuple[list[Example], list[EqualClips]]:
    """Join the groups of examples whose ``contents`` are equal."""
    numbers = linked((example.group, content) for example, content in zip(examples, contents, strict=True))
    joined: defaultdict[int, set[str]] = defaultdict(set)
    alike: defaultdict[str, list[Example]] = defaultdict(list)
    for example, content in zip(examples, contents, strict=True):
        joined[numbers[example.group]].add(example.group)
        alike[content].append(example)
    first = {number: min(groups) for number, groups in joined.items()}
    equal = [
        EqualClips(
            names=tuple(sorted(example.name for example in same)),
            groups=tuple(sorted({example.group for example in same})),
            group=first[numbers[same[0].group]],
            classes=len({example.label for example in same}),
        )
        for same in alike.values()
        if len({(example.group, example.label) for example in same}) > 1
    ]
    named = [replace(example, group=first[numbers[example.group]]) for example in examples]
    return named, sorted(equal, key=lambda one: one.names)


def _contents(files: Sequence[Path]) -> dict[Path, str]:
    """Return equal strings for files of equal features.

    Only 4 KB of each file are read, four frames' central cells, and the whole file if those occur more than once: the
    features of UCF-101 are 27 GB.
    """
    sampled: defaultdict[bytes, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        cuboids = np.load(file, mmap_mode="r")
        row, column = (length // 2 for length in cuboids.shape[1:3])
        sampled[cuboids[5::10, row, column].tobytes()].append(file)
    return {
        file: hashlib.sha256(file.read_bytes()).hexdigest() if len(alike) > 1 else file.name
        for alike in sampled.values()
        for file in alike
    }
