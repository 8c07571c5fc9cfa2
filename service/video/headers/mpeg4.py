"""MPEG-4 part 2 (ISO/IEC 14496-2): DivX, Xvid and the encoders of cameras.

An I-VOP needs nothing from before if the headers in front of it say what those at the start said: a new video object
layer changes how VOPs are decoded, and so does user data, by which FFmpeg's decoder knows encoders with faults.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from service.video.headers.bits import Bits
from service.video.headers.structure import Structure, VideoPacket

START, VOP, GROUP = b"\0\0\1", b"\0\0\1\xb6", b"\0\0\1\xb3"
GROUP_BYTES = 7  # with its start code
LAYER = re.compile(b"\0\0\x01[\x20-\x2f]")
ENCODERS = re.compile(b"DivX|XviD")
I_VOP, B_VOP = 0, 2
VOP_BYTES = 8  # as many of a VOP's header are looked at
EXTENDED_ASPECT = 15  # aspect_ratio_info


def read_mpeg4(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read all headers up to ``vop_coded`` (6.2.5)."""
    stream = _Stream(extradata)
    if not all(stream.add(number, bytes(packet)) for number, packet in enumerate(packets)):
        return None
    return stream.structure(len(packets) - 1)


def find_placeholders(packets: Sequence[VideoPacket], extradata: bytes) -> set[int]:
    """Return the packets whose VOP is not coded, or that have a single byte instead."""
    found: set[int] = set()
    layer = _Layer.read(extradata)
    for number, packet in enumerate(packets):
        data = bytes(packet)
        vop = data.find(VOP)
        layer = _Layer.read(data[:vop]) or layer if vop > 0 else layer
        header = _read_vop(data, vop, layer) if vop >= 0 and layer else None
        if len(data) == 1 or (header and not header[-1]):
            found.add(number)
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a video object layer (6.2.3) says.

    Attributes:
        resolution: Ticks a second.
        time_bits: Bits of ``vop_time_increment``.
        reorders: Whether FFmpeg's decoder outputs frames in another order than it decodes them; ``None`` if that
            depends on more than this header.
        interlaced: Whether fields may be predicted each on its own.
        rest: All else that the layer says, but for the size of the decoder's buffer and a fixed frame rate.
        others: The other headers.
    """

    resolution: int
    time_bits: int
    reorders: bool | None
    interlaced: bool
    rest: tuple[int, ...]
    others: bytes

    @classmethod
    def read(cls, headers: bytes) -> "_Layer | None":
        """Read the first video object layer; ``None`` if there is none, or one with a shape."""
        start = LAYER.search(headers)
        if not start:
            return None
        end = headers.find(START, start.end())
        end = end if end >= 0 else len(headers)
        bits = Bits(headers[start.end() : end])
        # random_accessible_vol and video_object_type_indication, video_object_layer_verid and its priority, and
        # aspect_ratio_info
        kind = bits.read(1 + 8), bits.read(7 * bits.read(1)), bits.read(4)
        extended_aspect = bits.read(16 * (kind[-1] == EXTENDED_ASPECT))
        reorders = None
        if bits.read(1):  # vol_control_parameters
            bits.skip(2)  # chroma_format
            reorders = not bits.read(1)  # low_delay
            bits.skip(79 * bits.read(1))  # vbv_parameters
        shape = bits.read(2)
        bits.skip(1)
        resolution = bits.read(16)  # vop_time_increment_resolution
        bits.skip(1)
        time_bits = max((resolution - 1).bit_length(), 1)
        bits.skip(time_bits * bits.read(1))  # fixed_vop_time_increment
        size = bits.read(1 + 13 + 1 + 13 + 1)
        interlaced, rest = bool(bits.read(1)), bits.read_rest()
        if shape or not resolution:
            return None
        rest >>= (rest ^ rest + 1).bit_length()  # stuffing is a zero and as many ones as fill the byte
        others = headers[: start.start()] + headers[end:]
        return cls(resolution, time_bits, reorders, interlaced, (*kind, extended_aspect, size, rest), others)


# Parts of a VOP's header (6.2.5): ``vop_coding_type``, the seconds that have passed since the last VOP that is not a
# B-VOP, the ticks after the last full second, and whether there is a picture. A class would take half as long again.
_Vop: TypeAlias = tuple[int, int, int, bool]


def _read_vop(data: bytes, start: int, layer: _Layer) -> _Vop | None:
    """Read the header at a start code; ``None`` if it is not that of a VOP."""
    start += len(VOP)
    bits, left = int.from_bytes(data[start : start + VOP_BYTES].ljust(VOP_BYTES, b"\0")), 8 * VOP_BYTES - 2
    seconds = left - (~bits & (1 << left) - 1).bit_length()  # modulo_time_base: as many ones
    left -= seconds + 2 + layer.time_bits + 2
    if left < 0:
        return None
    end = bits >> left  # ticks between marker bits, and vop_coded
    if not end >> 1 & 1 or not end >> layer.time_bits + 2 & 1:
        return None
    return bits >> 8 * VOP_BYTES - 2, seconds, end >> 2 & (1 << layer.time_bits) - 1, bool(end & 1)


@dataclass(slots=True)
class _Clock:
    """The times of VOPs, as FFmpeg's decoder has them. It drops B-VOPs that are not between their neighbours.

    Attributes:
        second: The second that the next VOP's time counts from.
        previous: The same for the last VOP that is not a B-VOP; B-VOPs count from there.
        last: Time of that VOP, in ticks.
        distance: Time between that VOP and the one before, in ticks.
    """

    second: int = 0
    previous: int = 0
    last: int = 0
    distance: int = 0

    def set(self, group: Bits) -> None:
        """Read ``time_code`` of a group of VOPs (6.2.4)."""
        hours, minutes, _, seconds = group.read(5), group.read(6), group.read(1), group.read(6)
        self.second = seconds + 60 * (minutes + 60 * hours)

    def advance(self, seconds: int, ticks: int, resolution: int) -> None:
        """Move to the time of a VOP that is not a B-VOP."""
        self.previous, self.second = self.second, self.second + seconds
        now = self.second * resolution + ticks
        self.last, self.distance = now, now - self.last

    def is_between(self, seconds: int, ticks: int, resolution: int) -> bool:
        """Return whether the time of a B-VOP is between the two last others."""
        return 0 < self.last - (self.previous + seconds) * resolution - ticks < self.distance


@dataclass(slots=True)
class _Stream:
    extradata: bytes
    first: bytes = b""  # the headers before the first VOP
    layer: _Layer | None = None
    may_wait: bool = False
    clock: _Clock = field(default_factory=_Clock)
    entries: set[int] = field(default_factory=set)
    groups: set[int] = field(default_factory=set)
    empty: set[int] = field(default_factory=set)
    references: int = 0
    has_b_vops: bool = False

    def add(self, number: int, data: bytes) -> bool:
        """Read a packet. Returns whether it is clear what the decoder does with it."""
        vop = data.find(VOP)
        if vop < 0:  # DivX fills a packet with one byte while it waits for the next picture
            self.empty.add(number)
            return len(data) == 1 and self.may_wait
        at_headers = self._read_headers(number, data[:vop]) if vop or not self.layer else not self.first
        if at_headers is None or not self.layer or not (header := _read_vop(data, vop, self.layer)):
            return False
        kind, seconds, ticks, coded = header
        resolution = self.layer.resolution
        if kind == B_VOP:
            self.has_b_vops = True
            if not coded or self.references < 2 or not self.clock.is_between(seconds, ticks, resolution):
                self.empty.add(number)
            # Fields take part of their times from other B-VOPs.
            return self.layer.reorders is True and not self.layer.interlaced
        self.clock.advance(seconds, ticks, resolution)
        self.references += coded
        if not coded:
            self.empty.add(number)
        elif kind == I_VOP and at_headers:
            self.entries.add(number)
        return True

    def _read_headers(self, number: int, head: bytes) -> bool | None:
        """Read what precedes a VOP. Returns whether it repeats the first headers; ``None`` if it changes them."""
        if (group := head.find(GROUP)) >= 0:
            self.clock.set(Bits(head[group + 4 : group + GROUP_BYTES]))
            self.groups.add(number)
            head = head[:group] + head[group + GROUP_BYTES :]
        if not self.layer:
            self.first, self.layer = head, _Layer.read(head) or _Layer.read(self.extradata)
            self.may_wait = bool(ENCODERS.search(head) or ENCODERS.search(self.extradata))
        if head == self.first or (head and _Layer.read(head) == self.layer):
            return True
        return None if head else False

    def structure(self, last: int) -> Structure | None:
        """Return what was read, of packets up to ``last``."""
        if last in self.empty:  # at the end FFmpeg's decoder outputs a frame for it, once more or instead of the last
            if self.layer is None or self.layer.reorders is not False:
                return None
            self.empty.discard(last)
        if self.has_b_vops:  # B-VOPs' weights follow from times, which a later group would set anew
            start = max(self.groups, default=0)
            self.entries = {number for number in self.entries if number in self.groups or number >= start}
        if 0 not in self.entries:
            return None
        return Structure(frozenset(self.entries), frozenset(self.empty), skippable=True)
