"""Microsoft's MPEG-4 of before the standard, and Windows Media Video 7 and 8, as FFmpeg's decoders read them.

An I-frame sets all that later frames depend on. Version 3 of MPEG-4 is left out: only the last bits of an I-frame tell
how motion compensation rounds, and an I-frame without them keeps what an earlier one told. Version 1 is not a codec of
FFmpeg's muxers, and hardly any clip has it.
"""

from collections.abc import Sequence

from service.video.headers.structure import Structure, VideoPacket

SKIPPED_ROWS = 3  # so few macroblocks high or wide are no clips


def read_msmpeg4(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the type of MPEG-4 version 2 and WMV 7 frames, their first two bits."""
    entries = frozenset(number for number, packet in enumerate(packets) if not memoryview(packet)[0] >> 6)
    return Structure(entries) if 0 in entries else None


def read_wmv2(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the type of WMV 8 frames, their first bit, and whether they skip whole rows or columns of macroblocks.

    FFmpeg's decoder outputs nothing for a frame that skips all of them. Their number is not known here.
    """
    entries = set()
    for number, packet in enumerate(packets):
        start = int.from_bytes(memoryview(packet)[:2].tobytes().ljust(2, b"\0"))
        if not start >> 15:
            entries.add(number)
        elif start >> 9 & 1 and start >> 8 - SKIPPED_ROWS & 7 == 7:  # after the type and five bits of the quantiser
            return None
    return Structure(frozenset(entries)) if 0 in entries else None
