"""Opens a file as video: allows a list of containers and codecs, each with its reason, and picks the video stream.

Every further demuxer and decoder is more code that untrusted bytes can reach. FFmpeg is therefore told which demuxer to
use (``formats``), does not probe the file, and uses no decoder that is not on the list. ``docs/media.md`` explains the
lists to users.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import av
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from service.errors import CorruptClip, ResolutionTooLarge, UnsupportedMedia
from service.video import dolby_vision
from service.video.formats import MATROSKA, MATROSKA_FRAGMENT, choose_demuxer
from service.video.headers import VideoPacket
from service.video.limits import DecodeLimits
from service.video.mp4 import Mp4
from service.video.mpegts import scrambled_pids


@dataclass(frozen=True, slots=True)
class AllowedCodec:
    """A codec on the allow-list.

    Attributes:
        decoder: FFmpeg's name of the decoder.
        reason: Which clips use the codec.
    """

    decoder: str
    reason: str


CODECS = {
    "h264": AllowedCodec("h264", "nearly every clip of the last fifteen years"),
    "hevc": AllowedCodec("hevc", "current phones, 4K cameras"),
    "av1": AllowedCodec("libdav1d", "current sites"),
    "vp9": AllowedCodec("vp9", "sites' WebM"),
    "vp8": AllowedCodec("vp8", "browsers' recorders, older WebM"),
    "mpeg4": AllowedCodec("mpeg4", "Xvid and DivX: UCF-101, HMDB-51, older cameras"),
    "msmpeg4v3": AllowedCodec("msmpeg4", "DivX 3 in AVI files of around 2000"),
    "mpeg1video": AllowedCodec("mpeg1video", "Video CDs, older data sets"),
    "mpeg2video": AllowedCodec("mpeg2video", "DVDs, broadcasts, camcorders"),
    "h263": AllowedCodec("h263", "3GP clips of older phones"),
    "mjpeg": AllowedCodec("mjpeg", "photo cameras, webcams, action-recognition rigs"),
    "theora": AllowedCodec("theora", "clips of free archives"),
    "wmv1": AllowedCodec("wmv1", "Windows Media Video 7, around 2000"),
    "wmv2": AllowedCodec("wmv2", "Windows Media Video 8, as older Windows programs write it"),
    "wmv3": AllowedCodec("wmv3", "Windows Media Video 9: most WMV files"),
    "vc1": AllowedCodec("vc1", "the advanced profile of WMV 9; Blu-ray discs"),
    "msmpeg4v1": AllowedCodec("msmpeg4v1", "the first of Microsoft's MPEG-4 codecs, before 2000"),
    "msmpeg4v2": AllowedCodec("msmpeg4v2", "ASF and AVI files of around 2000"),
    "flv1": AllowedCodec("flv", "Sorenson Spark: sites' videos before 2008"),
    "dvvideo": AllowedCodec("dvvideo", "digital camcorders, raw or in AVI and MOV"),
    "prores": AllowedCodec("prores", "editors' MOV, current phones"),
    "dnxhd": AllowedCodec("dnxhd", "editors' MOV"),
    "rawvideo": AllowedCodec("rawvideo", "machine-vision cameras and research rigs, without compression"),
    "huffyuv": AllowedCodec("huffyuv", "lossless captures in AVI"),
    "ffvhuff": AllowedCodec("ffvhuff", "FFmpeg's variant of HuffYUV"),
    "ffv1": AllowedCodec("ffv1", "archives, lossless data sets"),
}

ENCRYPTED = "the video is encrypted"
NO_BASE_LAYER = (
    "the video is Dolby Vision without a plain base layer, which only its own decoders can show: export it as HDR10,"
    " HLG or SDR"
)
# Objects of an ASF file whose streams are encrypted: Content Encryption, and its extended and advanced variants.
ASF_ENCRYPTION = re.compile(
    rb"\xfb\xb3\x11\x22\x23\xbd\xd2\x11\xb4\xb7\0\xa0\xc9\x55\xfc\x6e"
    rb"|\x14\xe6\x8a\x29\x22\x26\x17\x4c\xb9\x35\xda\xe0\x7e\xe9\x28\x9c"
    rb"|\x33\x85\x05\x43\x81\x69\xe6\x49\x9b\x74\xad\x12\xcb\x86\xd5\x8c"
)
HEAD_BYTES = 2**20  # where the streams are described; a recording is scrambled from its beginning or not at all
NEARLY_ALL = 0.9  # of the frames; two cameras of one device do not always end with the same frame
NOT_A_CLIP = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# FFmpeg's decoders round widths up to multiples of 64 before they compare with ``max_pixels``. With this margin they
# accept every frame within our limit whose height is below 16,384 pixels; decoded frames are checked exactly.
MAX_PIXELS_MARGIN = 2**20


@contextmanager
def open_video(
    file: BinaryIO, limits: DecodeLimits, index: int | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its best video stream. The stream's decoder is fresh and uses the calling thread only.

    Args:
        file: A seekable file.
        limits: Limits on the clip.
        index: Index of the stream, if it was chosen before. To choose among several, all packets must be read.

    Yields:
        The container and the stream.

    Raises:
        UnsupportedMedia: The file is not a video in an allowed container and codec.
        CorruptClip: The file begins like a video but cannot be opened.
        ResolutionTooLarge: The declared frame size is larger than allowed.
    """
    mp4 = Mp4.read(file)
    demuxer = choose_demuxer(file, mp4)
    with ExitStack() as stack:
        container = stack.enter_context(_open(file, limits, demuxer, mp4))
        if index is None:
            streams = _videos(container)
            index = _choose(streams, container, _flaws(container, file, mp4), limits)
            if len(streams) > 1:  # all packets have been read
                stack.close()
                container = stack.enter_context(_open(file, limits, demuxer, mp4))
        stream = next(stream for stream in container.streams.video if stream.index == index)
        context = stream.codec_context
        limits.check_size(context.width, context.height)
        context.options = {
            "max_pixels": str(limits.max_pixels + MAX_PIXELS_MARGIN),
            "side_data_prefer_packet": "displaymatrix",  # the container's orientation, if it also has one
        }
        context.thread_type, context.thread_count = "NONE", 1  # dav1d ignores the type
        context.flags |= CodecFlags.unaligned  # else H.264 and HEVC are cropped on the left in steps of 32 pixels only
        yield container, stream


def demux(container: InputContainer, *streams: VideoStream) -> Iterator[VideoPacket]:
    """Yield the packets of streams, up to the end or to the first damage that the demuxer cannot skip."""
    packets = cast(Iterator[VideoPacket], container.demux(*streams))
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


def check_decode_error(error: av.error.FFmpegError, context: VideoCodecContext, limits: DecodeLimits) -> None:
    """Raise ``ResolutionTooLarge`` if a decoder failed because a frame is too large, not because it is damaged.

    For such a frame, the decoders of H.264 and HEVC report its size. dav1d fails with "out of range", the others with
    "invalid argument", and they reset the size to zero.
    """
    limits.check_size(context.width, context.height)
    if isinstance(error, av.error.OverflowError) or (isinstance(error, av.error.ArgumentError) and not context.width):
        raise ResolutionTooLarge(f"frames have more than the {limits.max_pixels} pixels allowed") from error


def _open(file: BinaryIO, limits: DecodeLimits, demuxer: str, mp4: Mp4 | None) -> InputContainer:
    if mp4 and mp4.is_image:
        raise UnsupportedMedia("this is an image: send a video")
    if mp4 and mp4.is_encrypted:
        raise UnsupportedMedia(ENCRYPTED)
    file.seek(0)
    try:
        return av.open(
            file,
            mode="r",
            format=demuxer,
            metadata_errors="ignore",
            options={"max_pixels": str(limits.max_pixels + MAX_PIXELS_MARGIN)},
            container_options={
                "format_whitelist": demuxer,  # demuxers may open others, as that of AVI does for subtitles
                "codec_whitelist": ",".join(codec.decoder for codec in CODECS.values()),
            },
        )
    except (av.error.FFmpegError, ValueError) as error:
        if mp4 and mp4.is_fragment:
            raise UnsupportedMedia(
                "this is a fragment of an MP4 without its beginning: put the initialization segment before it, for"
                " example with `cat init.mp4 fragment.m4s > clip.mp4`"
            ) from error
        if mp4 and not mp4.movie:
            raise CorruptClip(
                "the clip's index (its moov box) is missing, as in a file that was cut off: send the whole file"
            ) from error
        raise CorruptClip("the clip is damaged: its container cannot be read") from error


def _videos(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are no pictures."""
    streams = [stream for stream in container.streams.video if not stream.disposition & NOT_A_CLIP]
    if not streams:
        without_tracks = container.format.name == MATROSKA and not container.streams
        raise UnsupportedMedia(MATROSKA_FRAGMENT if without_tracks else "the file has no video stream")
    return streams


def _flaws(container: InputContainer, file: BinaryIO, mp4: Mp4 | None) -> Mapping[int, str]:
    """Return why streams are not decoded for reasons that FFmpeg does not know, by the streams' identifiers.

    Leaves the file's position where it was, because FFmpeg goes on reading from there.
    """
    if mp4:
        return dict.fromkeys(mp4.tracks_without_base_layer(), NO_BASE_LAYER)
    demuxer = container.format.name
    if demuxer not in {"mpegts", "asf", MATROSKA}:
        return {}
    position = file.tell()
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(position)
    every = [stream.id for stream in container.streams.video]
    if demuxer == "asf":
        return dict.fromkeys(every, ENCRYPTED) if ASF_ENCRYPTION.search(head) else {}
    if not dolby_vision.are_plain_tracks(head):
        return dict.fromkeys(every, NO_BASE_LAYER)
    return dict.fromkeys(scrambled_pids(head), ENCRYPTED) if demuxer == "mpegts" else {}


def _choose(
    streams: Sequence[VideoStream], container: InputContainer, flaws: Mapping[int, str], limits: DecodeLimits
) -> int:
    """Choose the stream to decode, and return its index.

    Of several streams, one is a candidate if it has nearly as many frames as any other that can be decoded: the still
    picture of a motion photo is no video, however large it is. Among candidates a default stream is preferred, and
    among equals the one with the most pixels.

    Raises:
        UnsupportedMedia: No stream can be decoded, or only a still picture beside a video.
    """
    reasons = {stream.index: _why_unsupported(stream, flaws) for stream in streams}
    supported = [stream for stream in streams if not reasons[stream.index]]
    if not supported:
        raise UnsupportedMedia(reasons[streams[0].index])
    if len(streams) == 1:
        return streams[0].index
    frames = _count_frames(streams, container, limits)
    most = max(frames[stream.index] for stream in supported)
    longest = max(streams, key=lambda stream: frames[stream.index])
    if most <= 1 < frames[longest.index]:
        raise UnsupportedMedia(reasons[longest.index])
    candidates = [stream for stream in supported if frames[stream.index] >= NEARLY_ALL * most]
    return max(candidates, key=_rank).index


def _rank(stream: VideoStream) -> tuple[bool, int]:
    return bool(stream.disposition & Disposition.default), stream.codec_context.width * stream.codec_context.height


def _count_frames(streams: Sequence[VideoStream], container: InputContainer, limits: DecodeLimits) -> Counter[int]:
    """Count the frames of each stream, by index, up to the first that has more than allowed."""
    frames: Counter[int] = Counter()
    check_time = limits.stopwatch()
    for packet in demux(container, *streams):
        check_time()
        if packet.size and not packet.is_discard:
            frames[packet.stream.index] += 1
            if frames[packet.stream.index] > limits.max_frames:
                break
    return frames


def _why_unsupported(stream: VideoStream, flaws: Mapping[int, str]) -> str | None:
    """Return the reason why a stream is not decoded; ``None`` if it is."""
    if stream.id in flaws:
        return flaws[stream.id]
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        return "the video's codec is unknown"
    if "enc_key_id" in stream.metadata:  # the name of the key in Matroska
        return ENCRYPTED
    codec, tag = context.codec.canonical_name, codec_tag(context)
    if codec not in CODECS:
        return f"the video's codec, {f'{codec} ({tag})' if tag else codec}, is not supported"
    return None


def codec_tag(context: VideoCodecContext) -> str:
    """Return the container's four-character code for the codec; empty if it is not printable text."""
    try:
        tag = context.codec_tag
    except UnicodeDecodeError:  # MPEG-TS has numbers instead, some above 127
        return ""
    return tag if tag.isprintable() else ""
