"""Adds boxes to MP4 files and elements to Matroska files, which FFmpeg's muxers do not write."""

import struct
from collections.abc import Iterator, Sequence

SEGMENT, TRACKS, TRACK_ENTRY, VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT = b"\x54\xb0", b"\x54\xba", b"\x54\xb2"
CROP_BOTTOM, CROP_TOP, CROP_LEFT, CROP_RIGHT = b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd"


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def clap(*fractions: tuple[int, int]) -> bytes:
    """A clean aperture: its width and height, and by how much its centre is right of and below the picture's."""
    return box(b"clap", b"".join(struct.pack(">ii", *fraction) for fraction in fractions))


def with_box(data: bytes, added: bytes, *path: bytes) -> bytes:
    """Add a box at the end of every box at a path. No box with data may come after them."""
    if not path:
        return data + added
    changed, start = b"", 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if kind == path[0]:
            fields = content + (8 if kind == b"stsd" else 0)
            changed += box(kind, data[content:fields] + with_box(data[fields : start + size], added, *path[1:]))
        else:
            changed += data[start : start + size]
        start += size
    return changed


def in_sample_entry(data: bytes, added: bytes, kind: bytes = b"avc1") -> bytes:
    """Add a box to the sample descriptions of one kind in an MP4 file."""
    return with_box(data, added, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", kind)


def element(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">Q", 1 << 56 | len(content)) + content


def number(kind: bytes, value: int) -> bytes:
    return element(kind, struct.pack(">Q", value))


def in_video_track(data: bytes, added: bytes, without: Sequence[bytes] = (), track: int = 0) -> bytes:
    """Add elements to the description of a video track, and drop others, in a Matroska file written for streaming."""
    changed = b""
    for kind, content in _elements(data):
        if kind == SEGMENT:
            changed += kind + b"\x01" + b"\xff" * 7 + in_video_track(content, added, without, track)
        elif kind == TRACKS:
            entries = [*_elements(content)]
            place = [place for place, (entry, _) in enumerate(entries) if entry == TRACK_ENTRY][track]
            entries[place] = TRACK_ENTRY, in_video_track(entries[place][1], added, without)
            changed += element(kind, b"".join(element(*entry) for entry in entries))
        elif kind == VIDEO:
            kept = (element(*field) for field in _elements(content) if field[0] not in without)
            changed += element(kind, b"".join(kept) + added)
        else:
            changed += element(kind, content)
    return changed


def with_track_of_sound(data: bytes) -> bytes:
    """Add the description of a track of sound before the others, in a Matroska file written for streaming."""
    fields = number(b"\xd7", 9) + number(b"\x73\xc5", 9) + number(b"\x83", 2) + element(b"\x86", b"A_PCM/INT/LIT")
    entry = element(TRACK_ENTRY, fields + element(b"\xe1", b""))
    start = data.index(TRACKS + b"\x01")
    size = int.from_bytes(data[start + 5 : start + 12])
    return data[:start] + element(TRACKS, entry + data[start + 12 : start + 12 + size]) + data[start + 12 + size :]


def _elements(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(data):
        id_bytes = 9 - data[start].bit_length()
        size_bytes = 9 - data[start + id_bytes].bit_length()
        content = start + id_bytes + size_bytes
        unknown = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(data[start + id_bytes : content]) & unknown
        end = len(data) if size == unknown else content + size
        yield data[start : start + id_bytes], data[content:end]
        start = end
