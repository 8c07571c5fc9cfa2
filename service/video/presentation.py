"""Finds out when each frame of a video stream is shown, and which frames are sampled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from service.errors import NoFrames
from service.video.headers import VideoPacket
from service.video.limits import DecodeLimits
from service.video.packed import unpack
from service.video.sampling import frames_shown, sample_instants


@dataclass(frozen=True, slots=True)
class Presentation:
    """The packets of a stream in decode order, when their frames are shown, and which frames are sampled.

    A frame's slot is its index among all frames in the order in which they are shown.

    Attributes:
        packets: The stream's packets in decode order. Each one's ``pts`` is set to its index in this list; decoders
            copy it to the frame, which tells which packet the frame was decoded from.
        times: When each packet's frame is shown, in ticks of ``time_base``.
        slots: Each packet's slot; ``None`` if its frame is not shown, for example before the start of an edit list.
        time_base: Length of a tick, in seconds.
        duration: From the first frame to the end of the last, in ticks.
        wanted: The slot on screen at each of the sampled instants.
        timed: Whether every packet has a presentation time, and no two shown packets the same. Otherwise only the order
            in which the decoder outputs frames tells when they are shown.
        maybe_decode_times: Whether ``times`` may be decode times: the codec reorders frames, but the times are in
            decode order. AVI has no other times.
    """

    packets: list[VideoPacket]
    times: list[int]
    slots: list[int | None]
    time_base: Fraction
    duration: Fraction
    wanted: list[int]
    timed: bool
    maybe_decode_times: bool

    @classmethod
    def read(
        cls, container: InputContainer, stream: VideoStream, limits: DecodeLimits, check_time: Callable[[], None]
    ) -> "Presentation":
        """Read all packets of a stream.

        Args:
            container: The open file.
            stream: Its video stream.
            limits: Limits on the clip.
            check_time: Raises ``DecodeTimeout`` when the time limit has passed.

        Raises:
            NoFrames: The stream has no packet whose frame is shown.
            ClipTooLong: The stream has too many frames or is too long.
            DecodeTimeout: The time limit has passed.
        """
        packets: list[VideoPacket] = []
        for packet in _demux(container, stream):
            check_time()
            if packet.size:
                packets.append(packet)
                limits.check_frames(len(packets))
        shown = [number for number, packet in enumerate(packets) if not packet.is_discard]
        packets = list(unpack(packets, stream))
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
            maybe_decode_times=bool(stream.codec_context.has_b_frames) and as_shown == shown,
        )

    @property
    def frames(self) -> int:
        """Number of frames that are shown."""
        return sum(slot is not None for slot in self.slots)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """Yield the stream's packets, up to the end or to the first damage that the demuxer cannot skip."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        except IndexError:  # PyAV raises it at the end of an MPEG-TS to which streams were added on the way
            return
        if packet is None:
            return
        yield packet


def _usual_duration(packets: Sequence[VideoPacket], stream: VideoStream, time_base: Fraction) -> Fraction:
    """Return the duration, in ticks, that is assumed for a frame whose packet has none."""
    known = sorted(filter(None, map(_duration, packets)))
    if known:
        return Fraction(known[len(known) // 2])
    rate = stream.guessed_rate or stream.average_rate
    return 1 / (rate * time_base) if rate else Fraction(1)


def _duration(packet: VideoPacket) -> int:
    """Return a packet's duration in ticks; 0 if it has no valid one."""
    return max(packet.duration or 0, 0)


def _times(packets: Sequence[VideoPacket], usual: Fraction) -> list[int]:
    """Return when each packet's frame is shown, in ticks.

    These are the presentation times if every packet has one, else the decode times if every packet has one. Otherwise,
    as in MPEG program streams, the frame rate is assumed to be constant.
    """
    shown = [packet.pts for packet in packets if packet.pts is not None]
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    if len(shown) == len(packets):
        return shown
    if len(decoded) == len(packets):
        return decoded
    return [round(number * usual) for number in range(len(packets))]
