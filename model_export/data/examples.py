"""A clip as training and evaluation see it: cached features, class and source video."""

import io
import re
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
    """

    features: Path
    label: int
    group: str
    name: str
    flipped: Path | None = None

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
    if not np.isfinite(features).all():
        raise FeatureError(
            f"{path} holds values that are not finite numbers; remove it, and run the command again to compute it anew"
        )
    return features


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
