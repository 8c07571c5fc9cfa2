"""HMDB-51: its file names, which contain the source video, and its official splits.

Kuehne, Jhuang, Garrote, Poggio and Serre, "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from model_export.data.datasets.split import Line, Side, Split, read_lines
from model_export.errors import DatasetError

# Visible body parts, camera motion, number of people, viewpoint, quality, and the clip's number within the video.
CODES = re.compile(r"(?P<subject>.+)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+")
SPLIT_LINE = re.compile(r"(?P<file>\S+)\s+(?P<mark>[012])")
MARKS = {"0": Side.UNUSED, "1": Side.TRAIN, "2": Side.TEST}


def group(label: str, stem: str) -> str | None:
    """Return the source video of a clip named ``<video>_<class>_<codes>``, or ``None`` for any other name.

    The class is not part of it, since clips of one video occur in several classes.
    """
    match = CODES.fullmatch(stem)
    return match["subject"].removesuffix(f"_{label}") if match else None


def read_split(folder: Path, number: int) -> Split:
    """Read official 70/30 split ``number`` (1 to 3) from ``<class>_test_splitN.txt``.

    The split keeps a video on one side within a class, but not across classes.

    Raises:
        DatasetError: There is no such file, a line is malformed, or a clip is listed twice.
    """
    return Split.of(f"HMDB-51 split {number}", _entries(folder, number))


def _entries(folder: Path, number: int) -> Iterator[tuple[Line, str, str, Side]]:
    ending = f"_test_split{number}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise DatasetError(f"{folder} holds no *{ending}; put the official split lists there")
    for path in paths:
        for line in read_lines(path):
            match = SPLIT_LINE.fullmatch(line.text)
            if match is None:
                raise line.malformed("'clip.avi' and 0 (unused), 1 (training) or 2 (test)")
            yield line, path.name.removesuffix(ending), match["file"], MARKS[match["mark"]]
