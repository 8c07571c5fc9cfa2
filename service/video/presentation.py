"""Finds out when each frame of a video stream is shown, and which frames are sampled."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import itemgetter
from typing import cast

from av.container import InputContainer
from av.format import Flags
from av.video.stream import VideoStream

from service.errors import CorruptClip, NoFrames
from service.video.headers import Structure, VideoPacket, read_structure
from service.video.limits import DecodeLimits
from service.video.media import codec_tag, demux
from service.video.packed import unpack
from service.video.sampling import frames_shown, sample_instants
from service.video.timing import in_order, packet_duration, timeline, usual_duration

# Codecs whose headers need not say how many frames a decoder must hold back.
GUESSED_DELAYS = frozenset({"h264", "hevc"})
NO_FRAME = "the video stream holds no frame"


@dataclass(frozen=True, slots=True)
class Output:
    """What a decoder put out when it was given every packet.

    Attributes:
        packets: The packet that each frame was decoded from, in the order of output; ``None`` if it is unknown.
        failed: The packets that could not be decoded.
        delay: Number of frames that the decoder held back, because they are shown in another order.
    """

    packets: list[int | None]
    failed: set[int]
    delay: int


@dataclass(frozen=True, slots=True)
class Presentation:
    """Which frames are shown, and when.

    A frame's slot is its index among all frames in the order in which they are shown.

    Attributes:
        sources: What each slot's frame comes from: the index of a packet if ``by_packet``, else the frame's index in
            the order of output. ``None`` if the frame could not be decoded.
        by_packet: What ``sources`` are.
        duration: From the first frame to the end of the last, in seconds.
        wanted: The slot on screen at each of the sampled instants.
    """

    sources: list[int | None]
    by_packet: bool
    duration: Fraction
    wanted: list[int]

    @property
    def damaged(self) -> int:
        """Number of wanted frames that could not be decoded; one that is wanted repeatedly counts once."""
        return sum(self.sources[slot] is None for slot in set(self.wanted))

    def sampled_sources(self) -> list[int]:
        """Return what the frame at each sampled instant comes from.

        A damaged frame is replaced by the one shown before it, or by the first that can be decoded.
        """
        decoded = [slot for slot, source in enumerate(self.sources) if source is not None]
        before = [decoded[max(0, bisect_right(decoded, slot) - 1)] for slot in self.wanted]
        return [cast(int, self.sources[slot]) for slot in before]


@dataclass(frozen=True, slots=True)
class Track:
    """The packets of a stream in decode order, and what is known before they are decoded.

    Attributes:
        packets: The packets. Each one's ``pts`` is set to its index in this list; decoders copy it to the frame, which
            tells which packet the frame was decoded from.
        hidden: Packets of which no frame is shown: those before the start of an edit list, headers in Ogg.
        times: When each packet's frame is shown, in ticks of ``time_base``; ``None`` where that is unknown.
        time_base: Length of a tick, in seconds.
        usual: Usual duration of a frame, in ticks.
        clocked: Whether timestamps are readings of a clock, without durations, as in MPEG streams and Ogg.
        delay: Number of frames that the decoder should hold back, because they are shown in another order.
        guesses_delay: Whether FFmpeg's decoder guesses ``delay``, and may output frames out of order.
        only_decode_times: Whether the container does not say when frames are shown, and FFmpeg does not know either.
        structure: What the packets' headers prove; ``None`` if only decoding everything is known to be right.
        limits: Limits on the clip.
    """

    packets: list[VideoPacket]
    hidden: frozenset[int]
    times: list[int | None]
    time_base: Fraction
    usual: Fraction
    clocked: bool
    delay: int
    guesses_delay: bool
    only_decode_times: bool
    structure: Structure | None
    limits: DecodeLimits

    @classmethod
    def read(
        cls, container: InputContainer, stream: VideoStream, limits: DecodeLimits, check_time: Callable[[], None]
    ) -> "Track":
        """Read all packets of a stream.

        Args:
            container: The open file.
            stream: Its video stream.
            limits: Limits on the clip.
            check_time: Raises ``DecodeTimeout`` when the time limit has passed.

        Raises:
            NoFrames: The stream has no packet whose frame is shown.
            ClipTooLong: The stream has too many frames.
            DecodeTimeout: The time limit has passed.
        """
        packets: list[VideoPacket] = []
        for packet in demux(container, stream):
            check_time()
            if packet.size:
                packets.append(packet)
                limits.check_frames(len(packets) // 2)  # a frame may be two fields, each in a packet
        is_ogg = container.format.name == "ogg"
        hidden = frozenset(
            number for number, packet in enumerate(packets) if packet.is_discard or (is_ogg and _is_header(packet))
        )
        if len(hidden) == len(packets):
            raise NoFrames(NO_FRAME)
        packets = list(unpack(packets, stream))
        time_base = stream.time_base or Fraction(1, 1000)
        usual = usual_duration(packets, stream, time_base)
        clocked = Flags.ts_discont in Flags(container.format.flags)
        only_decode_times = _has_only_decode_times(container, stream)
        times = timeline(packets, hidden, usual, time_base, clocked=clocked, by_decode_times=only_decode_times)
        structure = read_structure(packets, stream)
        for number, packet in enumerate(packets):
            packet.pts = number
        return cls(
            packets=packets,
            hidden=hidden,
            times=times,
            time_base=time_base,
            usual=usual,
            clocked=clocked,
            delay=stream.codec_context.reorder_depth,
            guesses_delay=stream.codec_context.codec.canonical_name in GUESSED_DELAYS,
            only_decode_times=only_decode_times,
            structure=structure,
            limits=limits,
        )

    def expected(self) -> Presentation:
        """Return the presentation in which one frame comes out of each packet that is not known to be empty.

        Raises:
            ClipTooLong: The stream has too many frames or is too long.
            NoFrames: No packet holds a frame that is shown.
        """
        frameless = self._frameless
        shown = [n for n in range(len(self.packets)) if n not in frameless]
        if not shown:
            raise NoFrames(NO_FRAME)
        if self.structure:  # otherwise a frame may be two fields, each in a packet
            self.limits.check_frames(len(shown))
        times = [self.times[n] for n in shown]
        known = [time for time in times if time is not None]
        if self.only_decode_times and self.delay and None not in times:
            return self._at_output(known, range(len(shown)), self.delay)
        if len(set(known)) < len(shown) or (self.delay and ascends(known)):  # the latter are perhaps decode times
            return self._present(in_order(times, self.usual), range(len(shown)), self.usual)
        order = [n for _, n in sorted(zip(known, shown, strict=True))]
        return self._present(sorted(known), order, self._duration(order[-1]), by_packet=True)

    def decoded(self, output: Output) -> Presentation:
        """Return the presentation of the frames that a decoder put out.

        Raises:
            ClipTooLong: The stream is too long.
            CorruptClip: None of the frames is shown.
        """
        frames = [n for n, packet in enumerate(output.packets) if packet not in self.hidden]
        if not frames:
            raise CorruptClip("none of the clip's frames can be decoded")
        packets = list(_without_repetitions(output.packets[n] for n in frames))
        times = [None if packet is None else self.times[packet] for packet in packets]
        if None in times:
            return self._present(in_order(times, self.usual), frames, self.usual)
        known, numbers = cast(list[int], times), cast(list[int], packets)
        in_decode_order = [time for _, time in sorted(zip(numbers, known, strict=True))]
        if self.only_decode_times or (ascends(in_decode_order) and not ascends(numbers)):
            return self._at_output(known, frames, output.delay)
        if output.delay and not self.guesses_delay and not ascends(known):  # of a muxer that knew no B-frames
            return self._present(in_order(times, self.usual), frames, self.usual)
        lost = [(time, None, n) for n in output.failed - self._frameless if (time := self.times[n]) is not None]
        by_time = sorted([*zip(known, frames, numbers, strict=True), *lost], key=itemgetter(0))
        last = self._duration(by_time[-1][2])
        return self._present([time for time, _, _ in by_time], [frame for _, frame, _ in by_time], last)

    @property
    def _frameless(self) -> frozenset[int]:
        """The packets of which no frame is shown."""
        return self.hidden | self.structure.empty if self.structure else self.hidden

    def _at_output(self, times: Iterable[int], sources: Sequence[int], delay: int) -> Presentation:
        """Return the presentation of frames whose times are decode times; AVI has no others.

        The decoder puts a frame out when it is given a packet that comes ``delay`` packets later. The last frames come
        at the distance of most others, which may be more than one tick: a tick may be the time of a field.
        """
        decoded = sorted(times)
        steps = sorted(later - earlier for earlier, later in pairwise(decoded))
        step = Fraction(steps[len(steps) // 2] if steps else 0) or self.usual
        after = [round(decoded[-1] + (n + 1) * step) for n in range(delay)]
        return self._present([*decoded, *after][delay:], sources, self.usual)

    def _duration(self, packet: int) -> Fraction:
        return Fraction(packet_duration(self.packets[packet])) or self.usual

    def _present(
        self, times: list[int], sources: Sequence[int | None], last: Fraction, *, by_packet: bool = False
    ) -> Presentation:
        """Return the presentation of frames that are shown at these times, which do not decrease.

        Args:
            times: When each frame is shown, in ticks.
            sources: See ``Presentation``.
            last: How long the last frame is shown, in ticks, if the container has durations.
            by_packet: See ``Presentation``.
        """
        if self.clocked and 1 < len(times) < len(self.packets):  # FFmpeg guesses durations of packets, not of frames
            steps = sorted(later - earlier for earlier, later in pairwise(times))
            last = Fraction(steps[len(steps) // 2]) or last
        duration = times[-1] - times[0] + last
        self.limits.check_duration(duration * self.time_base)
        instants = sample_instants(Fraction(times[0]), duration)
        return Presentation(list(sources), by_packet, duration * self.time_base, frames_shown(instants, times))


def _has_only_decode_times(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether a container has no presentation times and the codec's headers do not make up for it.

    FFmpeg derives presentation times for other codecs. Matroska holds AVI's streams, too, and then has a codec tag.
    """
    context = stream.codec_context
    if context.codec.canonical_name not in GUESSED_DELAYS:
        return False
    return container.format.name == "avi" or (container.format.name == "matroska,webm" and codec_tag(context) != "")


def _is_header(packet: VideoPacket) -> bool:
    """Return whether a packet of Ogg is a header of Theora or VP8: FFmpeg hands those out of files that were joined."""
    head = bytes(memoryview(packet)[:7])
    return head[1:] == b"theora" or head.startswith(b"OVP80")


def ascends(numbers: Sequence[int]) -> bool:
    """Return whether each number is larger than the one before."""
    return all(earlier < later for earlier, later in pairwise(numbers))


def _without_repetitions(packets: Iterable[int | None]) -> Iterator[int | None]:
    """Replace a packet by ``None`` where it comes again: only its first frame is shown at its time."""
    seen: set[int | None] = set()
    for packet in packets:
        yield None if packet in seen else packet
        seen.add(packet)
