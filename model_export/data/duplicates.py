"""Joining the groups of clips that have the same content: copies of a file, and one video in two containers."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model_export.data.dealing import linked
from model_export.data.examples import Example


@dataclass(frozen=True, slots=True)
class Joined:
    """Groups that became one, because clips of them are equal.

    Attributes:
        name: Name of the group: the first of the joined names, in alphabetical order.
        groups: The names that were joined, sorted.
        clips: The equal clips, in sets of ``class/file``, sorted.
    """

    name: str
    groups: tuple[str, ...]
    clips: tuple[tuple[str, ...], ...]


def join_equal(examples: Sequence[Example]) -> tuple[list[Example], list[Joined]]:
    """Join the groups of clips with equal features.

    Features are equal if the bytes of the files are (see ``FeatureCache``), or if the decoded frames are, as after
    copying a stream to another container. A clip that was encoded again, cut differently or mirrored is not found. All
    40 cuboids must be equal, so that clips that share a black or still beginning stay apart; clips that are black
    throughout are equal.

    Returns:
        The examples in their order, each with the name of its group after joining; and what was joined.

    Raises:
        OSError: Features cannot be read.
        ValueError: A file of features is damaged.
    """
    contents = _contents([example.features for example in examples])
    numbers = linked((example.group, contents[example.features]) for example in examples)
    groups: defaultdict[int, set[str]] = defaultdict(set)
    equal: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[numbers[example.group]].add(example.group)
        equal[contents[example.features]].append(example)
    joined = []
    for number, names in groups.items():
        if len(names) > 1:
            sets = [same for same in equal.values() if numbers[same[0].group] == number]
            clips = sorted(tuple(sorted(e.name for e in same)) for same in sets if len({e.group for e in same}) > 1)
            joined.append(Joined(min(names), tuple(sorted(names)), tuple(clips)))
    named = [replace(example, group=min(groups[numbers[example.group]])) for example in examples]
    return named, sorted(joined, key=lambda one: one.name)


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
