"""Encodes small test clips whose frames show their number, with any oddity of packets, timestamps or tracks."""

import io
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import count
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from model_export.rendering.figure import preserve_scheduling
from service.errors import ClipError
from service.video.decoder import DecodedClip, DecodeLimits, decode_clip

Image = npt.NDArray[np.uint8]
Change = Callable[[int, "Packet[VideoStream]"], "Packet[VideoStream]"]

# The left half's grey level is the number's tens, the right half's its units.
GREY_STEP = 24
# Colours of the corners of counted pictures, in order, and of what is between.
CORNERS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "grey": (60, 60, 60),
}
QUIET = {"libx264": {"bf": "0"}, "libx265": {"x265-params": "log-level=none"}}
# A picture of MPEG-4 that is not coded: start code, "P", no whole second, marker, time, marker, "not coded", stuffing.
NOT_CODED = bytes.fromhex("000001b6504f")
I_FRAME, B_FRAME = 0, 2
DIVX_PACKED = b"\0\0\1\xb2DivX503b1393p"  # user data that marks a packed stream
DATA_CODECS = {"klv", "lcevc", "timed_id3"}


def numbered(number: int, width: int = 64, height: int = 48) -> Image:
    """A picture that shows ``number``, from 0 to 99."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = GREY_STEP * (number // 10), GREY_STEP * (number % 10)
    return picture


def read_number(picture: Image) -> int:
    """The number that a decoded frame of 224×224 shows."""
    tens, units = (round(float(half.mean()) / GREY_STEP) for half in (picture[80:140, 30:80], picture[80:140, 140:190]))
    return 10 * tens + units


def counted(number: int, width: int = 96, height: int = 64) -> Image:
    """A picture that shows ``number``, below 65,536, and which way is up.

    The middle 60 % of its width and height are 4×4 cells: row by row the number's bits, highest first, white for 1. Its
    corners are red, green, blue and white.
    """
    picture = np.full((height, width, 3), CORNERS["grey"], np.uint8)
    for rows, columns, color in zip("ttbb", "lrlr", CORNERS.values(), strict=False):
        y = slice(height // 6) if rows == "t" else slice(-(height // 6), None)
        x = slice(width // 6) if columns == "l" else slice(-(width // 6), None)
        picture[y, x] = color
    bits = np.array([number >> bit & 1 for bit in range(15, -1, -1)]).reshape(4, 4)
    rows_of_bits, columns_of_bits = (np.arange(round(0.6 * size)) * 4 // round(0.6 * size) for size in (height, width))
    cells = np.where(bits[rows_of_bits[:, np.newaxis], columns_of_bits], 235, 20)
    top, left = round(0.2 * height), round(0.2 * width)
    picture[top : top + cells.shape[0], left : left + cells.shape[1]] = cells[..., np.newaxis]
    return picture


def read_count(picture: Image) -> int:
    """The number that a decoded frame of ``counted`` shows."""
    centers = [0.2 + 0.6 * (2 * place + 1) / 8 for place in range(4)]
    bits = [_color_at(picture, x, y).mean() > 128 for y in centers for x in centers]
    return int("".join(str(int(bit)) for bit in bits), 2)


def corners(picture: Image) -> str:
    """The colours of a decoded frame's corners: "red green blue white" if ``counted`` is shown whole and upright."""
    seen = [_color_at(picture, x, y) for y in (1 / 32, 31 / 32) for x in (1 / 32, 31 / 32)]
    return " ".join(min(CORNERS, key=lambda name: float(np.abs(color - CORNERS[name]).sum())) for color in seen)


def _color_at(picture: Image, x: float, y: float) -> npt.NDArray[np.float64]:
    """The mean of 5×5 pixels at a place that is given in parts of width and height."""
    top, left = round(y * picture.shape[0]) - 2, round(x * picture.shape[1]) - 2
    return cast("npt.NDArray[np.float64]", picture[top : top + 5, left : left + 5].mean(axis=(0, 1)))


def counts(clip: DecodedClip) -> list[int]:
    """The numbers that the frames of a counted clip show. All must be upright and whole."""
    assert {corners(frame) for frame in clip.frames} == {"red green blue white"}
    return [read_count(frame) for frame in clip.frames]


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def indices(clip: DecodedClip) -> list[int]:
    return [frame.index for frame in clip.sampled]


@preserve_scheduling()
def encode(
    pictures: Iterable[Image],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 25,
    pts: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    pix_fmt: str | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
    change: Change = lambda number, packet: packet,
) -> bytes:
    """Encode pictures as a clip.

    Args:
        pictures: uint8 ``(height, width, 3)``, RGB, all of one size.
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        rate: Frames per second.
        pts: When each frame is shown, in units of ``1 / rate`` seconds (default: one after the other).
        options: Options of the encoder.
        muxing: Options of the muxer.
        pix_fmt: Pixel format (default: 8-bit 4:2:0).
        prepare: Called with the stream before anything is encoded.
        change: Called with each packet's index and the packet; returns the packet that is written.
    """
    file = io.BytesIO()
    pictures = list(pictures)
    height, width = pictures[0].shape[:2]
    with av.open(file, "w", format=container, options=dict(muxing or {})) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=rate, options=dict(options or QUIET.get(codec, {}))))
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        prepare(stream)
        packets: list[Packet[VideoStream]] = []
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = pts[number] if pts else number, Fraction(1, rate)
            packets += stream.encode(frame)
        for number, packet in enumerate([*packets, *stream.encode()]):
            output.mux(change(number, packet))
    return file.getvalue()


def numbered_clip(
    frames: int,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    pts: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    pix_fmt: str | None = None,
    size: tuple[int, int] = (64, 48),
    change: Change = lambda number, packet: packet,
) -> bytes:
    return encode(
        (numbered(number, *size) for number in range(frames)),
        codec=codec,
        container=container,
        pts=pts,
        options=options,
        muxing=muxing,
        pix_fmt=pix_fmt,
        change=change,
    )


def clip_with_track(container: str, codec: str, content: bytes, frames: int = 50) -> bytes:
    """A numbered clip with a second track of another kind, which holds one packet with ``content``."""
    tracks: list[Stream] = []

    def add_track(video: VideoStream) -> None:
        output = cast(OutputContainer, video.container)
        tracks.append(output.add_data_stream(codec) if codec in DATA_CODECS else output.add_mux_stream(codec))

    def mux_track(number: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
        if number == 0:
            other = Packet(content)
            other.stream, other.time_base = tracks[0], Fraction(1, 1000)
            other.pts = other.dts = 0
            other.duration = 1000
            cast(OutputContainer, tracks[0].container).mux(other)
        return packet

    video_codec = "libvpx" if container == "webm" else "libx264"
    pictures = map(numbered, range(frames))
    return encode(pictures, codec=video_codec, container=container, prepare=add_track, change=mux_track)


def packed_clip(
    frames: int,
    *,
    options: Mapping[str, str],
    width: int = 320,
    height: int = 240,
    left_out: Container[int] = (),
    marked: bool = True,
) -> bytes:
    """A numbered AVI with packed B-frames, as XviD writes it.

    The first B-frame after another picture is in that picture's packet, each further one is a packet early, and a
    placeholder follows the last. ``left_out`` are ticks at which the AVI has no packet.
    """
    pictures = (numbered(number, width, height) for number in range(frames))
    plain = encode(pictures, codec="mpeg4", container="avi", options=options)
    file = io.BytesIO()
    with av.open(io.BytesIO(plain), "r") as source, av.open(file, "w", format="avi") as output:
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        groups: list[list[bytes]] = []  # a picture that is not a B-frame, and the B-frames after it
        for packet in source.demux(video):
            if not packet.size:
                continue
            picture = bytes(packet)
            if _picture_type(picture) == B_FRAME:
                groups[-1].append(picture)
            else:
                groups.append([picture])
        contents: list[bytes] = []
        if marked:
            for group in groups:
                if _picture_type(group[0]) == I_FRAME:
                    group[0] = DIVX_PACKED + group[0]
        for first, *others in groups:
            # XviD's placeholder has the type of the picture before it, and AVI's index calls its packet a keyframe too.
            placeholder = bytes([*NOT_CODED[:4], _picture_type(first) << 6 | NOT_CODED[4] & 0x3F, *NOT_CODED[5:]])
            contents += [first + others[0], *others[1:], placeholder] if others else [first]
        ticks = (tick for tick in count() if tick not in left_out)
        for tick, content in zip(ticks, contents, strict=False):
            packed = Packet(content)
            packed.stream, packed.time_base, packed.pts, packed.dts = stream, Fraction(1, 25), tick, tick
            packed.is_keyframe = _picture_type(content) == I_FRAME
            output.mux(packed)
    return file.getvalue()


def with_stream_type(clip: bytes, kind: int, descriptors: bytes = b"") -> bytes:
    """The MPEG-TS with another type of its only stream, and further descriptors of it."""
    changed = bytearray(clip)
    for start in range(0, len(clip), 188):
        table = start + 5
        if clip[start + 1] & 0x40 and clip[table] == 2:  # a program map begins
            end = table + 3 + (int.from_bytes(clip[table + 1 : table + 3]) & 0xFFF) - 4  # of all but the checksum
            stream = table + 12 + (int.from_bytes(clip[table + 10 : table + 12]) & 0xFFF)
            sized = int.from_bytes(clip[stream + 3 : stream + 5]) + len(descriptors)
            section = bytearray(
                clip[table:stream]
                + bytes([kind])
                + clip[stream + 1 : stream + 3]
                + sized.to_bytes(2)
                + descriptors
                + clip[stream + 5 : end]
            )
            section[1:3] = (int.from_bytes(section[1:3]) + len(descriptors)).to_bytes(2)
            section += _mpeg_checksum(section)
            changed[table : table + len(section)] = section
    return bytes(changed)


def _mpeg_checksum(section: bytes | bytearray) -> bytes:
    """CRC-32/MPEG-2: zlib's polynomial, unreflected and not inverted at the end."""
    register = 0xFFFFFFFF
    for byte in section:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x104C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return register.to_bytes(4)


def _picture_type(picture: bytes) -> int:
    return picture[picture.index(NOT_CODED[:4]) + 4] >> 6


def middle_frames(frames: int) -> list[int]:
    """Indices that are sampled of ``frames`` frames at a constant frame rate: ⌊(k + ½)·frames/40⌋."""
    return [(2 * k + 1) * frames // 80 for k in range(40)]


def with_content(packet: "Packet[VideoStream]", content: bytes) -> "Packet[VideoStream]":
    """A keyframe packet with other bytes and the times of ``packet``."""
    other = cast("Packet[VideoStream]", Packet(content))
    other.stream, other.time_base, other.is_keyframe = packet.stream, packet.time_base, True
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    return other


def refusal(source: bytes, limits: DecodeLimits | None = None) -> ClipError:
    """The error with which ``decode_clip`` refuses a clip. Its text must be one printable line."""
    with pytest.raises(ClipError) as refused:
        decode_clip(source, limits)
    text = str(refused.value)
    assert text
    assert text.isprintable()
    return refused.value
