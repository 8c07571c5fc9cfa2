"""Packed B-frames: MPEG-4 streams of DivX and XviD that have two pictures in one packet.

AVI stores frames in decode order and has no presentation times. To keep one frame in and one frame out at each tick,
these encoders write a P-frame and the B-frame that is shown before it into one packet, and fill a later packet with a
placeholder: a picture of a few bytes that is marked as not coded. FFmpeg's demuxer looks only at the first picture of
each packet, so the presentation times that it derives belong to other pictures.
"""

import re
from collections.abc import Collection, Sequence
from itertools import chain
from typing import cast

from av.packet import Packet
from av.video.stream import VideoStream

from service.video.headers import VideoPacket
from service.video.headers.mpeg4 import find_placeholders

# User data that tells by its last letter whether a stream is packed, as in "DivX503b1393p". FFmpeg reads it like this.
MARKER = re.compile(rb"\x00\x00\x01\xb2DivX\s*[+-]?\d+(?:Build|b)\s*[+-]?\d+(.?)", re.DOTALL)
START, SEQUENCE_START = b"\0\0\1", b"\0\0\1\xb0"
PICTURE_START = b"\0\0\1\xb6"  # ISO/IEC 14496-2, vop_start_code; the next two bits are the picture's type
I_FRAME, B_FRAME = 0, 2
PLACEHOLDER_BYTES = 7  # at most, in FFmpeg's decoder
HEADERS_BYTES = 512  # where a marker is looked for


def unpack(packets: Sequence[VideoPacket], stream: VideoStream) -> Sequence[VideoPacket]:
    """Give each picture of a packed stream a packet of its own.

    The pictures are those that FFmpeg's decoder finds in such a stream: of each packet the first, and one further
    picture that it decodes in place of the next packet's. FFmpeg's filter ``mpeg4_unpack_bframes`` does nearly the
    same, but takes every B-frame of less than 20 bytes for a placeholder, as small clips with little motion have them.

    Presentation times follow from the pictures' types, as in a decoder with a delay of one picture: a B-frame is shown
    when it is decoded, any other picture when the next one that is not a B-frame is decoded.

    Args:
        packets: All packets of the stream in decode order.

    Returns:
        As many packets, with new presentation times if every packet has a decode time; ``packets`` themselves if the
        stream is not marked as packed, or no packet holds two pictures or a placeholder. ``is_discard`` of new packets
        is not set, because PyAV has no setter.
    """
    if not packets or stream.codec_context.codec.canonical_name != "mpeg4":
        return packets
    extradata = bytes(stream.codec_context.extradata or b"")
    heads = (data[:HEADERS_BYTES] for data in map(bytes, packets) if not data.startswith(PICTURE_START))
    if not any(_is_packed(headers, before=False) for headers in chain([extradata], heads)):
        return packets
    pictures = _pictures(packets, extradata)
    is_split = any(len(picture) != packet.size for picture, packet in zip(pictures, packets, strict=True))
    if is_split:
        packets = [_with_picture(packet, picture) for packet, picture in zip(packets, pictures, strict=True)]
    placeholders = find_placeholders(packets, extradata)
    if is_split or placeholders:
        _set_times(packets, placeholders)
    return packets


def _pictures(packets: Sequence[VideoPacket], extradata: bytes) -> list[bytes]:
    """The picture that FFmpeg's decoder decodes when it is given each packet."""
    pictures: list[bytes] = []
    kept, packed = b"", _is_packed(extradata, before=False)
    for packet in packets:
        data = bytes(packet)
        start = data.find(START)
        if data[start : start + 4] == SEQUENCE_START:  # here begins another clip, and the kept picture is lost
            kept = b""
        picture, rest = kept or data, data
        first = picture.find(PICTURE_START)
        packed = _is_packed(picture[: max(first, 0)], before=packed)
        second = picture.find(PICTURE_START, first + 1)
        if packed and second > 0:
            picture = picture[:second]
        if not kept:
            rest = data[len(picture) :]
        pictures.append(picture)
        # The decoder passes over a P-frame here: XviD's placeholders are P-frames that are not coded.
        is_picture = len(rest) > PLACEHOLDER_BYTES and _picture_type(rest) in {I_FRAME, B_FRAME}
        kept = rest if packed and is_picture else b""
    return pictures


def _is_packed(headers: bytes, *, before: bool) -> bool:
    """Return whether a stream is packed after some headers, which may tell, or else as ``before``."""
    markers = MARKER.findall(headers)
    return bool(markers[-1] == b"p") if markers else before


def _with_picture(packet: VideoPacket, picture: bytes) -> VideoPacket:
    other = cast(VideoPacket, Packet(len(picture)))
    other.update(picture)  # ``Packet(picture)`` would lack the zeros behind the data that decoders count on
    other.stream, other.time_base = packet.stream, packet.time_base
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    # A placeholder after a keyframe is called a keyframe, too.
    other.is_keyframe = packet.is_keyframe and _picture_type(picture) == I_FRAME
    other.is_corrupt = packet.is_corrupt
    return other


def _set_times(packets: Sequence[VideoPacket], placeholders: Collection[int]) -> None:
    """Set each packet's presentation time to the decode time of the packet at which the decoder outputs its frame."""
    known = [packet.dts for packet in packets if packet.dts is not None]
    if len(known) < len(packets):
        return
    end = max(known) + max(packets[-1].duration or 0, 1)
    for number in placeholders:
        packets[number].pts = known[number]
    pictures = [number for number in range(len(packets)) if number not in placeholders]
    # Matroska's demuxer derives decode times from presentation times, which may not be in the order of the packets.
    times = sorted(known[number] for number in pictures)
    waiting: VideoPacket | None = None  # the last picture that is not a B-frame, until the next one is decoded
    for packet, time in zip((packets[number] for number in pictures), times, strict=True):
        if _picture_type(bytes(packet)) == B_FRAME:
            packet.pts = time
            continue
        if waiting is not None:
            waiting.pts = time
        waiting = packet
    if waiting is not None:
        waiting.pts = end
    if len(packets) - 1 in placeholders:  # the decoder gives its last frame the time of the last packet
        packets[-1].pts = end


def _picture_type(data: bytes) -> int | None:
    _, _, picture = data.partition(PICTURE_START)
    return picture[0] >> 6 if picture else None
