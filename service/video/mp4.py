"""Reads boxes of an MP4 or MOV file (ISO/IEC 14496-12) for facts that FFmpeg or PyAV does not report.

FFmpeg opens a still image of this family (AVIF, HEIC) as a clip of one frame, and an encrypted track as a plain one.
PyAV does not give access to the configuration of Dolby Vision.
"""

import io
import os
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
        first: dict[bytes, tuple[int, int]] = {}
        for kind, start, end in _boxes(file):
            first.setdefault(kind, (start, end))
        if first.keys().isdisjoint(KNOWN_BOXES):
            return None
        brand, movie = (_content(file, *first[kind]) if kind in first else b"" for kind in (b"ftyp", b"moov"))
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
        tracks: set[int] = set()
        for kind, start, end in _boxes(io.BytesIO(self.movie)):
            track = self.movie[start:end]
            if kind == b"trak" and not dolby_vision.is_plain_track(track):
                tracks.add(_track_id(track))
        return frozenset(tracks)


def _track_id(track: bytes) -> int:
    """Return the identifier in a track's header; 0 if there is none."""
    for kind, start, _ in _boxes(io.BytesIO(track)):
        if kind == b"tkhd":
            offset = start + (20 if track[start : start + 1] == b"\1" else 12)  # version 1 has 64-bit times before it
            return int.from_bytes(track[offset : offset + 4])
    return 0


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box and where its content begins and ends, up to the first box whose size is invalid."""
    end = file.seek(0, os.SEEK_END)
    start = 0
    for _ in range(MAX_BOXES):
        file.seek(start)
        header = file.read(16)
        size, kind, content = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:  # a 64-bit size follows
            size, content = int.from_bytes(header[8:]), start + 16
        elif size == 0:  # the box extends to the end of the file
            size = end - start
        if len(kind) < 4 or start + size < content:
            return
        yield kind, content, min(start + size, end)
        start += size
        if start >= end:
            return


def _content(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
