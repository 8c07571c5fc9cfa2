"""Reads boxes of an MP4 or MOV file (ISO/IEC 14496-12) for facts that FFmpeg or PyAV does not report.

FFmpeg opens a still image of this family (AVIF, HEIC) as a clip of one frame, and an encrypted track as a plain one.
PyAV does not give access to the configuration of Dolby Vision.
"""

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from service.video import dolby_vision

# Types of top-level boxes that tell the family apart from other files: those that a file may begin with, and those that
# follow boxes which only a vendor knows.
KNOWN_BOXES = frozenset(
    b"ftyp styp moov moof mdat sidx ssix emsg prft meta free skip wide pnot pict udta uuid junk".split()
)
# Brands of still images and image sequences: AVIF, HEIC, MIAF, which both may use, JPEG 2000 and JPEG XL.
IMAGE_BRANDS = frozenset(b"avif avis heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()) | {
    b"jp2 ",
    b"jpx ",
    b"jxl ",
}
FRAGMENT_BOXES = frozenset(b"styp sidx moof".split())
# The sample entry of an encrypted track: its type, then six reserved bytes that are zero.
ENCRYPTED_SAMPLES = b"encv" + bytes(6)
# A file has a few top-level boxes before its movie header. A fragmented file has thousands, but all of them after it.
MAX_BOXES = 1000

Extent = tuple[int, int]
"""Where the content of a box begins and ends in the file."""


@dataclass(frozen=True, slots=True)
class Mp4:
    """The top-level boxes of a file.

    Attributes:
        boxes: The types of the boxes.
        brand: The major brand (``ftyp``); empty if there is none.
        movie: The content of the movie header (``moov``); empty if there is none.
    """

    boxes: frozenset[bytes]
    brand: bytes
    movie: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> "Mp4 | None":
        """Read the boxes of a file; ``None`` if it is of another family."""
        first: dict[bytes, Extent] = {}
        for kind, content in boxes(file, (0, file.seek(0, os.SEEK_END))):
            first.setdefault(kind, content)
        if first.keys().isdisjoint(KNOWN_BOXES):
            return None
        brand, movie = (read(file, first[kind]) if kind in first else b"" for kind in (b"ftyp", b"moov"))
        return cls(frozenset(first), brand[:4], movie)

    @property
    def is_image(self) -> bool:
        """Whether the file is an image: its brand says so, or it has items (``meta``) but no movie (``moov``)."""
        return self.brand in IMAGE_BRANDS or (b"meta" in self.boxes and b"moov" not in self.boxes)

    @property
    def is_fragment(self) -> bool:
        """Whether the file is one of the fragments of a movie, without the movie header that comes before them."""
        return b"moov" not in self.boxes and not self.boxes.isdisjoint(FRAGMENT_BOXES)

    @property
    def is_encrypted(self) -> bool:
        """Whether a video track is encrypted (ISO/IEC 23001-7)."""
        return ENCRYPTED_SAMPLES in self.movie

    def tracks_without_base_layer(self) -> frozenset[int]:
        """Return the identifiers of the tracks of Dolby Vision that have no plain base layer."""
        found = boxes(io.BytesIO(self.movie), (0, len(self.movie)))
        tracks = (self.movie[slice(*content)] for kind, content in found if kind == b"trak")
        return frozenset(_track_id(track) for track in tracks if not dolby_vision.is_plain_track(track))


def boxes(file: BinaryIO, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    """Yield the type of each box and the extent of its content, up to the first box whose size is invalid."""
    start, end = extent
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        header = read(file, (start, end), 16)
        size, kind, content = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:  # a 64-bit size follows
            size, content = int.from_bytes(header[8:]), start + 16
        elif size == 0:  # the box extends to the end of the file
            size = end - start
        start = min(start + size, end)
        if content > start:
            return
        yield kind, (content, start)


def read(file: BinaryIO, extent: Extent, most: int = sys.maxsize) -> bytes:
    """Read a content, or as much of its beginning as ``most`` bytes."""
    start, end = extent
    file.seek(start)
    return file.read(min(end - start, most))


def track_fields(header: bytes) -> bytes:
    """Return what a track header (``tkhd``) holds from the track's identifier on."""
    return header[20:] if header[:1] == b"\1" else header[12:]  # version 1 has 64-bit times before it


def _track_id(track: bytes) -> int:
    """Return a track's identifier; 0 if it has no header."""
    found = (track[slice(*content)] for kind, content in boxes(io.BytesIO(track), (0, len(track))) if kind == b"tkhd")
    return int.from_bytes(track_fields(next(found, b""))[:4])
