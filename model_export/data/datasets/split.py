"""An official division of a data set into training and test clips."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath

from model_export.data.datasets.clips import Clip, DatasetError


class Side(StrEnum):
    """What a split uses a clip for."""

    TRAIN = "train"
    TEST = "test"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a split file that is not blank, and where it stands."""

    path: Path
    number: int
    text: str

    def malformed(self, expected: str) -> DatasetError:
        """The error that says what the line should be."""
        return DatasetError(
            f"{self.path}, line {self.number}: {self.text!r} is not {expected}; take the official list again."
        )


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a split file without blank ones, whatever its line ends.

    Raises:
        DatasetError: the file is missing, empty or not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise DatasetError(
            f"{path} cannot be read ({reason}): put the official split lists into its folder."
        ) from error
    lines = [Line(path, number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path} is empty: take the official list again.")
    yield from lines


@dataclass(frozen=True, slots=True)
class Partition:
    """The clips at hand, divided by a split.

    Attributes:
        train: in the order given, like the others.
        test: never a clip that is in ``train``.
        unused: listed, but on neither side.
        extra: not listed, or a second file of a listed clip.
        missing: listed for training or test in a class that is at hand, without a file, as ``class/stem``.
    """

    train: tuple[Clip, ...]
    test: tuple[Clip, ...]
    unused: tuple[Clip, ...]
    extra: tuple[Clip, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """The side of each clip that a data set's authors list.

    Clips are recognised by class and file name without the suffix: copies of a data set are often re-encoded.

    Attributes:
        name: for reports.
        sides: by label and file name without the suffix.
    """

    name: str
    sides: Mapping[tuple[str, str], Side]

    @classmethod
    def of(cls, name: str, entries: Iterable[tuple[Line, str, str, Side]]) -> "Split":
        """A split of (line, label, file name, side) entries; a clip listed twice is a ``DatasetError``."""
        sides: dict[tuple[str, str], Side] = {}
        for line, label, file_name, side in entries:
            key = (label, PurePath(file_name).stem)
            if key in sides:
                raise line.malformed("a clip not listed before")
            sides[key] = side
        return cls(name, sides)

    def divide(self, clips: Iterable[Clip]) -> Partition:
        """Puts each clip on its side and tells what is missing or not listed."""
        found: defaultdict[Side | None, list[Clip]] = defaultdict(list)
        labels: set[str] = set()
        met: set[tuple[str, str]] = set()
        for clip in clips:
            labels.add(clip.label)
            key = (clip.label, clip.path.stem)
            found[None if key in met else self.sides.get(key)].append(clip)
            met.add(key)
        missing = sorted(
            f"{label}/{stem}"
            for (label, stem), side in self.sides.items()
            if side is not Side.UNUSED and label in labels and (label, stem) not in met
        )
        return Partition(
            train=tuple(found[Side.TRAIN]),
            test=tuple(found[Side.TEST]),
            unused=tuple(found[Side.UNUSED]),
            extra=tuple(found[None]),
            missing=tuple(missing),
        )
