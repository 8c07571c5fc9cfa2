"""Reads the headers of H.264 pictures (ISO/IEC 14496-10, 7.3).

Decoding can start at an IDR picture: no later picture refers to an earlier one. A recovery point only promises that,
and some encoders promise it wrongly. A broadcast that was cut may begin with one.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.video.headers.nal import (
    Bits,
    Key,
    ParameterSets,
    Recovery,
    UnclearError,
    add_set,
    find_recovery,
    split,
    split_annex_b,
)
from service.video.headers.structure import Structure, VideoPacket

# Types of NAL units (table 7-1).
IDR, SEI, SPS, PPS = 5, 6, 7, 8
SLICES, PARTITIONS, SETS = frozenset({1, 5}), frozenset({2, 3, 4}), frozenset({7, 8})
HEADER_BYTES = 20  # of a slice, as far as it is read here
HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
SLICE_TYPES = frozenset({0, 1, 2, 5, 6, 7})  # P, B and I
CHROMA_444 = 3
MAX_DELAY = 15  # of frames: FFmpeg's decoder holds back no more
MAX_BITS = 16  # of a frame's number, and of an order count
EXTENDED_RATIO = 255

# FFmpeg imitates the faults of old versions of x264, which it knows by a message in the first packet.
X264_VERSION = re.compile(rb"x264 - core (\d{1,9})")
FIRST_RIGHT_VERSION, FIRST_RIGHT_444_VERSION = 34, 151


def read_h264(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Return what the headers of the packets prove; see ``Structure``."""
    try:
        return _read(packets, extradata)
    except (ValueError, LookupError):
        return None


def _read(packets: Sequence[VideoPacket], extradata: bytes) -> Structure:
    slices = _SliceReader.open(extradata)
    # PyAV does not tell by how many frames a decoder reorders.
    order = _Order(delay=1 if packets[0].stream.codec_context.has_b_frames else 0)
    entries: set[int] = set()
    empty: set[int] = set()
    first: _Picture | None = None  # the first field of a frame
    has_fields, latest = False, -1
    for number, packet in enumerate(packets):
        pictures, can_start = slices.read_packet(packet, first=not number)
        for picture in pictures:
            order.follow(picture, second=first is not None)
            if first:
                picture.complete(first)
                if latest != number:
                    empty.add(number)
            elif latest == number or number in empty:
                raise UnclearError("several frames in a packet")
            else:
                latest = number
                if can_start and (picture.idr or (not number and picture.is_recovered)):
                    entries.add(number)
            has_fields |= picture.parity is not None
            first = None if first or picture.parity is None else picture
            if not first and not order.add(picture):
                empty.add(latest)
    if first or 0 not in entries:
        raise UnclearError("a field without its partner, or a start in the middle of a group")
    if slices.is_faulty(bytes(packets[0])):
        entries = {0}
    return Structure(frozenset(entries), frozenset(empty), skippable=not has_fields)


@dataclass(slots=True)
class _Picture:
    """A frame or a field, as its first slice describes it.

    Attributes:
        sequence: Its sequence parameter set.
        idr: Whether it is an IDR picture.
        recovery: What recovery point is announced before it.
        reference: Whether later pictures may refer to it.
        number: Its ``frame_num``.
        parity: 0 for a top field, 1 for a bottom field, ``None`` for a frame.
        order: Its place in the order in which pictures are shown: first the low bits, then all.
        bottom: How much later than a frame's top field its bottom field is shown.
    """

    sequence: "_Sequence"
    idr: bool
    recovery: Recovery
    reference: bool
    number: int
    parity: int | None = None
    order: int = 0
    bottom: int = 0

    @property
    def is_recovered(self) -> bool:
        """Whether FFmpeg shows it, and what is shown after it, if decoding starts here."""
        return self.recovery is Recovery.AT_ONCE and self.reference and self.parity is None

    def complete(self, first: "_Picture") -> None:
        """Make this the second field of a frame, on the conditions of FFmpeg's decoder.

        Raises:
            UnclearError: The two fields do not belong together.
        """
        pair = (first.parity, self.parity) in {(0, 1), (1, 0)}
        if not pair or self.idr or (self.number, self.reference) != (first.number, first.reference):
            raise UnclearError("a field without its partner")
        self.order = min(first.order, self.order)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What is needed of a sequence parameter set (7.3.2.1.1)."""

    chroma: int
    separate_planes: bool
    number_bits: int
    order_bits: int  # 0 if frames are shown in the order in which they are decoded
    frames_only: bool
    delay: int  # how many frames precede a frame and are shown after it, at most; 0 if that is not said

    @classmethod
    def read(cls, content: bytes) -> "_Sequence":
        bits = Bits(content[3:])
        bits.unsigned()
        chroma, separate_planes = 1, False
        if content[0] in HIGH_PROFILES:
            chroma = bits.unsigned()
            separate_planes = chroma == CHROMA_444 and bits.flag()
            bits.skip_codes(2)
            bits.flag()
            if bits.flag():
                for place in range(12 if chroma == CHROMA_444 else 8):
                    if bits.flag():
                        _skip_scaling_list(bits, 16 if place < 6 else 64)
        number_bits = bits.unsigned() + 4
        order_type = bits.unsigned()
        if order_type == 1:
            raise UnclearError("a cycle of order counts")
        order_bits = 0 if order_type else bits.unsigned() + 4
        bits.unsigned()
        bits.flag()
        bits.skip_codes(2)
        if max(number_bits, order_bits) > MAX_BITS:
            raise UnclearError("a damaged parameter set")
        frames_only = bits.flag()
        bits.number(1 if frames_only else 2)
        if bits.flag():
            bits.skip_codes(4)
        delay = _read_delay(bits) if bits.flag() else 0
        return cls(chroma, separate_planes, number_bits, order_bits, frames_only, delay)


def _read_delay(bits: Bits) -> int:
    """Read ``max_num_reorder_frames`` of the video usability information (E.1.1)."""
    if bits.flag() and bits.number(8) == EXTENDED_RATIO:
        bits.number(32)
    if bits.flag():
        bits.flag()
    if bits.flag():
        bits.number(4)
        if bits.flag():
            bits.number(24)
    if bits.flag():
        bits.skip_codes(2)
    if bits.flag():
        bits.number(65)
    buffered = False
    for _ in range(2):
        if bits.flag():
            buffered = True
            schedules = bits.unsigned() + 1
            bits.number(8)
            for _ in range(min(schedules, 32)):
                bits.skip_codes(2)
                bits.flag()
            bits.number(20)
    bits.number(2 if buffered else 1)
    if not bits.flag():
        return 0
    bits.flag()
    bits.skip_codes(4)
    return min(bits.unsigned(), MAX_DELAY)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    scale = 8
    for _ in range(size):
        scale = (scale + bits.signed()) % 256
        if not scale:
            return


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What is needed of a picture parameter set (7.3.2.2)."""

    sequence: int
    has_bottom: bool

    @classmethod
    def read(cls, content: bytes) -> "_Parameters":
        bits = Bits(content)
        bits.unsigned()
        sequence = bits.unsigned()
        bits.flag()
        has_bottom = bits.flag()
        if bits.unsigned():
            raise UnclearError("slice groups")
        bits.skip_codes(2)
        bits.number(3)
        bits.skip_codes(3)
        bits.number(2)
        if bits.flag():
            raise UnclearError("redundant pictures")
        return cls(sequence, has_bottom)


@dataclass(slots=True)
class _SliceReader:
    """Reads the first slice of each picture.

    Attributes:
        length_size: Bytes of the length before each NAL unit.
        sets: The parameter sets.
        parameters: Those that slices named, by number.
    """

    length_size: int
    sets: ParameterSets
    parameters: dict[int, tuple[_Parameters, _Sequence]] = field(default_factory=dict)

    @classmethod
    def open(cls, extradata: bytes) -> "_SliceReader":
        length_size, units = _read_extradata(extradata)
        return cls(length_size, ParameterSets(_read_set(unit) for unit in units if unit[0] & 31 in SETS))

    def read_packet(self, packet: VideoPacket, *, first: bool) -> tuple[list[_Picture], bool]:
        """Return the pictures of a packet, and whether it holds the parameter sets that a decoder might lack."""
        if packet.is_corrupt:
            raise UnclearError("a damaged packet")
        data, units = split(packet, self.length_size)
        pictures: list[_Picture] = []
        sets: dict[Key, bytes] = {}
        kinds: set[int] = set()
        messages: list[int] = []
        recovery, can_start = Recovery.NONE, False
        for start, end in units:
            head = data[start]
            kind = head & 31
            if kind in SLICES:
                if not kinds:
                    can_start = self.sets.check(sets, first=first)
                kinds.add(head)
                if not pictures or data[start + 1] & 128:  # the number of its first macroblock is 0
                    unit = data[start : min(end, start + HEADER_BYTES)]
                    pictures.append(self._read_slice(unit, recovery=recovery))
            elif kind in SETS:
                if kinds:
                    raise UnclearError("a parameter set behind a slice")
                add_set(sets, *_read_set(data[start:end]))
            elif kind == SEI:
                recovery = max(recovery, find_recovery(data[start + 1 : end], messages))
            elif kind in PARTITIONS:
                raise UnclearError("partitions")
        if not pictures or len(kinds) > len(pictures):
            raise UnclearError("a packet without a picture, or slices that do not belong together")
        return pictures, can_start

    def _read_slice(self, unit: bytes, *, recovery: Recovery) -> _Picture:
        bits = Bits(unit[1:])
        if bits.unsigned() or bits.unsigned() not in SLICE_TYPES:
            raise UnclearError("the first slice is missing or damaged")
        number = bits.unsigned()
        parameters, sequence = self.parameters.get(number) or self._find(number)
        if sequence.separate_planes:
            bits.number(2)
        idr = unit[0] & 31 == IDR
        picture = _Picture(sequence, idr, recovery, unit[0] > 31, bits.number(sequence.number_bits))
        if not sequence.frames_only and bits.flag():
            picture.parity = bits.number(1)
        if idr:
            bits.unsigned()
        if sequence.order_bits:
            picture.order = bits.number(sequence.order_bits)
            if parameters.has_bottom and picture.parity is None:
                picture.bottom = bits.signed()
        return picture

    def _find(self, number: int) -> tuple[_Parameters, _Sequence]:
        """Return the parameter sets that a slice names."""
        parameters = _Parameters.read(self.sets.known[PPS, number])
        sequence = _Sequence.read(self.sets.known[SPS, parameters.sequence])
        if any(other.sequence != parameters.sequence for other, _ in self.parameters.values()):
            raise UnclearError("parameter sets change")
        self.parameters[number] = parameters, sequence
        return parameters, sequence

    def is_faulty(self, packet: bytes) -> bool:
        """Whether the first packet's message makes FFmpeg decode all others in another way."""
        version = X264_VERSION.search(packet)
        is_444 = any(sequence.chroma == CHROMA_444 for _, sequence in self.parameters.values())
        return version is not None and int(version[1]) < (FIRST_RIGHT_444_VERSION if is_444 else FIRST_RIGHT_VERSION)


def _read_extradata(extradata: bytes) -> tuple[int, list[bytes]]:
    """Return the bytes of the length before each NAL unit in packets, and the units in the extradata.

    Source: ISO/IEC 14496-15, 5.3.3.1; without such a record, NAL units are separated by start codes.
    """
    if extradata[:1] != b"\1":
        return 0, [extradata[start:end] for start, end in split_annex_b(extradata)]
    units: list[bytes] = []
    at = 5
    for mask in (31, 255):
        count, at = extradata[at] & mask, at + 1
        for _ in range(count):
            start = at + 2
            at = start + int.from_bytes(extradata[at:start])
            units.append(extradata[start:at])
    return (extradata[4] & 3) + 1, units


def _read_set(unit: bytes) -> tuple[Key, bytes]:
    """Return the type and the number of a parameter set, and its content."""
    kind, content = unit[0] & 31, unit[1:].rstrip(b"\0")
    return (kind, Bits(content[3 if kind == SPS else 0 :][:16]).unsigned()), content


@dataclass(slots=True)
class _Order:
    """Follows the order in which frames are shown.

    FFmpeg's decoder sorts frames by their order counts and holds back ``delay`` of them, more when it finds out that
    these are too few; then frames come too late and are lost. None is if before each frame at most ``delay`` others
    are decoded that are shown after it.

    Attributes:
        delay: How many frames the decoder holds back at first.
        next_number: The next frame's ``frame_num``.
        reference: Order count of the last picture that others may refer to.
        start: Order count of the first picture if it is a recovery point, until an IDR picture follows. FFmpeg does not
            show frames before it.
        highest: The highest order counts since the last IDR picture, ascending.
        floor: What those of further frames must exceed: FFmpeg shows frames before a recovery point first.
    """

    delay: int
    next_number: int | None = None
    reference: int = 0
    start: int | None = None
    highest: list[int] = field(default_factory=list)
    floor: int | None = None

    def follow(self, picture: _Picture, *, second: bool) -> None:
        """Find out a picture's order count (8.2.1.1), and that no picture is missing before it (7.4.3)."""
        if picture.idr:
            self.next_number = self.reference = 0
            self.highest.clear()
            self.start = self.floor = None
        elif self.next_number is None:
            self.next_number, self.reference = picture.number, picture.order
            self.start = picture.order + min(picture.bottom, 0)
        elif picture.recovery and self.highest:
            self.floor = self.highest[-1]
        if picture.number != self.next_number and not second:
            raise UnclearError("missing frames")
        if not picture.sequence.order_bits:
            picture.order = self.reference = self.reference + 1
        else:
            size = 1 << picture.sequence.order_bits
            step = (picture.order - self.reference) % size
            picture.order = self.reference + (step if 2 * step <= size else step - size)
        if picture.reference:
            self.next_number = (picture.number + 1) % (1 << picture.sequence.number_bits)
            self.reference = picture.order
        picture.order += min(picture.bottom, 0)

    def add(self, picture: _Picture) -> bool:
        """Add a frame that is complete, by its last picture. Returns whether FFmpeg shows it."""
        order, highest = picture.order, self.highest
        if self.floor is not None and order <= self.floor:
            raise UnclearError("the decoder may lose frames")
        if not highest or order > highest[-1]:
            highest.append(order)
        else:
            place = bisect_left(highest, order)
            if len(highest) - place > max(self.delay, picture.sequence.delay) or highest[place] == order:
                raise UnclearError("the decoder may lose frames")
            highest.insert(place, order)
        if len(highest) > MAX_DELAY + 1:
            del highest[0]
        return self.start is None or order >= self.start
