"""Opens a file as video: allows a list of containers and codecs, each with its reason, and picks the video stream.

Every further demuxer and decoder is more code that untrusted bytes can reach. Both lists are therefore passed to
FFmpeg, which uses no other demuxer or decoder, not even while it probes the file. ``docs/media.md`` explains the lists
to users.
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

# FFmpeg's names, with reasons. Playlists (hls, dash, concat) are left out: they make FFmpeg read the files they name.
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
}

# First bytes of containers, as (offset, bytes). A file that begins with them and cannot be opened is a damaged video;
# any other file that cannot be opened is not a video.
SIGNATURES = ((4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"FLV\x01"), (0, b"OggS"))

NOT_A_CLIP = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# FFmpeg's decoders round widths up to multiples of 64 before they compare with ``max_pixels``. With this margin they
# accept every frame within our limit whose height is below 16,384 pixels; decoded frames are checked exactly.
MAX_PIXELS_MARGIN = 2**20


@contextmanager
def open_video(file: BinaryIO, limits: DecodeLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its best video stream. The stream's decoder is fresh and uses the calling thread only.

    Args:
        file: A seekable file.
        limits: Limits on the clip.

    Yields:
        The container and the stream.

    Raises:
        UnsupportedMedia: The file is not a video in an allowed container and codec.
        CorruptClip: The file begins like a video but cannot be opened.
        ResolutionTooLarge: The declared frame size is larger than allowed.
    """
    with _open(file, limits) as container:
        scrambled = scrambled_pids(file) if container.format.name == "mpegts" else ()
        stream = _best_stream(container, scrambled)
        context = stream.codec_context
        limits.check_size(context.width, context.height)
        context.options = {
            "max_pixels": str(limits.max_pixels + MAX_PIXELS_MARGIN),
            "side_data_prefer_packet": "displaymatrix",  # the container's orientation, if it also has one
        }
        context.thread_type, context.thread_count = "NONE", 1  # dav1d ignores the type
        yield container, stream


def check_decode_error(error: av.error.FFmpegError, context: VideoCodecContext, limits: DecodeLimits) -> None:
    """Raise ``ResolutionTooLarge`` if a decoder failed because a frame is too large, not because it is damaged.

    For such a frame, the decoders of H.264 and HEVC report its size. dav1d fails with "out of range", the others with
    "invalid argument", and they reset the size to zero.
    """
    limits.check_size(context.width, context.height)
    if isinstance(error, av.error.OverflowError) or (isinstance(error, av.error.ArgumentError) and not context.width):
        raise ResolutionTooLarge(f"frames have more than the {limits.max_pixels} pixels allowed") from error


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
            options={"max_pixels": str(limits.max_pixels + MAX_PIXELS_MARGIN)},
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
    """Return the stream to decode: a default stream if there is one, and among equals the one with the most pixels.

    Args:
        container: The open file.
        scrambled: Packet identifiers of the scrambled streams of an MPEG transport stream.

    Raises:
        UnsupportedMedia: No stream can be decoded. The message is about the first video stream.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & NOT_A_CLIP]
    if not streams:
        raise UnsupportedMedia("the file has no video stream")
    supported = [stream for stream in streams if not _why_unsupported(stream, scrambled)]
    if not supported:
        raise UnsupportedMedia(_why_unsupported(streams[0], scrambled))
    return max(supported, key=_rank)


def _rank(stream: VideoStream) -> tuple[bool, int]:
    return bool(stream.disposition & Disposition.default), stream.codec_context.width * stream.codec_context.height


def _why_unsupported(stream: VideoStream, scrambled: Collection[int]) -> str | None:
    """Return the reason why a stream is not decoded; ``None`` if it is."""
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        return "the video's codec is unknown"
    if "enc_key_id" in stream.metadata or stream.id in scrambled:  # enc_key_id names the key in Matroska
        return "the video is encrypted"
    codec, tag = context.codec.canonical_name, _codec_tag(context)
    # Dolby Vision without a plain base layer (dvh1) would be decoded in false colours.
    if codec not in CODECS or tag == "dvh1":
        return f"the video's codec, {f'{codec} ({tag})' if tag else codec}, is not supported"
    return None


def _codec_tag(context: VideoCodecContext) -> str:
    """Return the container's four-character code for the codec; empty if it is not printable text."""
    try:
        tag = context.codec_tag
    except UnicodeDecodeError:  # MPEG-TS has numbers instead, some above 127
        return ""
    return tag if tag.isprintable() else ""
