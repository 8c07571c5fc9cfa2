"""When each frame of a stream is shown, and which of them are wanted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from service.errors import NoFrames
from service.video.limits import DecodeLimits
from service.video.packed import VideoPacket, unpack
from service.video.sampling import frames_shown, sample_instants


@dataclass(frozen=True, slots=True)
class Presentation:
    """The packets of a stream in the order they are decoded, and which of their frames are wanted.

    Times are in ticks of ``time_base``. A frame's slot is its place among all frames in the order they are shown.
    """

    packets: list[VideoPacket]
    """Each has its place in this list as its ``pts``, which decoders hand on: a frame tells which packet it is of."""
    times: list[int]
    """When each packet's frame is shown."""
    slots: list[int | None]
    """Each packet's slot; None where its frame is not shown, as before the start of an edit list."""
    time_base: Fraction
    duration: Fraction
    wanted: list[int]
    """The slot on screen at each of the instants that are looked at."""
    timed: bool
    """Every packet has a time of its own. Else only the order in which frames come out tells when they are shown."""
    doubtful: bool
    """The codec reorders frames and the times never do: they may be decode times (AVI holds no others)."""

    @classmethod
    def read(
        cls, container: InputContainer, stream: VideoStream, limits: DecodeLimits, check_time: Callable[[], None]
    ) -> "Presentation":
        """Reads all packets of the stream.

        Raises:
            NoFrames: there are none.
            ClipTooLong: there are too many, or they last too long.
            DecodeTimeout: it takes too long.
        """
        packets: list[VideoPacket] = []
        for packet in _demux(container, stream):
            check_time()
            if packet.size:
                packets.append(packet)
                limits.check_frames(len(packets))
        packets = list(unpack(packets, stream))
        shown = [number for number, packet in enumerate(packets) if not packet.is_discard]
        if not shown:
            raise NoFrames("the video stream holds no frame")
        time_base = stream.time_base or Fraction(1, 1000)
        usual = _usual_duration(packets, stream, time_base)
        times = _times(packets, usual)
        timed = all(packet.pts is not None for packet in packets) and len({times[n] for n in shown}) == len(shown)
        as_shown = sorted(shown, key=times.__getitem__)
        start, last = times[as_shown[0]], as_shown[-1]
        duration = Fraction(times[last] - start + (_duration(packets[last]) or usual))
        limits.check_duration(duration * time_base)
        instants = sample_instants(Fraction(start), duration)
        slots: list[int | None] = [None] * len(packets)
        for slot, number in enumerate(as_shown if timed else shown):
            slots[number] = slot
        for number, packet in enumerate(packets):
            packet.pts = number
        return cls(
            packets=packets,
            times=times,
            slots=slots,
            time_base=time_base,
            duration=duration,
            wanted=frames_shown(instants, [times[number] for number in as_shown]),
            timed=timed,
            doubtful=bool(stream.codec_context.has_b_frames) and as_shown == shown,
        )

    @property
    def frames(self) -> int:
        """How many frames are shown."""
        return sum(slot is not None for slot in self.slots)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The stream's packets up to the end or to the first damage that the demuxer cannot pass."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        except IndexError:  # at the end PyAV trips over streams that an MPEG-TS added on the way
            return
        if packet is None:
            return
        yield packet


def _usual_duration(packets: Sequence[VideoPacket], stream: VideoStream, time_base: Fraction) -> Fraction:
    """Ticks that a frame lasts where its packet does not say."""
    known = sorted(filter(None, map(_duration, packets)))
    if known:
        return Fraction(known[len(known) // 2])
    rate = stream.guessed_rate or stream.average_rate
    return 1 / (rate * time_base) if rate else Fraction(1)


def _duration(packet: VideoPacket) -> int:
    """Ticks that a packet says its frame lasts; 0 where it says nothing sensible."""
    return max(packet.duration or 0, 0)


def _times(packets: Sequence[VideoPacket], usual: Fraction) -> list[int]:
    """When each packet's frame is shown, in ticks; when it is decoded where that is not said.

    Where neither is said of every packet (MPEG program streams), the frame rate is taken to be constant.
    """
    shown = [packet.pts for packet in packets if packet.pts is not None]
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    if len(shown) == len(packets):
        return shown
    if len(decoded) == len(packets):
        return decoded
    return [round(number * usual) for number in range(len(packets))]
