"""The outermost boxes of a file in MP4's family (ISO/IEC 14496-12), where it says what FFmpeg does not pass on.

FFmpeg shows a still image of that family (AVIF, HEIC) as a clip of one frame, and an encrypted track as a plain one.
"""

import os
from typing import BinaryIO

# Brands of still images and of image sequences: AVIF; HEIC; and MIAF, which both may call themselves.
IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# An encrypted track's sample entry: its type, then six bytes that are reserved and zero.
ENCRYPTED_SAMPLES = b"encv" + bytes(6)
# A file has a few outermost boxes before its movie header; a fragmented one thousands, all of them behind it.
MOST_BOXES = 1000


def is_image(file: BinaryIO) -> bool:
    """Whether the file is an image: by its brand, or because it describes items (`meta`) and no movie (`moov`)."""
    boxes = _outermost(file)
    brand = _content(file, boxes[b"ftyp"])[:4] if b"ftyp" in boxes else b""
    return brand in IMAGE_BRANDS or (b"meta" in boxes and b"moov" not in boxes)


def is_encrypted(file: BinaryIO) -> bool:
    """Whether a video track of the file is encrypted (ISO/IEC 23001-7)."""
    boxes = _outermost(file)
    return b"moov" in boxes and ENCRYPTED_SAMPLES in _content(file, boxes[b"moov"])


def _outermost(file: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Where the content of the first box of each type begins and ends, as far as the sizes make sense."""
    boxes: dict[bytes, tuple[int, int]] = {}
    end = file.seek(0, os.SEEK_END)
    start = 0
    for _ in range(MOST_BOXES):
        file.seek(start)
        header = file.read(16)
        size, kind, content = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:  # a longer size follows
            size, content = int.from_bytes(header[8:]), start + 16
        elif size == 0:  # up to the end
            size = end - start
        if len(kind) < 4 or start + size < content:
            break
        boxes.setdefault(kind, (content, min(start + size, end)))
        start += size
        if start >= end:
            break
    return boxes


def _content(file: BinaryIO, place: tuple[int, int]) -> bytes:
    start, end = place
    file.seek(start)
    return file.read(end - start)
