"""Packed B-frames: MPEG-4 streams of DivX and XviD that have two pictures in one packet.

AVI stores frames in decode order and has no presentation times. To keep one frame in and one frame out at each tick,
these encoders write a P-frame and the B-frame that is shown before it into one packet, and fill a later packet with a
placeholder: a picture of a few bytes that is marked as not coded. FFmpeg's demuxer looks only at the first picture of
each packet, so the presentation times that it derives belong to other pictures.
"""

import re
from collections.abc import Sequence
from typing import TypeAlias

from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.stream import VideoStream

VideoPacket: TypeAlias = "Packet[VideoStream]"

# User data that marks a packed stream by its last letter, as in "DivX503b1393p". FFmpeg's decoder heeds it, too.
MARKER = re.compile(rb"DivX\d+(?:b|Build)\d+p")
PICTURE_START = b"\0\0\1\xb6"  # ISO/IEC 14496-2, vop_start_code; the next two bits are the picture's type
I_FRAME, B_FRAME = 0, 2


def unpack(packets: Sequence[VideoPacket], stream: VideoStream) -> list[VideoPacket] | None:
    """Give each picture of a packed stream a packet of its own.

    Each B-frame takes the place of a placeholder. Presentation times follow from the pictures' types, as in a decoder
    with a delay of one picture: a B-frame is shown when it is decoded, any other picture when the next one that is not
    a B-frame is decoded.

    Args:
        packets: All packets of the stream in decode order. Those of a stream marked as packed are emptied.

    Returns:
        The new packets, with presentation times where every packet has a decode time; ``None`` if the stream is not
        marked as packed.
    """
    if not packets or stream.codec_context.codec.canonical_name != "mpeg4":
        return None
    if not MARKER.search(stream.codec_context.extradata or b"") and not MARKER.search(bytes(packets[0])):
        return None
    sizes = [packet.size for packet in packets]
    bitstream_filter = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    unpacked = [unpacked for packet in packets for unpacked in bitstream_filter.filter(packet)]
    if [packet.size for packet in unpacked] != sizes:
        _describe(unpacked)
    return unpacked


def _describe(packets: Sequence[VideoPacket]) -> None:
    """Set what packets say of their pictures, since each B-frame has taken over what was said of a placeholder."""
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    timed = len(decoded) == len(packets)
    waiting: VideoPacket | None = None  # the last picture that is not a B-frame, until the next one is decoded
    for number, packet in enumerate(packets):
        picture_type = _picture_type(packet)
        packet.is_keyframe = packet.is_keyframe and picture_type == I_FRAME
        if not timed:
            continue
        if picture_type == B_FRAME:
            packet.pts = decoded[number]
            continue
        if waiting is not None:
            waiting.pts = decoded[number]
        waiting = packet
    if waiting is not None:
        waiting.pts = decoded[-1] + max(packets[-1].duration or 0, 1)


def _picture_type(packet: VideoPacket) -> int | None:
    _, _, picture = bytes(packet).partition(PICTURE_START)
    return picture[0] >> 6 if picture else None
