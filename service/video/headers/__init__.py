"""Reads the headers of coded pictures, one module for each family of codecs.

A sparse decode leaves out packets. FFmpeg does not notice: it conceals what is missing, or decodes with the wrong
parameter sets, and raises nothing. So a sparse decode is used only where the headers prove that it gives the same
frames as decoding everything in order.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from av.video.stream import VideoStream

from service.video.headers.av1 import read_av1
from service.video.headers.h263 import read_flv1, read_h263
from service.video.headers.h264 import read_h264
from service.video.headers.hevc import read_hevc
from service.video.headers.intra import read_ffv1, read_intra
from service.video.headers.mjpeg import read_mjpeg
from service.video.headers.mpeg4 import read_mpeg4
from service.video.headers.mpeg12 import read_mpeg12
from service.video.headers.msmpeg4 import read_msmpeg4, read_wmv2
from service.video.headers.structure import Structure, VideoPacket
from service.video.headers.theora import read_theora
from service.video.headers.vp8 import read_vp8
from service.video.headers.vp9 import read_vp9

__all__ = ["Structure", "VideoPacket", "read_structure"]

Reader = Callable[[Sequence[VideoPacket], bytes], Structure | None]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "av1": read_av1,
        "ffv1": read_ffv1,
        "mpeg1video": read_mpeg12,
        "mpeg2video": read_mpeg12,
        "flv1": read_flv1,
        "h263": read_h263,
        "h264": read_h264,
        "hevc": read_hevc,
        "mjpeg": read_mjpeg,
        "mpeg4": read_mpeg4,
        "msmpeg4v2": read_msmpeg4,
        "theora": read_theora,
        "vp8": read_vp8,
        "vp9": read_vp9,
        "wmv1": read_msmpeg4,
        "wmv2": read_wmv2,
        **dict.fromkeys(("dnxhd", "dvvideo", "ffvhuff", "huffyuv", "prores", "rawvideo"), read_intra),
    }
)
"""FFmpeg's name of the codec: the function that reads the headers of its packets."""


def read_structure(packets: Sequence[VideoPacket], stream: VideoStream) -> Structure | None:
    """Return what the headers of a stream's packets prove; ``None`` if only decoding everything is known to be right.

    Args:
        packets: All packets of the stream in decode order; at least one, and none is empty.
        stream: The stream. Its ``extradata`` is what a fresh decoder is opened with.
    """
    # ``has_sidedata`` takes three times as long.
    if any(data.data_type == "new_extradata" for packet in packets for data in packet.iter_sidedata()):
        return None
    reader = READERS.get(stream.codec_context.codec.canonical_name)
    return reader(packets, bytes(stream.codec_context.extradata or b"")) if reader else None
