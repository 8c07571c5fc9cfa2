"""Which files count as video: the containers and codecs allowed, each with its reason, and the stream that is the clip.

Every demuxer and decoder more is code that strangers' bytes can reach, so both are allow-lists, and FFmpeg is told of
them: it tries no other, not even while it looks into the file. ``docs/media.md`` says the same to users.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from service.errors import CorruptClip, ResolutionTooLarge, UnsupportedMedia
from service.video.limits import DecodeLimits
from service.video.mp4 import is_encrypted, is_image
from service.video.mpegts import scrambled_pids

# FFmpeg's names, and why each is here. Playlists (hls, dash, concat) are not: they make FFmpeg read what they name.
DEMUXERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "MP4, MOV and 3GP: phones, cameras, editors and most sites",
    "matroska,webm": "WebM from browsers' recorders and sites, MKV from screen recorders",
    "avi": "older cameras; UCF-101 and HMDB-51",
    "mpegts": "camcorders (AVCHD) and recorded broadcasts",
    "mpeg": "MPEG program streams (.mpg, .vob): older camcorders and data sets",
    "flv": "recorded live streams",
    "ogg": "Theora clips of free archives",
}


@dataclass(frozen=True, slots=True)
class AllowedCodec:
    """``decoder`` is FFmpeg's name for what decodes it."""

    decoder: str
    reason: str


CODECS = {
    "h264": AllowedCodec("h264", "nearly every clip of the last fifteen years"),
    "hevc": AllowedCodec("hevc", "phones of today, 4K cameras"),
    "av1": AllowedCodec("libdav1d", "sites of today"),
    "vp9": AllowedCodec("vp9", "sites' WebM"),
    "vp8": AllowedCodec("vp8", "browsers' recorders, older WebM"),
    "mpeg4": AllowedCodec("mpeg4", "Xvid and DivX: UCF-101, HMDB-51, older cameras"),
    "msmpeg4v3": AllowedCodec("msmpeg4", "DivX 3 in AVI files of around 2000"),
    "mpeg1video": AllowedCodec("mpeg1video", "Video CDs, older data sets"),
    "mpeg2video": AllowedCodec("mpeg2video", "DVDs, broadcasts, camcorders"),
    "h263": AllowedCodec("h263", "3GP clips of older phones"),
    "mjpeg": AllowedCodec("mjpeg", "photo cameras, webcams, action-recognition rigs"),
    "theora": AllowedCodec("theora", "clips of free archives"),
}

# First bytes of containers: (offset, magic). A file that begins so and cannot be opened is damaged, any other no video.
SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"FLV\x01"), (0, b"OggS"))

NO_CLIP = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# Decoders compare widths rounded up to 64 with their limit. This much more lets no frame within ours be refused that is
# lower than 16,384 pixels; frames are checked exactly when they are decoded.
ROUNDING = 2**20


@contextmanager
def open_video(file: BinaryIO, limits: DecodeLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, whose decoder has seen nothing yet and works in this thread alone.

    Raises:
        UnsupportedMedia: it is not a video of an allowed container and codec.
        CorruptClip: it begins like one, and cannot be opened.
        ResolutionTooLarge: its frames are declared larger than allowed.
    """
    with _open(file, limits) as container:
        scrambled = scrambled_pids(file) if container.format.name == "mpegts" else ()
        stream = _best_stream(container, scrambled)
        context = stream.codec_context
        limits.check_size(context.width, context.height)
        context.options = {"max_pixels": str(limits.max_pixels + ROUNDING)}
        context.thread_type, context.thread_count = "NONE", 1  # dav1d heeds the count only
        yield container, stream


def check_decode_error(error: av.error.FFmpegError, context: VideoCodecContext, limits: DecodeLimits) -> None:
    """Tells frames that the decoder refuses for their size from damage.

    Of such frames H.264's and HEVC's decoders tell the size, dav1d says "out of range", the others "invalid argument",
    and forget the size.

    Raises:
        ResolutionTooLarge: they are too large.
    """
    limits.check_size(context.width, context.height)
    if isinstance(error, av.error.OverflowError) or (isinstance(error, av.error.ArgumentError) and not context.width):
        raise ResolutionTooLarge(f"frames are more than the {limits.max_pixels} pixels allowed") from error


def _open(file: BinaryIO, limits: DecodeLimits) -> InputContainer:
    if is_image(file):
        raise UnsupportedMedia("this is an image, not a video")
    if is_encrypted(file):
        raise UnsupportedMedia("the video is encrypted")
    file.seek(0)
    try:
        return av.open(
            file,
            mode="r",
            metadata_errors="ignore",
            options={"max_pixels": str(limits.max_pixels + ROUNDING)},
            container_options={
                "format_whitelist": ",".join(DEMUXERS),
                "codec_whitelist": ",".join(codec.decoder for codec in CODECS.values()),
            },
        )
    except (av.error.FFmpegError, ValueError) as error:
        file.seek(0)
        head = file.read(16)
        if any(head[offset : offset + len(magic)] == magic for offset, magic in SIGNATURES):
            raise CorruptClip("the clip is damaged: its container cannot be read") from error
        raise UnsupportedMedia("this is not a video in a supported container (MP4, MOV, MKV, WebM, AVI, …)") from error


def _best_stream(container: InputContainer, scrambled: Collection[int]) -> VideoStream:
    """The default stream with the most pixels, of those that are clips and can be decoded.

    `scrambled` are the streams of an MPEG-TS that cannot, by their identifiers.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & NO_CLIP]
    if not streams:
        raise UnsupportedMedia("the file holds no video stream")
    fit = [stream for stream in streams if not _objection(stream, scrambled)]
    if not fit:
        raise UnsupportedMedia(_objection(streams[0], scrambled))
    return max(fit, key=_rank)


def _rank(stream: VideoStream) -> tuple[bool, int]:
    return bool(stream.disposition & Disposition.default), stream.codec_context.width * stream.codec_context.height


def _objection(stream: VideoStream, scrambled: Collection[int]) -> str | None:
    """Why a stream is not to be decoded."""
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        return "the video's codec is unknown"
    if "enc_key_id" in stream.metadata or stream.id in scrambled:  # the former is Matroska's name of the key
        return "the video is encrypted"
    codec, tag = context.codec.canonical_name, _codec_tag(context)
    # Dolby Vision without a plain base layer (dvh1) would come out in false colours.
    if codec not in CODECS or tag == "dvh1":
        return f"the video's codec is {f'{codec} ({tag})' if tag else codec}, not a supported one"
    return None


def _codec_tag(context: VideoCodecContext) -> str:
    """The container's own four letters for the codec, or nothing where they are not text."""
    try:
        tag = context.codec_tag
    except UnicodeDecodeError:  # MPEG-TS numbers its codecs, some above 127
        return ""
    return tag if tag.isprintable() else ""
