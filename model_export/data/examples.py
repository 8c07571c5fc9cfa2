"""A clip as training and evaluation see it: cached features, class and source video.

Clips are told apart by their content, never by their names: whatever is drawn, ordered or kept on disk is the same
after files were renamed, as long as the same clips are in the same classes and groups.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_export.errors import FeatureError
from model_export.network.arrays import Cuboids
from model_export.network.spec import FRAME_COUNT, GRID

# The header of a `.npy` file as NumPy writes it for an array in C order (NEP 1): dtype and shape.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f[24])', 'fortran_order': False, 'shape': \(([\d, ]+)\), \} *\n", re.DOTALL
)

# The bits of a float16's exponent, which are all set in infinities and NaN only (IEEE 754, binary16).
FLOAT16_EXPONENT = np.uint16(0x7C00)


@dataclass(frozen=True, slots=True)
class Example:
    """The features of one clip, stored on disk, and its class.

    Features are read when they are needed: those of UCF-101 (27 GB) do not fit in memory, and keeping their files open
    would exhaust a process's file descriptors.

    Attributes:
        features: ``.npy`` file of the cuboids X_t, float16 or float32 ``(40, 7, 7, channels)``.
        label: Index of the class.
        group: Source video, by the clip's name and, after ``join_equal``, by its content; clips of one group must never
            be on both sides of an evaluation.
        name: ``class/file``, for reports.
        flipped: ``.npy`` file of the clip mirrored left to right, if it was encoded.
        content: SHA-256 of the video file; if it is empty, the name of ``features`` tells clips apart as well, but it
            depends on the encoder.
    """

    features: Path
    label: int
    group: str
    name: str
    flipped: Path | None = None
    content: str = ""

    @property
    def identity(self) -> str:
        """What tells clips apart whatever their names are; copies of one file have the same."""
        return self.content or self.features.name

    def load(self, *, flipped: bool = False) -> Cuboids:
        """Return the features as float32 ``(40, 7, 7, channels)``; see ``read`` for arguments and errors."""
        return self.read(flipped=flipped).astype(np.float32)

    def read(self, *, flipped: bool = False) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
        """Return the features as they are stored.

        Args:
            flipped: Read those of the mirrored clip.

        Raises:
            FeatureError: The file is gone, cannot be read or is damaged.
            ValueError: The mirrored clip was not encoded.
        """
        if flipped and self.flipped is None:
            raise ValueError(f"{self.name} has no features of its mirrored view")
        return read_features(self.flipped if flipped and self.flipped else self.features)


def in_order(examples: Iterable[Example]) -> list[Example]:
    """Sort examples by class and content, so that their order does not depend on names.

    Copies of a file are interchangeable: once ``join_equal`` was called, they are in one group.
    """
    return sorted(examples, key=lambda example: (example.label, example.identity, example.name))


def groups_by_content(examples: Iterable[Example]) -> dict[str, str]:
    """Return a name of each group that depends on the content of its clips only."""
    least: dict[str, str] = {}
    for example in examples:
        least[example.group] = min(least.get(example.group, example.identity), example.identity)
    return least


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a SHA-256 of examples in their order: features, classes, and which of them are in one group.

    Names are not part of it, so that what is kept by it is found again after clips were renamed.
    """
    groups = groups_by_content(examples)
    clips = [(example.features.name, example.label, groups[example.group]) for example in examples]
    return hashlib.sha256(json.dumps(clips).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """The clips of one class: their number, and a SHA-256 of their contents and groups."""

    clips: int
    sha256: str


def summarize(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, ClassSummary]:
    """Summarise clips by class, to compare selections: neither names nor encoders count."""
    groups, found = groups_by_content(examples), {}
    for label, name in enumerate(labels):
        clips = [f"{e.identity} {groups[e.group]}" for e in examples if e.label == label]
        found[name] = ClassSummary(len(clips), hashlib.sha256("\n".join(sorted(clips)).encode()).hexdigest())
    return found


def read_features(path: Path) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
    """Read the features of a clip as they are stored.

    Raises:
        FeatureError: The file is gone, cannot be read or is damaged.
    """
    try:
        features = _read_npy(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise FeatureError(f"{path} is damaged; remove it, and run the command again to compute it anew") from error
    if not _all_finite(features):
        raise FeatureError(
            f"{path} holds values that are not finite numbers; remove it, and run the command again to compute it anew"
        )
    return features


def _all_finite(features: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> bool:
    """Whether no value is infinite or NaN, which in float16 NumPy finds by converting each to float32."""
    if features.dtype == np.float16:
        return bool((features.view(np.uint16) & FLOAT16_EXPONENT).max() < FLOAT16_EXPONENT)
    return bool(np.isfinite(features).all())


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """Return what ``np.save`` writes, which says nothing of the reason if a disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def unreadable(path: Path, error: OSError) -> FeatureError:
    """Return what to tell the user about a file of features that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return FeatureError(f"{path} is gone; run the command again to compute it anew")
    return FeatureError(f"{path} cannot be read ({error.strerror}); remove it, and run the command again")


def _read_npy(path: Path) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
    """Read an array as ``np.load`` does, without Python's parser.

    ``np.load`` parses the header with ``ast.literal_eval``. In Python 3.11 before 3.11.8, two threads that parse at the
    same time can fail with "SystemError: AST constructor recursion depth mismatch" (python/cpython#106905), and
    training reads features in several threads while TensorFlow parses functions to trace them.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    data = path.read_bytes()
    header = _NPY_HEADER.match(data)
    if header is None:
        raise ValueError(f"{path} is not a .npy file of float16 or float32 features")
    shape = [int(length) for length in header[2].split(b",") if length.strip()]
    if shape[:-1] != [FRAME_COUNT, GRID, GRID]:
        raise ValueError(f"{path} holds an array of shape {shape}")
    return np.frombuffer(data, header[1].decode(), offset=header.end()).reshape(shape)
