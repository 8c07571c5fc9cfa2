"""Reads the headers of coded pictures, one module for each family of codecs.

A sparse decode leaves out packets. FFmpeg does not notice: it conceals what is missing, or decodes with the wrong
parameter sets, and raises nothing. So a sparse decode is used only where the headers prove that it gives the same
frames as decoding everything in order.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from av.video.stream import VideoStream

from service.video.headers.h264 import read_h264
from service.video.headers.hevc import read_hevc
from service.video.headers.structure import Structure, VideoPacket

__all__ = ["Structure", "VideoPacket", "read_structure"]

Reader = Callable[[Sequence[VideoPacket], bytes], Structure | None]

READERS: Mapping[str, Reader] = MappingProxyType({"h264": read_h264, "hevc": read_hevc})
"""FFmpeg's name of the codec: the function that reads the headers of its packets."""


def read_structure(packets: Sequence[VideoPacket], stream: VideoStream) -> Structure | None:
    """Return what the headers of a stream's packets prove; ``None`` if only decoding everything is known to be right.

    Args:
        packets: All packets of the stream in decode order; at least one, and none is empty.
        stream: The stream. Its ``extradata`` is what a fresh decoder is opened with.
    """
    if any(packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change") for packet in packets):
        return None
    reader = READERS.get(stream.codec_context.codec.canonical_name)
    return reader(packets, bytes(stream.codec_context.extradata or b"")) if reader else None
