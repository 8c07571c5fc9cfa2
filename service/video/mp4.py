"""Reads the top-level boxes of an MP4 or MOV file (ISO/IEC 14496-12) for facts that FFmpeg does not report.

FFmpeg opens a still image of this family (AVIF, HEIC) as a clip of one frame, and an encrypted track as a plain one.
"""

import os
from typing import BinaryIO

# Brands of still images and image sequences: AVIF, HEIC, and MIAF, which both may use.
IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# The sample entry of an encrypted track: its type, then six reserved bytes that are zero.
ENCRYPTED_SAMPLES = b"encv" + bytes(6)
# A file has a few top-level boxes before its movie header. A fragmented file has thousands, but all of them after it.
MAX_BOXES = 1000


def is_image(file: BinaryIO) -> bool:
    """Return whether the file is an image: its brand says so, or it has items (``meta``) but no movie (``moov``)."""
    boxes = _top_level_boxes(file)
    brand = _content(file, boxes[b"ftyp"])[:4] if b"ftyp" in boxes else b""
    return brand in IMAGE_BRANDS or (b"meta" in boxes and b"moov" not in boxes)


def is_encrypted(file: BinaryIO) -> bool:
    """Return whether a video track of the file is encrypted (ISO/IEC 23001-7)."""
    boxes = _top_level_boxes(file)
    return b"moov" in boxes and ENCRYPTED_SAMPLES in _content(file, boxes[b"moov"])


def _top_level_boxes(file: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Find the first box of each type.

    Returns:
        The offsets at which each box's content begins and ends, up to the first box whose size is invalid.
    """
    boxes: dict[bytes, tuple[int, int]] = {}
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
            break
        boxes.setdefault(kind, (content, min(start + size, end)))
        start += size
        if start >= end:
            break
    return boxes


def _content(file: BinaryIO, extent: tuple[int, int]) -> bytes:
    start, end = extent
    file.seek(start)
    return file.read(end - start)
