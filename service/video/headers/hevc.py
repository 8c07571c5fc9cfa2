"""Reads the headers of HEVC pictures (ISO/IEC 23008-2, 7.3).

Decoding can start at an IDR picture, and at a CRA picture if the pictures shown after it do not refer to those before
it, which their headers tell. Pictures that are shown before a CRA picture and decoded after it may; FFmpeg drops those
(RASL) if decoding starts there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.video.headers.nal import (
    LASTING,
    RECOVERY_POINT,
    Bits,
    ParameterSets,
    UnclearError,
    read_message_types,
    split,
    split_annex_b,
)
from service.video.headers.structure import Structure, VideoPacket

RADL, RASL, BLA, IDR, CRA, VPS, SPS, PPS = (6, 7), (8, 9), (16, 17, 18), (19, 20), 21, 32, 33, 34
SETS, ENDS, MESSAGES = (VPS, SPS, PPS), (36, 37), (39, 40)
SLICES = frozenset({0, 1, 2, 3, 4, 5, *RADL, *RASL, *BLA, *IDR, CRA})
RESERVED_SLICES = frozenset(range(32)) - SLICES
NOT_REFERRED = frozenset({0, 2, 4, 6, 8})  # not by pictures of their own temporal sub-layer
HEADER_BYTES = 64  # of a slice, as far as it is read here
CHROMA_444 = 3
MAX_REFERENCES = 16  # pictures that one picture may keep
MAX_REFERENCE_SETS = 64


def read_hevc(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Return what the headers of the packets prove; see ``Structure``."""
    try:
        return _read(packets, extradata)
    except (ValueError, LookupError):
        return None


def _read(packets: Sequence[VideoPacket], extradata: bytes) -> Structure:
    slices = _SliceReader.open(extradata)
    entries: set[int] = set()
    empty: set[int] = set()
    kinds: list[int] = []
    open_at: tuple[int, int] | None = None  # a CRA packet and its order count, until pictures are shown after it
    for number, packet in enumerate(packets):
        kind, can_start = slices.read_packet(packet, first=not number)
        kinds.append(kind)
        if kind in RASL or kind in RADL:
            continue
        
    return Structure(frozenset(entries), frozenset(empty), skippable=slices.skippable)
