"""From the bytes of a clip to the 40 frames the network looks at (DESIGN §3).

One demux pass finds the timestamps; only the packets that the wanted frames depend on are decoded. What is decoded is
exactly what a naive decode of everything would have given: where a short cut is not known to be safe, or a decode
error turns up, everything is decoded.
"""

import io
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import av
import numpy as np
import numpy.typing as npt
from av.codec.codec import Codec
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from service.video.errors import (
    ClipTooLong,
    CorruptClip,
    DecodeTimeout,
    NoFrames,
    ResolutionTooLarge,
    UnsupportedMedia,
)
from service.video.sampling import FRAME_COUNT, frames_shown, sample_instants

VideoPacket: TypeAlias = "Packet[VideoStream]"
Image = npt.NDArray[np.uint8]

IMAGE_SIZE = 224
RESIZE_RULE = "stretch-bilinear"

# Containers and codecs that people's cameras, phones and video sites make, and that public data sets come in. Every
# demuxer and decoder more is code that strangers' bytes can reach; playlists (hls, dash, concat) could read files.
DEMUXERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "ogg")
CODECS = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "h263", "mjpeg", "theora", "msmpeg4v3"}
)
# Codecs whose decoders give identical frames when unwanted non-reference frames are skipped (libdav1d, for one, loses
# wanted frames).
SKIPPABLE_CODECS = frozenset({"h264", "hevc", "mpeg4"})
# First bytes of the containers above: (offset, magic). A file that begins so and cannot be opened is damaged; any
# other is not a video.
SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"FLV\x01"), (0, b"OggS"))


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one clip may cost: seconds of video, pixels a frame, frames, and seconds of decoding."""

    max_duration_s: float = 600.0
    max_pixels: int = 9_500_000
    max_frames: int = 20_000
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What the clip is. ``width`` × ``height`` are as coded, before ``rotation`` (degrees clockwise) is applied."""

    container: str
    codec: str
    width: int
    height: int
    frames: int
    duration_s: float
    rotation: int
    damaged_frames: int


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """``index`` in presentation order, and the sampled instant in seconds after the clip's first frame."""

    index: int
    time_s: float


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """``frames`` is uint8 ``(40, 224, 224, 3)``, RGB, upright; ``sampled`` says where each was taken."""

    frames: Image
    facts: ClipFacts
    sampled: tuple[SampledFrame, ...]


def decode_clip(source: bytes | str | Path | BinaryIO, limits: DecodeLimits | None = None) -> DecodedClip:
    """Decodes the frames on screen at the 40 sampled instants of the clip's best video stream.

    Args:
        source: the clip's bytes, its path, or a seekable binary file.
        limits: what the clip may cost; the defaults where ``None``.

    Raises:
        ClipError: the clip cannot be sampled (see ``service.video.errors``).
        OSError: the path cannot be read.
    """
    limits = limits or DecodeLimits()
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    check_time = _stopwatch(limits.timeout_s)
    with _open(file) as container:
        stream = _video_stream(container, limits)
        timeline = _Timeline.read(container, stream, limits, check_time)
        picker = _FramePicker(timeline, stream, limits, check_time)
        frames, rotation, damaged = picker.pick()
        facts = ClipFacts(
            container=_short_name(container.format.name),
            codec=stream.codec_context.codec.canonical_name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            frames=len(timeline.timestamps),
            duration_s=float(timeline.duration * timeline.time_base),
            rotation=rotation,
            damaged_frames=damaged,
        )
    start = timeline.timestamps[0]
    times = [float((instant - start) * timeline.time_base) for instant in timeline.instants]
    sampled = tuple(SampledFrame(index, time_s) for index, time_s in zip(timeline.wanted, times, strict=True))
    return DecodedClip(frames, facts, sampled)


def _stopwatch(timeout_s: float) -> Callable[[], None]:
    deadline = time.monotonic() + timeout_s

    def check() -> None:
        if time.monotonic() > deadline:
            raise DecodeTimeout(f"the clip takes more than {timeout_s:g} s to decode")

    return check


def _open(file: BinaryIO) -> InputContainer:
    try:
        return av.open(
            file,
            mode="r",
            metadata_errors="ignore",
            container_options={"format_whitelist": ",".join(DEMUXERS)},
        )
    except (av.error.FFmpegError, ValueError) as error:
        file.seek(0)
        head = file.read(16)
        if any(head[offset : offset + len(magic)] == magic for offset, magic in SIGNATURES):
            raise CorruptClip("the clip is damaged: its container cannot be read") from error
        raise UnsupportedMedia("this is not a video in a supported container (MP4, MOV, MKV, WebM, AVI, …)") from error


def _short_name(demuxer: str) -> str:
    return "mp4" if demuxer.startswith("mov,") else demuxer.split(",", maxsplit=1)[0]


def _video_stream(container: InputContainer, limits: DecodeLimits) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise UnsupportedMedia("the file holds no video stream")
    best = container.streams.best("video")
    stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    context = stream.codec_context
    if context is None:
        raise UnsupportedMedia("the video's codec is unknown")
    codec: Codec = context.codec
    tag = _codec_tag(context)
    if codec.canonical_name not in CODECS or tag in ("encv", "dvh1"):
        name = f"{codec.canonical_name} ({tag})" if tag else codec.canonical_name
        raise UnsupportedMedia(f"the video's codec is {name}, not a supported one")
    _check_pixels(context.width, context.height, limits)
    context.options = {"max_pixels": str(limits.max_pixels)}
    context.thread_type = "NONE"
    return stream


def _codec_tag(context: VideoCodecContext) -> str:
    """The container's own four letters for the codec, or nothing where they are not text."""
    try:
        tag = context.codec_tag
    except UnicodeDecodeError:  # MPEG-TS numbers its codecs, some above 127
        return ""
    return tag if tag.isprintable() else ""


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise ResolutionTooLarge(f"frames of {width}×{height} are more than the {limits.max_pixels} pixels allowed")


@dataclass(slots=True)
class _Timeline:
    """The packets of a stream in decode order, and which frames of it are wanted. Times are in ticks."""

    packets: list[VideoPacket]
    timestamps: list[int]
    time_base: Fraction
    duration: Fraction
    instants: list[Fraction]
    wanted: list[int]
    complete: bool
    """Every packet has a timestamp of its own, so that a frame is known by it."""
    doubtful: bool
    """The codec reorders frames and the timestamps never do: they may be decode times (AVI holds no others)."""

    @classmethod
    def read(
        cls, container: InputContainer, stream: VideoStream, limits: DecodeLimits, check_time: Callable[[], None]
    ) -> "_Timeline":
        packets: list[VideoPacket] = []
        for packet in _demux(container, stream):
            check_time()
            packets.append(packet)
            if len(packets) > limits.max_frames:
                raise ClipTooLong(f"the clip has more than the {limits.max_frames} frames allowed")
        shown = [packet for packet in packets if not packet.is_discard]
        if not shown:
            raise NoFrames("the video stream holds no frame")
        time_base = stream.time_base or Fraction(1, 1000)
        usual = _usual_duration(shown, stream, time_base)
        timestamps = _timestamps(shown, usual)
        last = max(range(len(shown)), key=timestamps.__getitem__)
        complete = all(packet.pts is not None for packet in packets) and len(set(timestamps)) == len(timestamps)
        doubtful = bool(stream.codec_context.has_b_frames) and timestamps == sorted(timestamps)
        end = timestamps[last] + Fraction(shown[last].duration or usual)
        timestamps.sort()
        duration = end - timestamps[0]
        if duration * time_base > limits.max_duration_s:
            raise ClipTooLong(
                f"the clip lasts {float(duration * time_base):.0f} s, more than the {limits.max_duration_s:g} s allowed"
            )
        instants = sample_instants(Fraction(timestamps[0]), duration)
        wanted = frames_shown(instants, timestamps)
        return cls(packets, timestamps, time_base, duration, instants, wanted, complete, doubtful)


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
        if packet.size:
            yield packet


def _usual_duration(packets: Sequence[VideoPacket], stream: VideoStream, time_base: Fraction) -> Fraction:
    """Ticks that a frame lasts where its packet does not say."""
    known = sorted(packet.duration for packet in packets if packet.duration)
    if known:
        return Fraction(known[len(known) // 2])
    rate = stream.guessed_rate or stream.average_rate
    return 1 / (rate * time_base) if rate else Fraction(1)


def _timestamps(packets: Sequence[VideoPacket], usual: Fraction) -> list[int]:
    """Presentation time of each packet in ticks; decode time, then a step from the one before, where it is missing."""
    timestamps: list[int] = []
    for packet in packets:
        timestamp = packet.pts if packet.pts is not None else packet.dts
        if timestamp is None:
            timestamp = timestamps[-1] + max(1, round(usual)) if timestamps else 0
        timestamps.append(timestamp)
    return timestamps


@dataclass(slots=True)
class _FramePicker:
    """Decodes a timeline's wanted frames into one array."""

    timeline: _Timeline
    stream: VideoStream
    limits: DecodeLimits
    check_time: Callable[[], None]
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)
    rotation: int = 0

    def pick(self) -> tuple[Image, int, int]:
        """Frames ``(40, 224, 224, 3)``, rotation in degrees clockwise, number of damaged frames."""
        distinct = sorted(set(self.timeline.wanted))
        picked: dict[int, Image] = {}
        if self.timeline.complete and not self.timeline.doubtful:
            picked = self._pick_some(distinct)
        if len(picked) < len(distinct):
            picked = self._pick_from_all(distinct, by_timestamp=self.timeline.complete)
        if not picked:
            raise CorruptClip("none of the clip's frames can be decoded")
        damaged = len(distinct) - len(picked)
        if 2 * damaged > len(distinct):
            raise CorruptClip(f"{damaged} of {len(distinct)} sampled frames cannot be decoded")
        frames = np.empty((FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        image = picked[min(picked)]
        for k, index in enumerate(self.timeline.wanted):
            image = picked.get(index, image)
            frames[k] = image
        return frames, self.rotation, damaged

    def _pick_some(self, distinct: Sequence[int]) -> dict[int, Image]:
        """Decodes only what the wanted frames depend on; gives up (fewer frames) on the first sign of damage."""
        index_of: dict[int | None, int] = {self.timeline.timestamps[index]: index for index in distinct}
        picked: dict[int, Image] = {}
        context = self.stream.codec_context
        can_skip = context.codec.canonical_name in SKIPPABLE_CODECS
        keys = {packet.pts for packet in self.timeline.packets if packet.is_keyframe}
        try:
            for run in _runs(self.timeline.packets, index_of.keys()):
                for packet in [*run, None]:
                    self.check_time()
                    if can_skip and packet is not None:
                        context.skip_frame = "DEFAULT" if packet.pts in index_of else "NONREF"
                    for frame in context.decode(packet):
                        if frame.pts in keys and not frame.key_frame:
                            return {}  # a container without a table of keyframes calls every frame one
                        if frame.pts in index_of:
                            picked[index_of[frame.pts]] = self._image(frame)
                context.flush_buffers()
        except av.error.FFmpegError:
            picked.clear()
        finally:
            context.skip_frame = "DEFAULT"
            context.flush_buffers()
        return picked

    def _pick_from_all(self, distinct: Sequence[int], *, by_timestamp: bool) -> dict[int, Image]:
        """Decodes everything up to the last wanted frame, passing over what is damaged."""
        timestamps = self.timeline.timestamps
        index_of: dict[int | None, int] = {timestamp: index for index, timestamp in enumerate(timestamps)}
        wanted = set(distinct)
        picked: dict[int, Image] = {}
        latest = timestamps[0]
        for position, frame in enumerate(self._decode_all()):
            index = position
            if by_timestamp and frame.pts is not None:
                index = index_of.get(frame.pts, position)
                if self.timeline.doubtful and frame.pts < latest:  # they are decode times: only the order is true
                    self.stream.codec_context.flush_buffers()
                    return self._pick_from_all(distinct, by_timestamp=False)
                latest = frame.pts
            if index in wanted:
                picked[index] = self._image(frame)
                if index == distinct[-1]:
                    break
        return picked

    def _decode_all(self) -> Iterator[VideoFrame]:
        context = self.stream.codec_context
        for packet in [*self.timeline.packets, None]:
            self.check_time()
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError:
                continue

    def _image(self, frame: VideoFrame) -> Image:
        _check_pixels(frame.width, frame.height, self.limits)
        small = self.reformatter.reformat(
            frame, IMAGE_SIZE, IMAGE_SIZE, "rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        self.rotation = -frame.rotation % 360
        return _upright(cast(Image, small.to_ndarray()), frame)


def _runs(packets: Sequence[VideoPacket], wanted: Container[int | None]) -> Iterator[list[VideoPacket]]:
    """Stretches of packets, in decode order, that together hold all that the frames of ``wanted`` timestamps need.

    A group of pictures without a wanted frame is left out. Frames that precede their group's keyframe in presentation
    order may depend on the group before it, too.
    """
    groups: list[list[VideoPacket]] = []
    for packet in packets:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    needed: set[int] = set()
    for number, group in enumerate(groups):
        here = [packet for packet in group if packet.pts in wanted and not packet.is_discard]
        if here:
            needed.add(number)
            if number and min(packet.pts or 0 for packet in here) < (group[0].pts or 0):
                needed.add(number - 1)
    run: list[VideoPacket] = []
    for number in sorted(needed):
        run += groups[number]
        if number + 1 not in needed:
            while run[-1].pts not in wanted:
                run.pop()
            yield run
            run = []


def _upright(image: Image, frame: VideoFrame) -> Image:
    """Turns and mirrors a square image as the frame's display matrix says (multiples of 90° only).

    The matrix is nine integers ``a b u c d v x y w``: a pixel at (x, y) is shown at (a·x + c·y, b·x + d·y).
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32)
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
