"""Codecs whose frames stand alone, or, in FFV1, share nothing but the state of the entropy coder."""

from collections.abc import Sequence

from service.video.headers.structure import Structure, VideoPacket


def read_intra(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Return that decoding can start at each packet."""
    if any(packet.has_sidedata("palette") for packet in packets):  # holds for the frames that follow, too
        return None
    return Structure(frozenset(range(len(packets))))


def read_ffv1(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read ``keyframe`` (RFC 9043, 4.4), the first bit that the range coder holds."""
    entries = frozenset(n for n, packet in enumerate(packets) if int.from_bytes(memoryview(packet)[:2]) >= 0x7F80)
    return Structure(entries) if 0 in entries else None
