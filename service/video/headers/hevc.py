"""Reads the headers of HEVC pictures (ISO/IEC 23008-2, 7.3).

Decoding can start at an IDR picture, and at a CRA picture if no picture that is shown after it refers to one before it,
which their headers tell. Pictures that follow a CRA picture but are shown before it may do so (RASL); FFmpeg drops them
if decoding starts there.
"""

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
RADL, RASL, BLA, IDR = frozenset({6, 7}), frozenset({8, 9}), frozenset({16, 17, 18}), frozenset({19, 20})
CRA, VPS, SPS, PPS, PREFIX_SEI = 21, 32, 33, 34, 39
SETS = frozenset({32, 33, 34})
SLICES = frozenset({*range(10), *BLA, *IDR, CRA})
RESERVED_SLICES = frozenset(range(32)) - SLICES
LEADING = RADL | RASL
NEVER_REFERRED = frozenset({0, 2, 4, 6, 8})  # in their temporal layer
RANDOM_ACCESS = frozenset({*BLA, *IDR, CRA})
NEVER_ANCHORS = LEADING | NEVER_REFERRED
LOWEST_LAYER = 1  # nuh_temporal_id_plus1
ENDS = frozenset({36, 37})
HEADER_BYTES = 96  # of a slice, as far as it is read here
MAX_SLICE_TYPE = 2
CHROMA_444 = 3
EXTENSION = 7  # instead of a number of layers, in parameter sets of further views
MAX_ORDER_BITS = 16
MAX_REFERENCES = 16
MAX_REFERENCE_SETS = 64


def read_hevc(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Return what the headers of the packets prove; see ``Structure``."""
    try:
        return _read(packets, extradata)
    except (ValueError, LookupError):
        return None


def _read(packets: Sequence[VideoPacket], extradata: bytes) -> Structure:
    slices, buffer = _SliceReader.open(extradata), _Buffer()
    pictures: list[_Picture] = []
    entries: set[int] = set()
    dropped: set[int] = set()
    drops = False  # whether FFmpeg drops pictures that may refer to others before the first
    cra: tuple[int, int] | None = None  # the last CRA picture and its order, until a picture that is shown after it
    for number, packet in enumerate(packets):
        picture, can_start = slices.read_packet(packet, first=not number)
        pictures.append(picture)
        if picture.kind in RANDOM_ACCESS:
            drops = not number and picture.kind not in IDR
        if drops and picture.kind in RADL:
            raise UnclearError("pictures that precede the first")
        if drops and picture.kind in RASL:
            dropped.add(number)
            continue
        order = buffer.add(picture)
        if picture.kind in LEADING:
            continue
        if cra and picture.kind not in IDR and not buffer.starts_at(cra[1]):
            entries.discard(cra[0])
        cra = (number, order) if picture.kind == CRA else None
        if can_start and picture.kind in RANDOM_ACCESS:
            entries.add(number)
    if 0 not in entries:
        raise UnclearError("the first pictures refer to missing ones")
    return Structure(frozenset(entries), frozenset(dropped), skippable=_is_skippable(pictures))


def _is_skippable(pictures: Sequence["_Picture"]) -> bool:
    """Whether no picture refers to those that FFmpeg calls non-reference: those of lower layers may be referred to."""
    highest = max(picture.layer for picture in pictures)
    return all(picture.layer == highest for picture in pictures if picture.kind in NEVER_REFERRED)


@dataclass(slots=True)
class _Picture:
    """A picture, as its first slice describes it.

    Attributes:
        sequence: Its sequence parameter set.
        kind: Type of its NAL units.
        layer: Its temporal layer, from 1 on.
        order: Low bits of its place in the order in which pictures are shown.
        header: The rest of its slice's header.
    """

    sequence: "_Sequence"
    kind: int
    layer: int
    order: int
    header: Bits

    def references(self) -> tuple[list[int], bool]:
        """Return by how much later those pictures are shown that it keeps, and whether it keeps others, too (7.3.6.1).

        Others are those that it names in another way, or all that there are if that is not known.
        """
        bits, sequence = self.header, self.sequence
        if sequence.references is None:
            return [], True
        if bits.flag():
            references = sequence.references[bits.number((len(sequence.references) - 1).bit_length())]
        else:
            references = _read_references(bits, sequence.references, in_slice=True)
        others = sequence.long_term and bool((sequence.long_term_sets and bits.unsigned()) or bits.unsigned())
        return references, others


@dataclass(slots=True)
class _Buffer:
    """The pictures that a decoder keeps as references, by the order in which pictures are shown.

    Those that a picture does not keep are no references any more (8.3.2).

    Attributes:
        kept: Those that the next picture may keep; ``None`` if that is not known.
        anchor: The picture from whose order the next one's is counted.
    """

    kept: set[int] | None = None
    anchor: int = 0

    def add(self, picture: _Picture) -> int:
        """Add a picture. Returns its place in the order in which pictures are shown (8.3.1).

        Raises:
            UnclearError: Pictures that it keeps are missing. FFmpeg may then lose it, without an error.
        """
        order, kept, others = 0, set[int](), False
        if picture.kind not in IDR:
            size = 1 << picture.sequence.order_bits
            step = (picture.order - self.anchor) % size
            order = self.anchor + (step if 2 * step <= size else step - size)
            distances, others = picture.references()
            kept = {order + distance for distance in distances}
            if self.kept is not None and (not kept <= self.kept or order in self.kept):
                raise UnclearError("missing pictures")
        self.kept = None if others else kept | {order}
        if picture.layer == LOWEST_LAYER and picture.kind not in NEVER_ANCHORS:
            self.anchor = order
        return order

    def starts_at(self, order: int) -> bool:
        """Whether pictures that are shown before this one are certainly not kept."""
        return self.kept is not None and min(self.kept) >= order


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What is needed of a sequence parameter set.

    Attributes:
        separate_planes: Whether the three colour planes are coded separately.
        order_bits: How many bits of their order slices hold.
        references: Sets of pictures that a picture may keep as references, by how much later they are shown; ``None``
            if that was not read.
        long_term: Whether pictures may keep others, too.
        long_term_sets: Whether slices may choose those from a list.
    """

    separate_planes: bool
    order_bits: int
    references: list[list[int]] | None
    long_term: bool
    long_term_sets: bool

    @classmethod
    def read(cls, content: bytes) -> "_Sequence":
        """Read a set (7.3.2.2.1)."""
        bits = _open_sequence(content)
        bits.unsigned()
        separate_planes = bits.unsigned() == CHROMA_444 and bits.flag()
        bits.skip_codes(2)
        if bits.flag():
            bits.skip_codes(4)
        bits.skip_codes(2)
        order_bits = bits.unsigned() + 4
        if order_bits > MAX_ORDER_BITS:
            raise UnclearError("a damaged parameter set")
        layers = (content[0] >> 1 & 7) + 1
        bits.skip_codes(3 * layers if bits.flag() else 3)
        bits.skip_codes(6)
        if bits.flag() and bits.flag():  # scaling lists, which no file at hand has
            return cls(separate_planes, order_bits, None, long_term=True, long_term_sets=True)
        bits.number(2)
        if bits.flag():
            bits.number(8)
            bits.skip_codes(2)
            bits.flag()
        count = bits.unsigned()
        if count > MAX_REFERENCE_SETS:
            raise UnclearError("a damaged parameter set")
        references: list[list[int]] = []
        for _ in range(count):
            references.append(_read_references(bits, references, in_slice=False))
        long_term = bits.flag()
        return cls(separate_planes, order_bits, references, long_term, long_term and bits.unsigned() > 0)


def _open_sequence(content: bytes) -> Bits:
    """Return a sequence parameter set from its number on."""
    bits = Bits(content)
    bits.number(4)
    layers = bits.number(3)
    if layers == EXTENSION:
        return bits
    bits.number(1 + 96)
    if layers:
        flags = bits.number(16)  # two for each layer, whether its profile and its level follow
        for layer in range(layers):
            bits.number(88 * (flags >> 15 - 2 * layer & 1) + 8 * (flags >> 14 - 2 * layer & 1))
    return bits


def _read_references(bits: Bits, sets: Sequence[list[int]], *, in_slice: bool) -> list[int]:
    """Read ``st_ref_pic_set`` (7.3.7 and 7.4.8): earlier pictures, the nearest first, and then later ones."""
    if sets and bits.flag():
        source = sets[-1 - (bits.unsigned() if in_slice else 0)]
        sign = -1 if bits.flag() else 1
        step = sign * (bits.unsigned() + 1)
        kept = [place for place in [*source, 0] if bits.flag() or bits.flag()]
        steps = {place + step for place in kept} - {0}
        return sorted((step for step in steps if step < 0), reverse=True) + sorted(step for step in steps if step > 0)
    earlier, later = bits.unsigned(), bits.unsigned()
    if earlier + later > MAX_REFERENCES:
        raise UnclearError("a damaged header")
    references: list[int] = []
    for count, sign in (earlier, -1), (later, 1):
        place = 0
        for _ in range(count):
            place += sign * (bits.unsigned() + 1)
            bits.flag()
            references.append(place)
    return references


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What is needed of a picture parameter set."""

    sequence: int
    extra_bits: int

    @classmethod
    def read(cls, content: bytes) -> "_Parameters":
        """Read a set (7.3.2.3.1)."""
        bits = Bits(content)
        bits.unsigned()
        sequence = bits.unsigned()
        bits.flag()
        if bits.flag():
            raise UnclearError("pictures that are not shown")
        return cls(sequence, bits.number(3))


@dataclass(slots=True)
class _SliceReader:
    """Reads the first slice of each picture.

    Attributes:
        length_size: Bytes of the length before each NAL unit; 0 if start codes separate them.
        sets: The parameter sets.
        parameters: Those that slices named, by number.
        ended: Whether the sequence has ended.
    """

    length_size: int
    sets: ParameterSets
    parameters: dict[int, tuple[_Parameters, _Sequence]] = field(default_factory=dict)
    ended: bool = False

    @classmethod
    def open(cls, extradata: bytes) -> "_SliceReader":
        length_size, units = _read_extradata(extradata)
        return cls(length_size, ParameterSets(_read_set(unit) for unit in units if unit[0] >> 1 in SETS))

    def read_packet(self, packet: VideoPacket, *, first: bool) -> tuple[_Picture, bool]:
        """Return the picture of a packet, and whether it holds the parameter sets that a decoder might lack."""
        if packet.is_corrupt or self.ended:
            raise UnclearError("a damaged packet, or pictures behind the end")
        data, units = split(packet, self.length_size)
        picture: _Picture | None = None
        sets: dict[Key, bytes] = {}
        messages: list[int] = []
        recovery, can_start = Recovery.NONE, False
        for start, end in units:
            kind, layer = data[start] >> 1, (data[start] & 1) << 5 | data[start + 1] >> 3
            if kind in SLICES:
                if layer:
                    can_start = can_start and kind in RANDOM_ACCESS
                elif picture:
                    if kind != picture.kind or data[start + 2] & 128:
                        raise UnclearError("several pictures in a packet")
                else:
                    can_start = self.sets.check(sets, first=first)
                    picture = self._read_slice(data[start : min(end, start + HEADER_BYTES)], first=first)
            elif kind in SETS:
                if picture:
                    raise UnclearError("a parameter set behind a slice")
                add_set(sets, *_read_set(data[start:end]))
            elif kind == PREFIX_SEI:
                recovery = max(recovery, find_recovery(data[start + 2 : end], messages))
            elif kind in RESERVED_SLICES:
                raise UnclearError("an unknown kind of slice")
            self.ended |= kind in ENDS
        if not picture or (recovery and picture.kind not in RANDOM_ACCESS):
            raise UnclearError("a packet without a picture, or a gradual refresh")
        return picture, can_start

    def _read_slice(self, unit: bytes, *, first: bool) -> _Picture:
        kind, layer = unit[0] >> 1, unit[1] & 7
        bits = Bits(unit[2:])
        if not bits.flag():
            raise UnclearError("the first slice is missing")
        # An IDR picture may tell FFmpeg to discard frames that wait to be shown.
        if kind in RANDOM_ACCESS and bits.flag() and kind != CRA and not first:
            raise UnclearError("frames are discarded")
        if kind in BLA and not first:
            raise UnclearError("a broken link")
        parameters, sequence = self._find(bits.unsigned())
        bits.number(parameters.extra_bits)
        if bits.unsigned() > MAX_SLICE_TYPE:
            raise UnclearError("a damaged slice")
        if sequence.separate_planes:
            bits.number(2)
        return _Picture(sequence, kind, layer, 0 if kind in IDR else bits.number(sequence.order_bits), bits)

    def _find(self, number: int) -> tuple[_Parameters, _Sequence]:
        """Return the parameter sets that a slice names."""
        if number not in self.parameters:
            parameters = _Parameters.read(self.sets.known[PPS, number])
            if any(other.sequence != parameters.sequence for other, _ in self.parameters.values()):
                raise UnclearError("parameter sets change")
            self.parameters[number] = parameters, _Sequence.read(self.sets.known[SPS, parameters.sequence])
        return self.parameters[number]


def _read_extradata(extradata: bytes) -> tuple[int, list[bytes]]:
    """Return the bytes of the length before each NAL unit in packets, and the units in the extradata.

    Source: ISO/IEC 14496-15, 8.3.3.1; without such a record, start codes separate NAL units.
    """
    if not extradata or extradata[:3] in {b"\0\0\1", b"\0\0\0"}:
        return 0, [extradata[start:end] for start, end in split_annex_b(extradata)]
    units: list[bytes] = []
    at = 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            start = at + 2
            at = start + int.from_bytes(extradata[at:start])
            units.append(extradata[start:at])
            if at > len(extradata):
                raise UnclearError("a damaged record")
    return (extradata[21] & 3) + 1, units


def _read_set(unit: bytes) -> tuple[Key, bytes]:
    """Return the type and the number of a parameter set, and its content."""
    kind, content = unit[0] >> 1, unit[2:].rstrip(b"\0")
    if kind == VPS:
        return (kind, content[0] >> 4), content
    return (kind, (_open_sequence(content) if kind == SPS else Bits(content)).unsigned()), content
