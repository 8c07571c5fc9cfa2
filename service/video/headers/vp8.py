"""VP8 (RFC 6386): a key frame resets all that later frames depend on. Frames without ``show_frame`` are not output."""

from collections.abc import Sequence

from service.video.headers.structure import Structure, VideoPacket


def read_vp8(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the frame tag of each packet (9.1) and the segmentation of key frames (9.3)."""
    entries, empty = set(), set()
    for number, packet in enumerate(packets):
        tag = memoryview(packet)[0]
        if not tag & 0x10:  # show_frame
            empty.add(number)
        elif not tag & 1:  # a key frame
            if _keeps_segments(bytes(memoryview(packet)[:16])):
                return None
            entries.add(number)
    return Structure(frozenset(entries), frozenset(empty)) if 0 in entries else None


def _keeps_segments(data: bytes) -> bool:
    """Return whether a key frame has segments but no map of them: the decoder then takes the last frame's map."""
    coder = _BoolDecoder(data[10:])
    coder.read_flag(), coder.read_flag()  # color_space, clamping_type
    return coder.read_flag() and not coder.read_flag()  # segmentation_enabled, update_mb_segmentation_map


class _BoolDecoder:
    """Decodes the first flags of a partition, all of even probability (RFC 6386, 7.3)."""

    def __init__(self, data: bytes) -> None:
        self._value, self._range, self._left = int.from_bytes(data.ljust(6, b"\0")[:6]), 255, 40

    def read_flag(self) -> bool:
        split = 1 + ((self._range - 1) >> 1)
        flag = self._value >= split << self._left
        if flag:
            self._value -= split << self._left
            self._range -= split
        else:
            self._range = split
        while self._range < 128:
            self._range <<= 1
            self._left -= 1
        return flag
