"""MPEG-1 video (ISO/IEC 11172-2) and MPEG-2 video (ISO/IEC 13818-2).

An I-picture behind a sequence header needs nothing from before: the header also resets the quantiser matrices. What
else the header says may not change: FFmpeg's decoder loses a frame when the size does, and tags frames with the colours
that it met last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.video.headers.structure import Structure, VideoPacket

PICTURE, FIRST_SLICE, SEQUENCE, EXTENSION, GROUP = (b"\0\0\1" + bytes([code]) for code in (0, 1, 0xB3, 0xB5, 0xB8))
I_PICTURE, P_PICTURE, B_PICTURE = 1, 2, 3
PICTURE_CODING = 8  # extension_start_code_identifier
FRAME = 3  # picture_structure
TMPGENC = b"TMPGEXS"  # user data that changes how FFmpeg decodes all pictures that follow


def read_mpeg12(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read what precedes the first slice of each packet."""
    entries, empty = set(), set()
    stream: _Sequence | None = None
    references, closed = 0, False
    for number, packet in enumerate(packets):
        data = bytes(packet)
        slices = data.find(FIRST_SLICE)
        head = data[: max(slices, 0)]
        picture, start, group = head.find(PICTURE), head.find(SEQUENCE), head.find(GROUP)
        kind = head[picture + 5] >> 3 & 7 if 0 <= picture < len(head) - 5 else 0  # picture_coding_type
        if start >= 0:
            sequence = _Sequence.read(head[start : group if group > start else picture])
            stream = stream or sequence
            if sequence != stream:
                return None
        if not stream or not stream.can_read(kind) or not stream.holds_frame(data, picture, slices) or TMPGENC in head:
            return None
        if group >= 0:
            closed = bool(int.from_bytes(head[group + 7 : group + 8]) & 0x40)  # closed_gop
        if kind != B_PICTURE:
            references += 1
        elif references < 2 and not closed:  # refers to a picture before the first, so FFmpeg does not output it
            empty.add(number)
        if kind == I_PICTURE and start >= 0:
            entries.add(number)
    return Structure(frozenset(entries), frozenset(empty)) if 0 in entries else None


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What may not change in sequence headers.

    Attributes:
        picture: The bytes with the size, the shape of pixels and the frame rate.
        extensions: The sequence extension and those that follow; empty in MPEG-1.
    """

    picture: bytes
    extensions: bytes

    @classmethod
    def read(cls, header: bytes) -> "_Sequence":
        extensions = header.find(EXTENSION)
        return cls(header[4:8], header[extensions:] if extensions >= 0 else b"")

    def can_read(self, kind: int) -> bool:
        """Return whether pictures of a kind, with B-pictures only where ``low_delay`` is not set, are known here."""
        if kind == B_PICTURE and self.extensions:
            return len(self.extensions) > 9 and not self.extensions[9] & 0x80
        return kind in {I_PICTURE, P_PICTURE, B_PICTURE}

    def holds_frame(self, data: bytes, picture: int, slices: int) -> bool:
        """Return whether a packet holds a frame: a frame picture or two field pictures."""
        if not self.extensions:
            return True
        extension = data.find(EXTENSION, picture, slices)
        if extension < 0 or data[extension + 4] >> 4 != PICTURE_CODING:
            return False
        return data[extension + 6] & 3 == FRAME or data.count(PICTURE, slices) == 1
