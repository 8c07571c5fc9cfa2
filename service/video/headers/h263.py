"""H.263 (ITU-T H.263), and Sorenson's variant of it in FLV, whose pictures have a shorter header."""

from collections.abc import Sequence

from service.video.headers.bits import Bits
from service.video.headers.structure import Structure, VideoPacket

START_CODE_BITS, START_CODE = 22, 0x20
EXTENDED = 7  # the source format that announces PLUSPTYPE


def read_h263(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read PTYPE of each picture (5.1.3). Pictures with PLUSPTYPE may depend on the options of earlier ones."""
    entries = set()
    for number, packet in enumerate(packets):
        bits = Bits(memoryview(packet)[:8])
        if bits.read(START_CODE_BITS) != START_CODE:
            return None
        bits.skip(8 + 5)  # TR, and two bits with fixed values and three without effect
        if bits.read(3) == EXTENDED:
            return None
        if not bits.read(1):  # INTRA
            entries.add(number)
    return Structure(frozenset(entries)) if 0 in entries else None


def read_flv1(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the picture's type, which follows its size."""
    entries = set()
    for number, packet in enumerate(packets):
        bits = Bits(memoryview(packet)[:16])
        bits.skip(17 + 5 + 8)  # start code, version, number
        bits.skip({0: 16, 1: 32}.get(bits.read(3), 0))  # the size, if it is not one of the usual
        if not bits.read(2):
            entries.add(number)
    return Structure(frozenset(entries)) if 0 in entries else None
