"""Finds out from a file's first bytes which demuxer FFmpeg should open it with.

If FFmpeg is not told, it tries all of its several hundred demuxers on the first bytes of a file. The demuxers here are
the only ones that are used, and only the one that matches sees the file. ``docs/media.md`` explains the list to users.
"""

import re
from collections.abc import Mapping
from typing import BinaryIO

from service.errors import UnsupportedMedia
from service.video.mp4 import Mp4
from service.video.mpegts import is_transport_stream

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
# FFmpeg's names, with reasons. Playlists (hls, dash, concat) are left out: they make FFmpeg read the files they name.
DEMUXERS = {
    MP4: "MP4, MOV and 3GP: phones, cameras, editors and most sites",
    MATROSKA: "WebM from browsers' recorders and sites, MKV from screen recorders",
    "avi": "older cameras; UCF-101 and HMDB-51",
    "mpegts": "camcorders (AVCHD) and recorded broadcasts",
    "mpeg": "MPEG program streams (.mpg, .vob): older camcorders and data sets",
    "flv": "recorded live streams",
    "ogg": "Theora clips of free archives",
    "asf": "WMV of older Windows computers and cameras",
    "dv": "raw DV of digital camcorders (.dv, .dif)",
}
# The service goes by a file's first bytes and takes any name. In a folder the suffix says which files are meant to be
# clips, so that damaged ones are reported and downloads that were cut off (``clip.mp4.part``) are not taken.
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    MP4: (".3g2", ".3gp", ".f4v", ".m4v", ".mj2", ".mov", ".mp4", ".qt"),
    MATROSKA: (".mk3d", ".mkv", ".webm"),
    "avi": (".avi", ".divx"),
    "mpegts": (".m2t", ".m2ts", ".mts", ".tod", ".ts"),
    "mpeg": (".m2p", ".mod", ".mpe", ".mpeg", ".mpg", ".vob"),
    "flv": (".flv",),
    "ogg": (".ogg", ".ogm", ".ogv"),
    "asf": (".asf", ".wm", ".wmv"),
    "dv": (".dif", ".dv"),
}
"""Suffixes of clips by container (see ``DEMUXERS``)."""
VIDEO_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

SIGNATURE_BYTES = 2**12
HEAD_BYTES = 2**20  # FFmpeg looks as far for the first packet of a stream
ID3_HEADER_BYTES = 10


def _starts(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\A(?:" + pattern + rb")", re.DOTALL | re.VERBOSE)


# What a file begins with. MP4 and MPEG-TS, which have no first bytes of their own, are not here.
SIGNATURES = (
    (_starts(rb"\x1aE\xdf\xa3"), MATROSKA),
    (_starts(rb"RIFF.{4}AVI[\x20X\x19] | ON2\x20.{4}ON2f"), "avi"),
    (_starts(rb"FLV[\0-\x04].\0"), "flv"),
    (_starts(rb"OggS\0"), "ogg"),
    (_starts(rb"\0\0\x01[\xe0-\xef]"), "mpeg"),  # a packet of video, as in a program stream without packs
    (_starts(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c"), "asf"),
)
# Streams may begin in the middle of a packet or frame. A program stream has packs, whose header is written in one way
# in MPEG-1 and in another in MPEG-2. A DV frame begins with these two blocks.
PACK = re.compile(rb"\0\0\x01\xba[\x21-\x2f\x44-\x7f]")
DV = re.compile(rb"\x1f\x07\0[\x3f\xbf].{76}\x3f\x07\0", re.DOTALL)
# Videos that are not in a supported container: what they begin with, what they are, and a suffix. They are to be
# encoded anew: a raw stream has no times, and ``ffmpeg -c copy`` writes wrong ones if it has B-frames.
VIDEOS = (
    (rb"\0{2,8}\x01(?:[\x67\x27\x47\x09]|\x06(?!\0\0\x01))", "a raw H.264 stream", "h264"),
    (rb"\0{2,8}\x01[\x40\x42\x44\x46\x4e]\x01", "a raw HEVC stream", "hevc"),
    (rb"\0{2,8}\x01\xb3", "a raw MPEG-1 or MPEG-2 stream", "m2v"),
    (rb"\0\0\x01(?:[\x20-\x2f\xb0\xb5] | [\0-\x1f]\0\0\x01[\x20-\x2f])", "a raw MPEG-4 stream", "m4v"),
    (rb"\0\0\x01\x0f", "a raw VC-1 stream", "vc1"),
    (
        # A temporal delimiter and a sequence header, each with its size behind the header or (Annex B) before it.
        rb"\x12\0\x0a | [\x80-\xff]{0,3}[\x01-\x7f][\x80-\xff]{0,3}[\x01-\x7f]\x01\x10[\x80-\xff]{0,3}[\x01-\x7f]\x08",
        "a raw AV1 stream",
        "obu",
    ),
    (
        rb"\xff\xd8\xff.*\xff\xd9\s*\xff\xd8\xff | --[^\r\n]{1,70}\r\nContent-[Tt]ype:\x20image/jpeg",
        "a raw Motion JPEG stream",
        "mjpeg",
    ),
    (rb"YUV4MPEG2", "a raw YUV4MPEG2 stream", "y4m"),
    (rb"DKIF", "an IVF file", "ivf"),
    (rb".{0,65535}?\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "an MXF file", "mxf"),
    (rb"\.RMF | \.ra\xfd", "a RealMedia file", "rm"),
    (rb"GIF8[79]a", "a GIF image", "gif"),
    (rb"\x89PNG\r\n.{0,2000}acTL", "an animated PNG image", "png"),
)
MATROSKA_FRAGMENT = "this is a fragment of a WebM or Matroska file without its beginning: send the whole file"
REFUSALS = (
    *(
        (_starts(pattern), f"this is {what}: put it in MP4, for example with `ffmpeg -i clip.{suffix} clip.mp4`")
        for pattern, what, suffix in VIDEOS
    ),
    (_starts(rb"RIFF.{4}WEBP.{0,200}ANIM"), "this is an animated WebP image: put it in MP4"),  # ffmpeg cannot read it
    (_starts(rb"\xff\xd8\xff | \x89PNG\r\n | RIFF.{4}WEBP | BM.{4}\0{4}"), "this is an image: send a video"),
    (_starts(rb"\x18\x53\x80\x67 | \x1f\x43\xb6\x75"), MATROSKA_FRAGMENT),  # a segment, a cluster
    (
        _starts(
            rb"""(?:\xef\xbb\xbf)?\s*(?:\#EXTM3U | ffconcat\x20 | v=0\r?\n | \[playlist\]
            | (?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:MPD|smil|ASX|asx|SmoothStreaming))"""
        ),
        "this is a playlist: send the video that it names",
    ),
)


def choose_demuxer(file: BinaryIO, mp4: Mp4 | None) -> str:
    """Return the name of the demuxer that a file is opened with, one of ``DEMUXERS``.

    Args:
        file: A seekable file.
        mp4: Its boxes, if it has any.

    Raises:
        UnsupportedMedia: The file is in no supported container. The message says what it is, if that is known.
    """
    if mp4:
        return MP4
    file.seek(0)
    head = file.read(SIGNATURE_BYTES)
    tag = _id3_bytes(head)
    file.seek(tag)
    beginning = file.read(SIGNATURE_BYTES) if tag else head
    for pattern, demuxer in SIGNATURES:
        if pattern.match(beginning):
            return demuxer
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if is_transport_stream(head):
        return "mpegts"
    if PACK.search(head):
        return "mpeg"
    for pattern, text in REFUSALS:
        if pattern.match(head):
            raise UnsupportedMedia(text)
    if DV.search(head):
        return "dv"
    raise UnsupportedMedia("this is not a video in a supported container (MP4, MOV, MKV, WebM, AVI, …)")


def _id3_bytes(head: bytes) -> int:
    """Return the length of the ID3 tag that some tools write before the container; 0 if there is none."""
    if not head.startswith(b"ID3"):
        return 0
    size = 0
    for byte in head[6:ID3_HEADER_BYTES]:
        size = size << 7 | byte & 0x7F
    return ID3_HEADER_BYTES + size
