"""Splits packets of H.264 and HEVC into NAL units, and reads their bits."""

import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from itertools import islice

from service.video.headers.structure import VideoPacket

START_CODE = re.compile(b"\0\0\1")  # twice as fast as ``bytes.find``
ESCAPE = b"\0\0\3"
MAX_UNITS, UNIT_BYTES = 64, 64
"""A packet may have this many NAL units, and one more for each so many bytes. Others are hostile."""
MAX_MESSAGES = 64
"""Messages of supplemental enhancement information in a packet, at most."""
MAX_BYTES = 2048
"""Bytes of a parameter set, at most."""
MAX_SETS = 256
"""Parameter sets of a type, at most: their numbers are below this."""

# Types of supplemental enhancement information (ISO/IEC 23002-7).
RECOVERY_POINT = 6
# Film grain, display orientation, and alternative transfer characteristics: they change how pictures are shown, and
# FFmpeg applies them to later pictures, too.
LASTING = frozenset({19, 47, 147})


class UnclearError(ValueError):
    """The headers do not prove that a sparse decode is right."""


class Bits:
    """Reads a payload from its first bit. Unlike those of ``bits``, reads behind the end raise ``ValueError``.

    Attributes:
        bits: The bits that were not read yet, as a number.
        left: How many they are.
    """

    __slots__ = ("bits", "left")

    def __init__(self, payload: bytes) -> None:
        payload = payload[:MAX_BYTES]
        if ESCAPE in payload:
            payload = payload.replace(ESCAPE, b"\0\0")
        self.bits = int.from_bytes(payload)
        self.left = 8 * len(payload)

    def flag(self) -> bool:
        """u(1): a flag."""
        return bool(self.number(1))

    def number(self, bits: int) -> int:
        """u(n): a number of so many bits."""
        self.left -= bits
        value = self.bits >> self.left
        self.bits &= (1 << self.left) - 1
        return value

    def unsigned(self) -> int:
        """ue(v): an unsigned Exp-Golomb code (ISO/IEC 14496-10, 9.1)."""
        self.left -= 2 * (self.left - self.bits.bit_length()) + 1
        code = self.bits >> self.left
        self.bits &= (1 << self.left) - 1
        return code - 1

    def signed(self) -> int:
        """se(v): a signed Exp-Golomb code."""
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)

    def skip_codes(self, count: int) -> None:
        """Skip Exp-Golomb codes, signed or not."""
        for _ in range(count):
            self.unsigned()


def split(packet: VideoPacket, length_size: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Split a packet into NAL units.

    Args:
        packet: The packet.
        length_size: Bytes of the length before each NAL unit; 0 if start codes separate them.

    Returns:
        The packet's bytes, and where each NAL unit begins and ends in them.

    Raises:
        UnclearError: The packet is damaged, or FFmpeg might split it in another way.
    """
    data = bytes(packet)
    if not length_size:
        return data, split_annex_b(data)
    # FFmpeg takes a packet that begins like this for Annex B, or for the parameter sets of another sample entry.
    if data[0] == 1 or data.startswith(b"\0\0\0\1"):
        raise UnclearError("a packet in another format")
    units: list[tuple[int, int]] = []
    end, size = 0, len(data)
    while end < size:
        start = end + length_size
        end = start + int.from_bytes(data[end:start])
        if not start < end <= size or len(units) > MAX_UNITS + size // UNIT_BYTES:
            raise UnclearError("a damaged packet")
        if START_CODE.search(data, start, end):  # FFmpeg heeds it
            raise UnclearError("a start code within a NAL unit")
        units.append((start, end))
    return data, units


def split_annex_b(data: bytes) -> list[tuple[int, int]]:
    """Return where each NAL unit begins and ends (ISO/IEC 14496-10, Annex B). Zeros may follow it."""
    most = MAX_UNITS + len(data) // UNIT_BYTES
    starts = [match.end() for match in islice(START_CODE.finditer(data), most + 1)]
    if len(starts) > most or (starts and data[: starts[0] - 3].strip(b"\0")):
        raise UnclearError("a damaged packet")
    return list(zip(starts, [start - 3 for start in starts[1:]] + [len(data)], strict=True)) if starts else []


class Recovery(IntEnum):
    """A recovery point: whether pictures are right from there on, or after some more."""

    NONE = 0
    GRADUAL = 1
    AT_ONCE = 2


def find_recovery(payload: bytes, types: list[int]) -> Recovery:
    """Return what recovery point a unit of supplemental enhancement information announces (7.3.2.3.1).

    Args:
        payload: The unit, without its header.
        types: The types of messages in the packet's units before. Receives those of this one.

    Raises:
        UnclearError: A message changes how later pictures are shown, or a packet has too many.
    """
    recovery = Recovery.NONE
    at = 0
    while at + 2 < len(payload):
        numbers = [0, 0]  # type and size
        for place in range(2):
            while payload[at] == 255 and numbers[place] <= len(payload):
                numbers[place] += 255
                at += 1
            numbers[place] += payload[at]
            at += 1
        types.append(numbers[0])
        if numbers[0] == RECOVERY_POINT:  # the first bit of its number of frames is 1 if that is 0
            recovery = Recovery.AT_ONCE if payload[at] >> 7 else Recovery.GRADUAL
        at += numbers[1]
        if len(types) > MAX_MESSAGES:
            raise UnclearError("a damaged packet")
    if not LASTING.isdisjoint(types):
        raise UnclearError("a message that changes how later pictures are shown")
    return recovery


Key = tuple[int, int]
"""The type and the number of a parameter set."""


class ParameterSets:
    """The parameter sets of a stream.

    A decoder that starts at an entry has seen those of the extradata, of runs before, and of the entry. It ignores a
    set that repeats the one before.

    Attributes:
        known: The content of each set.
    """

    def __init__(self, sets: Iterable[tuple[Key, bytes]]) -> None:
        self.known: dict[Key, bytes] = {}
        # The sets in the first packet if they are not all known from the extradata. Then every entry must have the
        # same, whatever runs the decoder has seen.
        self._first: dict[Key, bytes] = {}
        for key, content in sets:
            add_set(self.known, key, content)

    def check(self, sets: Mapping[Key, bytes], *, first: bool) -> bool:
        """Check the sets before a picture. Returns whether decoding can start there.

        Args:
            sets: The sets in the picture's packet.
            first: Whether it is the first packet.

        Raises:
            UnclearError: Sets change in the middle of the stream.
        """
        if sets and any(self.known.get(key) != content for key, content in sets.items()):
            if not first:
                raise UnclearError("parameter sets change")
            self.known |= sets
            self._first = dict(sets)
        return not self._first or sets == self._first


def add_set(sets: dict[Key, bytes], key: Key, content: bytes) -> None:
    """Add a parameter set to others.

    Raises:
        UnclearError: They have another one of this number, or there is no such number.
    """
    if key[1] >= MAX_SETS or sets.setdefault(key, content) != content:
        raise UnclearError("two parameter sets of the same number, or a damaged one")
