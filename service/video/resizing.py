"""Converts a decoded frame of any size and pixel format to the small upright RGB image that the network needs."""

from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from service.errors import CorruptClip

Image = npt.NDArray[np.uint8]

IMAGE_SIZE = 224
RESIZE_RULE = "stretch-bilinear"
# Raised when images change, so that older stored features expire. 2: converted to planes first.
RESIZE_REVISION = 2
# FFmpeg's conversion of YUV to packed 24-bit RGB is plain C, rounds down, and is off by 1.3 of 255 on average. Its
# conversion to planar RGB takes a third to half of the time and is off by 0.3. (The reference is bilinear resizing and
# BT.601 in floating point.) Packing the planes changes no value.
PLANAR_FORMAT = "gbrp"
PACKED_FORMAT = "rgb24"


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


@dataclass(slots=True)
class Resizer:
    """Converts and resizes frames. Use one for all frames of a clip: a new one for each takes eight times as long.

    Attributes:
        scaler: Resizes a frame and converts it to planar RGB.
        packer: Converts the result to packed RGB.
        width: Width of the first frame as coded, in pixels.
        height: Height of the first frame as coded, in pixels.
        rotation: Rotation that ``turn_upright`` applies, in degrees clockwise: 0, 90, 180 or 270. A mirrored frame is
            first flipped top to bottom, then rotated.
    """

    scaler: VideoReformatter = field(default_factory=VideoReformatter)
    packer: VideoReformatter = field(default_factory=VideoReformatter)
    width: int = 0
    height: int = 0
    rotation: int = 0
    _matrix: tuple[int, ...] | None = None

    def look_at_first(self, frame: VideoFrame) -> None:
        """Take size and orientation of the clip from the first frame that is shown.

        One orientation holds for the whole clip, even if later frames carry other ones.
        """
        self.width, self.height = frame.width, frame.height
        self._matrix = _display_matrix(frame)
        self.rotation = _rotation(self._matrix) if self._matrix else 0

    def resize(self, frame: VideoFrame, into: Image) -> None:
        """Stretch a frame bilinearly to 224×224 and convert it to RGB without alpha.

        Args:
            frame: The decoded frame.
            into: Receives the image, not yet turned upright: uint8 ``(224, 224, 3)``.

        Raises:
            CorruptClip: The frame's pixel format cannot be converted.
        """
        try:
            small = self.scaler.reformat(
                frame, IMAGE_SIZE, IMAGE_SIZE, PLANAR_FORMAT, interpolation=Interpolation.BILINEAR, threads=1
            )
            packed = self.packer.reformat(small, format=PACKED_FORMAT, threads=1)
        except av.error.FFmpegError as error:
            raise CorruptClip(f"frames in the pixel format {frame.format.name} cannot be converted to RGB") from error
        rows = np.frombuffer(memoryview(packed.planes[0]), np.uint8).reshape(IMAGE_SIZE, -1)
        into[:] = rows[:, : 3 * IMAGE_SIZE].reshape(IMAGE_SIZE, IMAGE_SIZE, 3)

    def turn_upright(self, image: Image) -> None:
        """Rotate and mirror a resized image in place, as ``look_at_first`` found: uint8 ``(224, 224, 3)``."""
        if self._matrix:
            _as_coded(image, self._matrix)[:] = image.copy()


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """Return the frame's display matrix: nine integers ``a b u c d v x y w``; ``None`` if it has none.

    A pixel at (x, y) is shown at (a·x + c·y, b·x + d·y).
    """
    if not frame.side_data:  # looking up a missing type is slow in PyAV
        return None
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else tuple(np.frombuffer(bytes(matrix), np.int32).tolist())


def _rotation(matrix: tuple[int, ...]) -> int:
    """Return the rotation of the x axis, as FFmpeg reports it, to the nearest multiple of 90°."""
    a, b = matrix[:2]
    if abs(b) > abs(a):
        return 90 if b > 0 else 270
    return 180 if a < 0 else 0


def _as_coded(image: Image, matrix: tuple[int, ...]) -> Image:
    """Return a view of an upright square image that is rotated and mirrored as the frame is coded."""
    a, b, _, c, d, *_ = matrix
    if abs(b) > abs(a):
        return _flipped(image, d=b, a=c).transpose(1, 0, 2)
    return _flipped(image, d=d, a=a)


def _flipped(image: Image, *, a: int, d: int) -> Image:
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
