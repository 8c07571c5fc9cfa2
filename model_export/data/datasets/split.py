"""An official division of a data set into training and test clips."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath

from model_export.data.datasets.clips import LabelledClip
from model_export.data.datasets.names import look
from model_export.errors import DatasetError


class Side(StrEnum):
    """How a split uses a clip."""

    TRAIN = "train"
    TEST = "test"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a split file that is not blank, with its position."""

    path: Path
    number: int
    text: str

    def malformed(self, expected: str) -> DatasetError:
        """Return the error that says what was expected instead of the line."""
        return DatasetError(
            f"{self.path}, line {self.number}: {self.text!r} is not {expected}; download the official list again"
        )


def read_lines(path: Path) -> Iterator[Line]:
    """Read the lines of a split file that are not blank, whatever its line endings.

    Raises:
        DatasetError: The file is missing, empty or not a text file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise DatasetError(f"{path} cannot be read ({reason}); put the official split lists into its folder") from error
    lines = [Line(path, number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path} is empty; download the official list again")
    yield from lines


@dataclass(frozen=True, slots=True)
class Partition:
    """The available clips, divided by a split; each part is in the order of the clips.

    Attributes:
        train: Clips to train on.
        test: Clips to test; none of them is in ``train``.
        unused: Clips listed as unused.
        extra: Clips that are not listed, or second files of a listed clip.
        missing: Clips listed for training or test in an available class that have no file, as ``class/stem``.
    """

    train: tuple[LabelledClip, ...]
    test: tuple[LabelledClip, ...]
    unused: tuple[LabelledClip, ...]
    extra: tuple[LabelledClip, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """An official split: which side each clip is on.

    Clips are identified by class and file name without the suffix, since copies of a data set are often re-encoded.
    Classes that look equal are one (``brush_hair``, ``Brush hair``), and so are Unicode's forms of a file name.

    Attributes:
        name: Name for reports.
        sides: Sides by label and file name without the suffix.
    """

    name: str
    sides: Mapping[tuple[str, str], Side]

    @classmethod
    def of(cls, name: str, entries: Iterable[tuple[Line, str, str, Side]]) -> "Split":
        """Build a split from (line, label, file name, side) entries.

        Raises:
            DatasetError: A clip is listed twice.
        """
        sides: dict[tuple[str, str], Side] = {}
        for line, label, file_name, side in entries:
            key = (label, PurePath(file_name).stem)
            if key in sides:
                raise line.malformed("a clip not listed before")
            sides[key] = side
        return cls(name, sides)

    def divide(self, clips: Iterable[LabelledClip]) -> Partition:
        """Put each clip on its side, and find clips that are missing or not listed."""
        found: defaultdict[Side | None, list[LabelledClip]] = defaultdict(list)
        sides = {_key(*clip): side for clip, side in self.sides.items()}
        labels: set[str] = set()
        met: set[tuple[str, str]] = set()
        for clip in clips:
            key = _key(clip.label, clip.path.stem)
            labels.add(key[0])
            found[None if key in met else sides.get(key)].append(clip)
            met.add(key)
        missing = sorted(
            f"{label}/{stem}"
            for (label, stem), side in self.sides.items()
            if side is not Side.UNUSED and look(label) in labels and _key(label, stem) not in met
        )
        return Partition(
            train=tuple(found[Side.TRAIN]),
            test=tuple(found[Side.TEST]),
            unused=tuple(found[Side.UNUSED]),
            extra=tuple(found[None]),
            missing=tuple(missing),
        )


def _key(label: str, stem: str) -> tuple[str, str]:
    """Return what identifies a clip."""
    return look(label), unicodedata.normalize("NFC", stem)
