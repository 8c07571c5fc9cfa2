"""Theora ("Theora Specification", 7.1): an intra frame replaces both frames that later ones refer to."""

from collections.abc import Sequence

from service.video.headers.structure import Structure, VideoPacket

HEADER, INTER = 0x80, 0x40


def read_theora(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the first two bits of each packet."""
    kinds = [memoryview(packet)[0] & (HEADER | INTER) for packet in packets]
    if kinds[0] or max(kinds) & HEADER:  # headers of another stream, joined to the first
        return None
    return Structure(frozenset(number for number, kind in enumerate(kinds) if not kind))
