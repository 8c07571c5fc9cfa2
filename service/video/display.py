"""Finds out how a clip is shown: which way is up, and at what size."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

_Image = npt.NDArray[np.uint8]

# Pixels are at most this many times as wide as high, or as high as wide. The widest in use are those of anamorphic
# lenses and of half pictures, about 3; anything beyond the bound is an error, and pixels then count as square.
MAX_PIXEL_ASPECT = 16


def _unnamed_side_data(cls: type[SideDataType], value: object) -> Any:
    """Return a member for a type of side data that PyAV does not name.

    FFmpeg has more types than PyAV's enumeration, such as those of LCEVC and of the views of a spatial video. PyAV
    looks up the type of everything that is attached to a frame, and without this a single unknown type raises
    ``ValueError`` and makes the display matrix beside it unreadable.
    """
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# ``Enum._missing_`` is the standard library's hook for values without a member.
setattr(SideDataType, "_missing_", classmethod(_unnamed_side_data))  # noqa: B010 (mypy refuses an assignment)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How decoded pictures are turned to be upright.

    Attributes:
        matrix: Display matrix, nine integers ``a b u c d v x y w``: a pixel at (x, y) is shown at
            (a·x + c·y, b·x + d·y). ``None`` if there is none.
    """

    matrix: tuple[int, ...] | None = None

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """Read the display matrix that a frame carries.

        FFmpeg attaches the container's to every frame, before that of an SEI message of H.264 or HEVC: the first holds.
        """
        side_data: Any = frame.side_data  # PyAV's annotation is that of a dictionary
        for data in side_data:
            if data.type is SideDataType.DISPLAYMATRIX:
                return cls(tuple(np.frombuffer(bytes(data), np.int32).tolist()))
        return cls()

    @property
    def rotation(self) -> int:
        """Rotation of the x axis to the nearest multiple of 90°, in degrees clockwise, as FFmpeg reports it."""
        if not self.matrix:
            return 0
        a, b = self.matrix[:2]
        if abs(b) > abs(a):
            return 90 if b > 0 else 270
        return 180 if a < 0 else 0

    def turn_upright(self, image: _Image) -> None:
        """Rotate and mirror a square image in place: uint8 ``(side, side, 3)``."""
        if self.matrix:
            _as_coded(image, self.matrix)[:] = image.copy()


def displayed_size(width: int, height: int, pixel_aspect: Fraction | None, rotation: int) -> tuple[int, int]:
    """Return width and height of a picture as a player shows it.

    A picture whose pixels are not square is enlarged in one direction, never reduced: 720×480 with pixels of 8:9 is
    shown at 720×540, as browsers do.

    Args:
        width: Width of the decoded picture after cropping, in pixels.
        height: Its height.
        pixel_aspect: Width of a pixel divided by its height; ``None`` if unknown.
        rotation: In degrees clockwise: 0, 90, 180 or 270.
    """
    if pixel_aspect and 1 <= pixel_aspect <= MAX_PIXEL_ASPECT:
        width = round(width * pixel_aspect)
    elif pixel_aspect and 1 <= 1 / pixel_aspect <= MAX_PIXEL_ASPECT:
        height = round(height / pixel_aspect)
    return (height, width) if rotation % 180 else (width, height)


def _as_coded(image: _Image, matrix: tuple[int, ...]) -> _Image:
    """Return a view of an upright square image that is rotated and mirrored as the frame is coded."""
    a, b, _, c, d, *_ = matrix
    if abs(b) > abs(a):
        return _flipped(image, d=b, a=c).transpose(1, 0, 2)
    return _flipped(image, d=d, a=a)


def _flipped(image: _Image, *, a: int, d: int) -> _Image:
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
