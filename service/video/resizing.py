"""Converts a decoded frame of any size and pixel format to the small RGB image that the network needs."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation, VideoReformatter

from service.errors import CorruptClip
from service.video.cropping import Crop
from service.video.display import Orientation, displayed_size
from service.video.tonemapping import HDR_TRANSFERS, tone_map

Image = npt.NDArray[np.uint8]

IMAGE_SIZE = 224
RESIZE_RULE = "stretch-bilinear"
# Raised when images change, so that older stored features expire. 2: converted to planes first. 3: HD without a colour
# matrix is BT.709, HDR is tone-mapped, containers' cropping is followed, interlaced frames are scaled as a whole.
RESIZE_REVISION = 3
# FFmpeg's conversion of YUV to packed 24-bit RGB is plain C, rounds down, and is off by 1.3 of 255 on average. Its
# conversion to planar RGB takes a third to half of the time and is off by 0.3. (The reference is bilinear resizing and
# BT.601 in floating point.) Packing the planes changes no value.
PLANAR_FORMAT = "gbrp"
PACKED_FORMAT = "rgb24"
HDR_FORMAT = "gbrp12le"

# FFmpeg's numbers of colour matrices (ITU-T H.273, table 4), and those that its scaler converts from.
BT709, BT470BG, BT2020 = 1, 5, 9
KNOWN_MATRICES = frozenset({BT709, 4, BT470BG, 6, 7, BT2020})


@dataclass(slots=True)
class Resizer:
    """Converts and resizes the frames of a clip. Use one for all of them: a new one for each takes eight times as long.

    Attributes:
        crop: The part of the pictures that the container says to show; ``None`` for all.
        pixel_aspect: Width of a pixel divided by its height, as FFmpeg reports it; ``None`` if unknown.
        width: Width of the clip as displayed, in pixels: cropped, with square pixels, upright.
        height: Height of the clip as displayed.
        coded_width: Width of the first decoded picture, in pixels, before all that.
        coded_height: Height of the first decoded picture.
        orientation: The clip's orientation.
    """

    crop: Crop | None = None
    pixel_aspect: Fraction | None = None
    width: int = 0
    height: int = 0
    coded_width: int = 0
    coded_height: int = 0
    orientation: Orientation = field(default_factory=Orientation)
    _scaler: VideoReformatter = field(default_factory=VideoReformatter)
    _packer: VideoReformatter = field(default_factory=VideoReformatter)
    _converter: VideoReformatter = field(default_factory=VideoReformatter)

    @property
    def rotation(self) -> int:
        """Rotation that ``turn_upright`` applies, in degrees clockwise: 0, 90, 180 or 270.

        A mirrored frame is first flipped top to bottom, then rotated.
        """
        return self.orientation.rotation

    def look_at_first(self, frame: VideoFrame) -> None:
        """Take size and orientation of the clip from the first frame that is shown.

        One orientation holds for the whole clip, even if later frames carry other ones.
        """
        self.orientation = Orientation.of(frame)
        self.coded_width, self.coded_height = width, height = frame.width, frame.height
        part = self.crop and self.crop.within(width, height)
        if part:
            height, width = (edges.stop - edges.start for edges in part)
        aspect = (self.crop and self.crop.pixel_aspect) or self.pixel_aspect
        self.width, self.height = displayed_size(width, height, aspect, self.rotation)

    def resize(self, frame: VideoFrame, into: Image) -> None:
        """Stretch what is shown of a frame bilinearly to 224×224 and convert it to RGB without alpha.

        Args:
            frame: The decoded frame. Its colour tags are corrected.
            into: Receives the image, not yet turned upright: uint8 ``(224, 224, 3)``.

        Raises:
            CorruptClip: The frame's pixel format cannot be converted.
        """
        correct_colour_tags(frame)
        is_hdr = frame.color_trc in HDR_TRANSFERS
        planar = HDR_FORMAT if is_hdr else PLANAR_FORMAT
        try:
            shown = _as_progressive(frame) if frame.interlaced_frame else frame
            if self.crop:
                shown = self._cropped(shown, planar)
            small = self._scaler.reformat(
                shown, IMAGE_SIZE, IMAGE_SIZE, planar, interpolation=Interpolation.BILINEAR, threads=1
            )
            if is_hdr:
                green, blue, red = (_pixels(plane, np.uint16) for plane in small.planes)
                mapped = tone_map(np.stack([red, green, blue]), frame.color_trc, frame.color_primaries)
                into[:] = mapped.transpose(1, 2, 0)
                return
            packed = self._packer.reformat(small, format=PACKED_FORMAT, threads=1)
        except av.error.FFmpegError as error:
            raise CorruptClip(f"frames in the pixel format {frame.format.name} cannot be converted to RGB") from error
        rows = np.frombuffer(memoryview(packed.planes[0]), np.uint8).reshape(IMAGE_SIZE, -1)
        into[:] = rows[:, : 3 * IMAGE_SIZE].reshape(IMAGE_SIZE, IMAGE_SIZE, 3)

    def turn_upright(self, image: Image) -> None:
        """Rotate and mirror a resized image in place, as ``look_at_first`` found: uint8 ``(224, 224, 3)``."""
        self.orientation.turn_upright(image)

    def _cropped(self, frame: VideoFrame, planar: str) -> VideoFrame:
        """Return what is shown of a frame, as planar RGB so that any pixel can be the first, or the frame itself."""
        part = self.crop and self.crop.within(frame.width, frame.height)
        if not part:
            return frame
        rows, columns = part
        whole = self._converter.reformat(frame, format=planar, interpolation=Interpolation.BILINEAR, threads=1)
        cropped = VideoFrame(columns.stop - columns.start, rows.stop - rows.start, planar)
        dtype = np.uint16 if planar == HDR_FORMAT else np.uint8
        for source, target in zip(whole.planes, cropped.planes, strict=True):
            _pixels(target, dtype)[:] = _pixels(source, dtype)[part]
        return cropped


def correct_colour_tags(frame: VideoFrame) -> None:
    """Replace colour tags of a frame that FFmpeg's scaler refuses or takes for BT.601.

    A missing or unknown matrix is replaced as players do: by BT.2020's where primaries or transfer are those of wide
    colour or HDR, else by BT.709's for HD and BT.601's for SD, which are told apart as mpv does. An unknown range
    counts as none.
    """
    is_hdr = frame.color_trc in HDR_TRANSFERS
    if frame.colorspace not in KNOWN_MATRICES:
        is_wide = is_hdr or frame.color_primaries == ColorPrimaries.BT2020
        is_hd = frame.width >= 1280 or frame.height > 576
        frame.colorspace = BT2020 if is_wide else BT709 if is_hd else BT470BG
    if frame.color_range >= ColorRange.NB:
        frame.color_range = ColorRange.UNSPECIFIED
    if not is_hdr:  # transfer and primaries play no part, but with PyAV 17 the scaler refuses some
        frame.color_trc, frame.color_primaries = ColorTrc.UNSPECIFIED, ColorPrimaries.UNSPECIFIED
    elif frame.color_primaries != ColorPrimaries.BT709:
        frame.color_primaries = ColorPrimaries.BT2020


def _as_progressive(frame: VideoFrame) -> VideoFrame:
    """Return a copy of a frame that is not flagged as interlaced.

    FFmpeg's scaler reduces the two fields of a flagged frame each on its own and leaves their lines in turn. This frays
    the edges of all that moves, and of everything in progressive film that is only flagged, as broadcasts are.
    """
    copy = VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows, into = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1) for plane in (source, target)
        )
        length = min(rows.shape[1], into.shape[1])
        into[:, :length] = rows[:, :length]
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    copy.color_trc, copy.color_primaries = frame.color_trc, frame.color_primaries
    return copy


def _pixels(plane: VideoPlane, dtype: type[np.uint8 | np.uint16]) -> npt.NDArray[Any]:
    """Return a view of a plane's pixels: ``(height, width)``."""
    return np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]
