"""UCF-101: its file names, which contain the source video, and its official splits.

Soomro, Zamir and Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01, 2012.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from model_export.data.datasets.names import joined, words
from model_export.data.datasets.split import Line, Side, Split, read_lines

CLIP_NAME = re.compile(r"(?:v )?(?P<video>.*?)\b ?g (?P<number>\d+) c \d+\b")  # in ``words``
LIST_LINE = re.compile(r"(?P<label>[^/\s]+)/(?P<file>[^/\s]+)(?:\s+(?P<index>\d+))?")
CLASS_LINE = re.compile(r"(?P<index>\d+)\s+(?P<label>\S+)")


def group(label: str, text: str) -> str | None:
    """Return ``v_<class>_gNN``, the source video of a clip named ``v_<Class>_gNN_cNN``, or ``None`` for any other name.

    The class in the name is part of it, since the numbers start again in each class.

    Args:
        label: The clip's class, which is used if the name has none (``g01_c02``).
        text: The ``words`` of its file name.
    """
    match = CLIP_NAME.match(text)
    return f"v_{joined(match['video'] or words(label))}_g{int(match['number']):02}" if match else None


def read_split(folder: Path, number: int) -> Split:
    """Read official split ``number`` (1 to 3) from ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.

    Raises:
        DatasetError: A file is missing, a line is malformed, or a class or a clip is listed twice.
    """
    return Split.of(f"UCF-101 split {number}", _entries(folder, number, _read_classes(folder / "classInd.txt")))


def _read_classes(path: Path) -> dict[str, str]:
    indices: dict[str, str] = {}
    for line in read_lines(path):
        match = CLASS_LINE.fullmatch(line.text)
        if match is None:
            raise line.malformed("an index and a class")
        if match["label"] in indices or match["index"] in indices.values():
            raise line.malformed("a class and an index not named before")
        indices[match["label"]] = match["index"]
    return indices


def _entries(folder: Path, number: int, indices: dict[str, str]) -> Iterator[tuple[Line, str, str, Side]]:
    for side in (Side.TRAIN, Side.TEST):
        for line in read_lines(folder / f"{side}list0{number}.txt"):
            match = LIST_LINE.fullmatch(line.text)
            if match is None:
                raise line.malformed("'Class/clip.avi', with the class's index in a training list")
            label, index = match["label"], match["index"]
            if label not in indices or index not in (None, indices[label]):
                raise line.malformed("of a class and index in classInd.txt")
            yield line, label, match["file"], side
