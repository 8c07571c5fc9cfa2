"""Packed B-frames: MPEG-4 streams of DivX and XviD that have two pictures in one packet.

AVI stores frames in decode order and has no presentation times. To keep one frame in and one frame out at each tick,
these encoders write a P-frame and the B-frame that is shown before it into one packet, and fill a later packet with a
placeholder: a picture of a few bytes that is marked as not coded. FFmpeg's demuxer looks only at the first picture of
each packet, so the presentation times that it derives belong to other pictures.
"""

import re
from collections.abc import Sequence
from typing import cast

from av.packet import Packet
from av.video.stream import VideoStream

from service.video.headers import VideoPacket

# User data that marks a packed stream by its last letter, as in "DivX503b1393p". FFmpeg's decoder checks it, too.
MARKER = re.compile(rb"DivX\d+(?:b|Build)\d+p")
PICTURE_START = b"\0\0\1\xb6"  # ISO/IEC 14496-2, vop_start_code; the next two bits are the picture's type
I_FRAME, B_FRAME = 0, 2
PLACEHOLDER_BYTES = 7  # at most, in FFmpeg's decoder


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
        stream is not marked as packed or no packet holds two pictures.
    """
    if not packets or stream.codec_context.codec.canonical_name != "mpeg4":
        return packets
    if not MARKER.search(stream.codec_context.extradata or b"") and not MARKER.search(bytes(packets[0])):
        return packets
    pictures = _pictures(packets)
    if all(len(picture) == packet.size for picture, packet in zip(pictures, packets, strict=True)):
        return packets
    unpacked = [_with_picture(packet, picture) for packet, picture in zip(packets, pictures, strict=True)]
    _set_times(unpacked)
    return unpacked


def _pictures(packets: Sequence[VideoPacket]) -> list[bytes]:
    """The picture that FFmpeg's decoder decodes when it is given each packet."""
    pictures: list[bytes] = []
    kept = b""
    for packet in packets:
        picture, rest = bytes(packet), b""
        if kept:
            picture, rest = kept, picture
        elif (second := picture.find(PICTURE_START, picture.find(PICTURE_START) + 1)) > 0:
            picture, rest = picture[:second], picture[second:]
        pictures.append(picture)
        # The decoder passes over a P-frame here: XviD's placeholders are P-frames that are not coded.
        kept = rest if len(rest) > PLACEHOLDER_BYTES and _picture_type(rest) in {I_FRAME, B_FRAME} else b""
    return pictures


def _with_picture(packet: VideoPacket, picture: bytes) -> VideoPacket:
    other = cast(VideoPacket, Packet(len(picture)))
    other.update(picture)  # ``Packet(picture)`` would lack the zeros behind the data that decoders count on
    other.stream, other.time_base = packet.stream, packet.time_base
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    # A placeholder after a keyframe is called a keyframe, too.
    other.is_keyframe = packet.is_keyframe and _picture_type(picture) == I_FRAME
    other.is_corrupt = packet.is_corrupt
    return other


def _set_times(packets: Sequence[VideoPacket]) -> None:
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    if len(decoded) < len(packets):
        return
    waiting: VideoPacket | None = None  # the last picture that is not a B-frame, until the next one is decoded
    for packet, time in zip(packets, decoded, strict=True):
        if _picture_type(bytes(packet)) == B_FRAME:
            packet.pts = time
            continue
        if waiting is not None:
            waiting.pts = time
        waiting = packet
    if waiting is not None:
        waiting.pts = decoded[-1] + max(packets[-1].duration or 0, 1)


def _picture_type(data: bytes) -> int | None:
    _, _, picture = data.partition(PICTURE_START)
    return picture[0] >> 6 if picture else None
