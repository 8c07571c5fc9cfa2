"""Writes clips packet by packet: recordings joined in the middle, headers left out, and MP4 files box by box."""

import io
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import cast

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from model_export.rendering.figure import preserve_scheduling
from tests.service.video.boxes import SEGMENT, TRACK_ENTRY, TRACKS, VIDEO, element, number
from tests.service.video.clips import QUIET, Image

RATE = 25
# Start codes of what a decoder must know before it can decode a picture: parameter sets, sequence headers.
HEADERS = {
    "libx264": (0x67, 0x68, 0x27, 0x28),
    "libx265": (0x40, 0x42, 0x44),
    "mpeg2video": (0xB3, 0xB5),
    "mpeg1video": (0xB3,),
    "mpeg4": (0x00, 0x20, 0xB0, 0xB5),
}


@dataclass(frozen=True, slots=True)
class Coded:
    """A packet out of an encoder. Times are in frames, ``1 / RATE`` seconds."""

    data: bytes
    pts: int
    dts: int
    key: bool


@preserve_scheduling()
def coded(
    pictures: Iterable[Image],
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    pts: Sequence[int] | None = None,
) -> list[Coded]:
    """Encode pictures. Parameter sets come with each keyframe, as in a broadcast."""
    context = _encoder(codec, options)
    packets: list[Packet[VideoStream]] = []
    for index, picture in enumerate(pictures):
        if not context.is_open:
            context.height, context.width = picture.shape[:2]
        frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=context.pix_fmt)
        frame.pts, frame.time_base = pts[index] if pts else index, Fraction(1, RATE)
        packets += context.encode(frame)
    packets += context.encode(None)
    return [Coded(bytes(packet), packet.pts or 0, packet.dts or 0, packet.is_keyframe) for packet in packets]


def _encoder(codec: str, options: Mapping[str, str] | None) -> VideoCodecContext:
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    context.thread_count = 1
    context.options = dict(options or QUIET.get(codec, {}))
    return context


def without_headers(packets: Iterable[Coded], codec: str, *, but_first: bool = True) -> list[Coded]:
    """Leave parameter sets out of all packets but the first."""
    stripped = [replace(packet, data=_stripped(packet.data, codec)) for packet in packets]
    return [*list(packets)[:1], *stripped[1:]] if but_first else stripped


def _stripped(data: bytes, codec: str) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units(data) if unit[0] not in HEADERS[codec])


def units(data: bytes) -> list[bytes]:
    """What is between start codes, in H.264, HEVC and MPEG."""
    return [unit for unit in re.split(rb"\x00{2,}\x01", data) if unit]


def later(packets: Iterable[Coded], frames: int) -> list[Coded]:
    """The same packets, so many frames later."""
    return [replace(packet, pts=packet.pts + frames, dts=packet.dts + frames) for packet in packets]


def mux(
    packets: Iterable[Coded],
    *,
    codec: str = "libx264",
    container: str,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    width: int = 96,
    height: int = 64,
) -> bytes:
    """Write packets to a file whose headers are those of an encoder with ``options``."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=dict(muxing or {})) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=RATE, options=dict(options or QUIET.get(codec, {}))))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.codec_context.thread_count = 1
        for coded_packet in packets:
            packet = cast("Packet[VideoStream]", Packet(coded_packet.data))
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts, packet.dts, packet.duration = coded_packet.pts, coded_packet.dts, 1
            packet.is_keyframe = coded_packet.key
            output.mux(packet)
    return file.getvalue()


def flv_joined(*parts: bytes, shift_ms: Sequence[int] = ()) -> bytes:
    """Join FLV files tag by tag, each with its own sequence header, and shift their timestamps."""
    file = parts[0][:13]
    for index, part in enumerate(parts):
        place = 13
        while place < len(part):
            size = int.from_bytes(part[place + 1 : place + 4])
            tag = bytearray(part[place : place + 11 + size + 4])
            time = int.from_bytes(bytes([tag[7], *tag[4:7]])) + (shift_ms[index] if shift_ms else 0)
            tag[4:7], tag[7] = time.to_bytes(4)[1:], time.to_bytes(4)[0]
            end_of_sequence = tag[0] == 9 and tag[12] == 2
            if not (index and tag[0] == 18) and not (end_of_sequence and index + 1 < len(parts)):
                file += tag
            place += 11 + size + 4
    return file


CLUSTER = bytes.fromhex("1f43b675")


def matroska_joined(*parts: bytes) -> bytes:
    """Join Matroska files that were written with the option ``live``: one head, and the clusters of all."""
    return parts[0] + b"".join(part[part.index(CLUSTER) :] for part in parts[1:])


def vfw(times_ms: Sequence[int], packets: Sequence[Coded], width: int = 96, height: int = 64) -> bytes:
    """Write H.264 to Matroska as mkvmerge does with an AVI (V_MS/VFW/FOURCC): its timestamps are decode times."""
    header = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"H264", width * height * 3, 0, 0, 0, 0)
    size = number(b"\xb0", width) + number(b"\xba", height)
    track = number(b"\xd7", 1) + number(b"\x73\xc5", 1) + number(b"\x83", 1) + element(b"\x86", b"V_MS/VFW/FOURCC")
    track += element(b"\x63\xa2", header) + number(b"\x23\xe3\x83", 10**9 // RATE) + element(VIDEO, size)
    clusters = b"".join(
        element(
            CLUSTER, number(b"\xe7", time) + element(b"\xa3", b"\x81\0\0" + b"\0\x80"[packet.key :][:1] + packet.data)
        )
        for time, packet in zip(times_ms, packets, strict=True)
    )
    segment = element(b"\x15\x49\xa9\x66", number(b"\x2a\xd7\xb1", 10**6))
    segment += element(TRACKS, element(TRACK_ENTRY, track)) + clusters
    return element(b"\x1a\x45\xdf\xa3", element(b"\x42\x82", b"matroska")) + element(SEGMENT, segment)


# -- MP4, box by box (ISO/IEC 14496-12) -------------------------------------------------------------------------------


def box(kind: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def full_box(kind: str, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def _table(kind: str, rows: Sequence[Sequence[int]], *, form: str = "", version: int = 0) -> bytes:
    packed = b"".join(struct.pack(">" + (form or "I" * len(row)), *row) for row in rows)
    return full_box(kind, struct.pack(">I", len(rows)), packed, version=version)


def avc_entry(headers: bytes, width: int, height: int, *boxes: bytes) -> bytes:
    """A sample description of H.264 whose parameter sets are those in a keyframe's bytes."""
    sps, pps = (next(unit for unit in units(headers) if unit[0] & 31 == kind) for kind in (7, 8))
    record = bytes([1, *sps[1:4], 0xFF, 0xE1]) + struct.pack(">H", len(sps)) + sps + b"\1"
    record += struct.pack(">H", len(pps)) + pps
    fixed = (
        bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HHII", width, height, 0x480000, 0x480000) + bytes(4) + b"\0\1"
    )
    return box("avc1", fixed + bytes(32) + b"\0\x18\xff\xff", box("avcC", record), *boxes)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of an MP4 track.

    Attributes:
        packet: The picture.
        duration: To the next sample's decode time, in ticks.
        offset: From decode time to presentation time, in ticks.
        description: Index of its sample description, from 1 on.
    """

    packet: Coded
    duration: int
    offset: int
    description: int = 1


UPRIGHT = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
TICKS = 1000  # a second, in the MP4 files written here: 40 ticks a frame


def samples(packets: Sequence[Coded], description: int = 1) -> list[Sample]:
    """The samples of coded packets, a frame every 40 ms."""
    step = TICKS // RATE
    follow = [*packets[1:], replace(packets[-1], dts=packets[-1].dts + 1)]
    return [
        Sample(packet, (after.dts - packet.dts) * step, (packet.pts - packet.dts) * step, description)
        for packet, after in zip(packets, follow, strict=True)
    ]


def mp4(content: Sequence[Sample], descriptions: Sequence[bytes], *, edits: Sequence[tuple[int, int]] = ()) -> bytes:
    """Write an MP4 with a track of H.264.

    Args:
        content: Its samples, in decode order.
        descriptions: Its sample descriptions.
        edits: Its edit list: duration, and start in the media, in ticks; a start of -1 for an empty edit.
    """
    ftyp = box("ftyp", b"isom", bytes(4), b"isomavc1")
    stored = [_length_prefixed(sample.packet.data) for sample in content]
    places = list(accumulate(map(len, stored), initial=len(ftyp) + 8))[:-1]
    duration = sum(sample.duration for sample in content)
    width, height = struct.unpack(">HH", descriptions[0][32:36])
    head = struct.pack(">5I", 0, 0, 1, 0, duration) + bytes(16)
    tkhd = full_box("tkhd", head, UPRIGHT, struct.pack(">HHHH", width, 0, height, 0), flags=3)
    elst = (
        [box("edts", _table("elst", [(length, start, 0x10000) for length, start in edits], form="IiI"))]
        if edits
        else []
    )
    stbl = box(
        "stbl",
        full_box("stsd", struct.pack(">I", len(descriptions)), *descriptions),
        _table("stts", [(1, sample.duration) for sample in content]),
        _table("ctts", [(1, sample.offset) for sample in content], form="Ii", version=1),
        _table("stsc", [(place, 1, sample.description) for place, sample in enumerate(content, 1)]),
        full_box("stsz", struct.pack(">II", 0, len(stored)), *(struct.pack(">I", len(data)) for data in stored)),
        _table("stco", [(place,) for place in places]),
        _table("stss", [(place,) for place, sample in enumerate(content, 1) if sample.packet.key]),
    )
    dinf = box("dinf", full_box("dref", struct.pack(">I", 1), full_box("url ", flags=1)))
    minf = box("minf", full_box("vmhd", bytes(8), flags=1), dinf, stbl)
    mdhd = full_box("mdhd", struct.pack(">4I", 0, 0, TICKS, duration), b"\x55\xc4\0\0")
    mdia = box("mdia", mdhd, full_box("hdlr", bytes(4), b"vide", bytes(13)), minf)
    head = struct.pack(">4I", 0, 0, TICKS, 0) + b"\0\1\0\0\1\0" + bytes(10)
    mvhd = full_box("mvhd", head, UPRIGHT, bytes(24), b"\0\0\0\2")
    return ftyp + box("mdat", *stored) + box("moov", mvhd, box("trak", tkhd, *elst, mdia))


def _length_prefixed(data: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units(data))
