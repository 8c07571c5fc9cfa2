"""Reads which part of its pictures a container says to show: FFmpeg knows it, but PyAV does not report it.

Matroska and WebM have the elements ``PixelCropTop`` and so on (RFC 9559, 5.1.4.1.28), MP4 and MOV the clean aperture
``clap`` (ISO/IEC 14496-12, 12.1.4). What H.264 and HEVC themselves crop is left to their decoders.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import floor
from typing import BinaryIO

from av.container import InputContainer
from av.video.stream import VideoStream

from service.video.mp4 import Extent, boxes, read, track_fields

# How many boxes or elements inside another are looked at. Headers have a few, and come before thousands of clusters.
MAX_CHILDREN = 200

SEGMENT, TRACKS = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b"
TRACK_TYPE, CODEC_ID, VIDEO = b"\x83", b"\x86", b"\xe0"
PIXEL_WIDTH, PIXEL_HEIGHT = b"\xb0", b"\xba"
CROP_BOTTOM, CROP_TOP, CROP_LEFT, CROP_RIGHT = b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd"
VIDEO_TRACK = 1

FIELDS_OF_SAMPLE_ENTRY = 78  # bytes before the boxes of a visual sample entry

NOTHING: Extent = (0, 0)
_Walk = Callable[[BinaryIO, Extent], Iterator[tuple[bytes, Extent]]]


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of a stream's pictures that is shown, in pixels as coded.

    Attributes:
        left: First column.
        top: First row.
        right: Column after the last.
        bottom: Row after the last.
        pixel_aspect: Width of a pixel divided by its height where FFmpeg's is wrong, because it does not know of the
            crop; otherwise ``None``.
    """

    left: int
    top: int
    right: int
    bottom: int
    pixel_aspect: Fraction | None = None

    def within(self, width: int, height: int) -> tuple[slice, slice] | None:
        """Return the rows and columns that are shown of a decoded picture; ``None`` if that is all of it or nothing.

        The edges are counted from the top left corner, since the decoder may have cut off the same margin before.
        """
        right, bottom = min(self.right, width), min(self.bottom, height)
        if (self.left, self.top, right, bottom) == (0, 0, width, height) or self.left >= right or self.top >= bottom:
            return None
        return slice(self.top, bottom), slice(self.left, right)


def read_crop(file: BinaryIO, container: InputContainer, stream: VideoStream) -> Crop | None:
    """Return the part of a stream's pictures that its container says to show; ``None`` if that is all of them.

    Ignores a part that is empty or larger than the pictures. Leaves the file's position where it was, because FFmpeg
    goes on reading from there.
    """
    position = file.tell()
    whole = 0, file.seek(0, os.SEEK_END)
    crop = None
    if container.format.name.startswith("matroska"):
        crop = _pixel_crop(file, whole, container.streams.video.index(stream))
    elif container.format.name.startswith("mov"):
        crop = _clean_aperture(file, whole, stream.id)
    file.seek(position)
    return crop


def _checked(crop: Crop, width: int, height: int) -> Crop | None:
    """Return a crop of pictures that are declared to have this size; ``None`` if it is not within them, or all."""
    inside = 0 <= crop.left < crop.right <= width and 0 <= crop.top < crop.bottom <= height
    return crop if inside and crop.within(width, height) else None


def _children(walk: _Walk, file: BinaryIO, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    return islice(walk(file, extent), MAX_CHILDREN)


def _first(walk: _Walk, file: BinaryIO, extent: Extent, *path: bytes) -> Extent:
    """Return the content of the first box or element at a path; an empty one if there is none."""
    for name in path:
        extent = next((content for kind, content in _children(walk, file, extent) if kind == name), NOTHING)
    return extent


# -- Matroska ----------------------------------------------------------------------------------------------------------


def _pixel_crop(file: BinaryIO, whole: Extent, number: int) -> Crop | None:
    """Read the crop of a video track. ``number`` counts the tracks of which FFmpeg makes video streams, from 0."""
    videos = []
    for _, track in _children(_elements, file, _first(_elements, file, whole, SEGMENT, TRACKS)):
        fields = dict(_children(_elements, file, track))
        if _number(file, fields, TRACK_TYPE) == VIDEO_TRACK and read(file, fields.get(CODEC_ID, NOTHING), 1) == b"V":
            videos.append(fields.get(VIDEO, NOTHING))
    if number >= len(videos):
        return None
    fields = dict(_children(_elements, file, videos[number]))
    left, top, right, bottom = (_number(file, fields, kind) for kind in (CROP_LEFT, CROP_TOP, CROP_RIGHT, CROP_BOTTOM))
    width, height = _number(file, fields, PIXEL_WIDTH), _number(file, fields, PIXEL_HEIGHT)
    return _checked(Crop(left, top, width - right, height - bottom), width, height)


def _elements(file: BinaryIO, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    """Yield the identifiers of EBML elements (RFC 8794) and where their contents are, up to the first invalid one."""
    start, end = extent
    while start < end:
        head = read(file, (start, end), 12)
        id_bytes = 9 - head[0].bit_length()
        size_bytes = 9 - head[id_bytes].bit_length() if id_bytes < len(head) else 9
        content = start + id_bytes + size_bytes
        if id_bytes > 4 or size_bytes > 8 or content > end:
            return
        unknown = (1 << 7 * size_bytes) - 1  # a live recording's size
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes]) & unknown
        start = end if size == unknown else min(content + size, end)
        yield head[:id_bytes], (content, start)


def _number(file: BinaryIO, fields: dict[bytes, Extent], kind: bytes) -> int:
    """Read an unsigned integer, which is 0 if it is missing."""
    return int.from_bytes(read(file, fields.get(kind, NOTHING), 8))


# -- MP4 ---------------------------------------------------------------------------------------------------------------


def _clean_aperture(file: BinaryIO, whole: Extent, track_id: int) -> Crop | None:
    """Read the clean aperture in the first sample description of a track."""
    for _, track in _children(boxes, file, _first(boxes, file, whole, b"moov")):
        fields = track_fields(read(file, _first(boxes, file, track, b"tkhd"), 96))
        if int.from_bytes(fields[:4]) == track_id:
            start, end = _first(boxes, file, track, b"mdia", b"minf", b"stbl", b"stsd")
            _, entry = next(boxes(file, (start + 8, end)), (b"", NOTHING))
            return _crop_of_entry(file, entry, (int.from_bytes(fields[64:68]), int.from_bytes(fields[68:72])))
    return None


def _crop_of_entry(file: BinaryIO, entry: Extent, track_size: tuple[int, int]) -> Crop | None:
    """Read the clean aperture in a visual sample entry.

    Args:
        file: The file.
        entry: Where the entry is.
        track_size: Width and height that the track is shown at, in units of 1/65536 pixels.
    """
    start, end = entry
    fields = read(file, entry, 28)
    width, height = int.from_bytes(fields[24:26]), int.from_bytes(fields[26:28])
    children = dict(_children(boxes, file, (start + FIELDS_OF_SAMPLE_ENTRY, end)))
    aperture = read(file, children.get(b"clap", NOTHING), 32)
    values = [int.from_bytes(aperture[place : place + 4], signed=True) for place in range(0, 32, 4)]
    if len(aperture) < 32 or min(values[0], values[2], *values[1::2]) <= 0:
        return None
    shown_width, shown_height, right_by, down_by = map(Fraction, values[::2], values[1::2])
    left, top = (width - shown_width) / 2 + right_by, (height - shown_height) / 2 + down_by
    aspect = None
    if b"pasp" not in children and all(track_size) and track_size != (width << 16, height << 16):
        # The track's size is that of the aperture; FFmpeg takes it for that of the whole picture.
        aspect = Fraction(track_size[0], track_size[1]) * shown_height / shown_width
    # Where edges are not whole, FFmpeg rounds them down.
    crop = Crop(floor(left), floor(top), floor(left + shown_width), floor(top + shown_height), aspect)
    return _checked(crop, width, height)
