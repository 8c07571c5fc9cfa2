"""A labelled clip, and selecting some of many."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True, order=True)
class LabelledClip:
    """One clip of a data set.

    Attributes:
        path: Video file.
        label: The class: the name of its folder, as it is shown (see ``label_of``).
        group: Source video, by the clip's name (see ``group_of``).
        folder: Folder of the file within the class's folder; empty if it is there itself.
    """

    path: Path
    label: str
    group: str
    folder: str = ""

    @property
    def name(self) -> str:
        """``class/file`` or ``class/folder/file``, as examples and reports name it."""
        return str(PurePosixPath(self.label, self.folder, self.path.name))


def class_names(clips: Iterable[LabelledClip]) -> list[str]:
    """Return the labels that occur, sorted; a label's position is its index in the network's output."""
    return sorted({clip.label for clip in clips})


def clips_per_class(clips: Iterable[LabelledClip], count: int) -> list[LabelledClip]:
    """Select at most ``count`` clips of each class, taken in turn from each of its groups so that they differ most.

    Groups are those by name: this is done before there are features to compare clips by.

    The selection depends on the class's own clips only, and a larger ``count`` includes that of a smaller one, so that
    a larger run reuses the features of a smaller one.

    Returns:
        The selected clips, sorted.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    by_class: defaultdict[str, defaultdict[str, list[LabelledClip]]] = defaultdict(lambda: defaultdict(list))
    for clip in sorted(clips):
        by_class[clip.label][clip.group].append(clip)
    chosen: list[LabelledClip] = []
    for by_group in by_class.values():
        in_turn = [clip for turn in zip_longest(*by_group.values()) for clip in turn if clip]
        chosen += in_turn[:count]
    return sorted(chosen)
