"""Decodes a clip's bytes to the 40 frames that the network needs.

``media`` opens the file, ``presentation`` finds out when each frame is shown, ``sampling`` chooses the frames,
``picking`` decodes them, and ``resizing`` converts them to the network's size.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.video.cropping import read_crop
from service.video.formats import DEMUXERS
from service.video.limits import DecodeLimits
from service.video.media import open_video
from service.video.picking import FramePicker
from service.video.presentation import Track
from service.video.resizing import IMAGE_SIZE, RESIZE_REVISION, RESIZE_RULE, Image, Resizer
from service.video.sampling import FRAME_COUNT, sample_instants

__all__ = [
    "CONTAINERS",
    "IMAGE_SIZE",
    "RESIZE_REVISION",
    "RESIZE_RULE",
    "ClipFacts",
    "DecodeLimits",
    "DecodedClip",
    "Image",
    "SampledFrame",
    "decode_clip",
]


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """Properties of a clip's video stream.

    Attributes:
        container: Short name of the container, for example ``mp4`` (also for MOV and 3GP) or ``matroska``.
        codec: FFmpeg's name of the codec, for example ``h264``.
        width: In pixels, as displayed: after cropping, with square pixels, upright.
        height: In pixels, as displayed.
        coded_width: Width of a decoded picture, in pixels, before all that.
        coded_height: Height of a decoded picture.
        frames: Number of frames that are shown.
        duration_s: From the first frame to the end of the last, in seconds.
        rotation: Clockwise rotation that was applied to show the frames upright, in degrees: 0, 90, 180 or 270. Frames
            of a mirrored video are first flipped top to bottom.
        damaged_frames: Number of different sampled frames that could not be decoded and were replaced.
    """

    container: str
    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    frames: int
    duration_s: float
    rotation: int
    damaged_frames: int


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """Where a frame was sampled.

    Attributes:
        index: The frame's index in presentation order.
        time_s: The sampled instant, in seconds after the clip's first frame.
    """

    index: int
    time_s: float


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A clip's sampled frames.

    Attributes:
        frames: uint8 ``(40, 224, 224, 3)``, RGB, upright.
        facts: Properties of the clip.
        sampled: Where each frame was sampled.
    """

    frames: Image
    facts: ClipFacts
    sampled: tuple[SampledFrame, ...]


def decode_clip(
    source: bytes | str | Path | BinaryIO, limits: DecodeLimits | None = None, into: Image | None = None
) -> DecodedClip:
    """Decode the frames on screen at the 40 sampled instants of a clip's best video stream.

    Args:
        source: The clip's bytes, its path, or a seekable binary file.
        limits: Limits on the clip (default: those of ``DecodeLimits``).
        into: Receives the frames: uint8 ``(40, 224, 224, 3)`` (default: a new array).

    Raises:
        ClipError: The clip cannot be sampled; ``service.errors`` lists the reasons.
        OSError: The path cannot be read.
    """
    limits = limits or DecodeLimits()
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    check_time = limits.stopwatch()
    with open_video(file, limits) as (container, stream):
        track = Track.read(container, stream, limits, check_time)
        resizer = Resizer(read_crop(file, container, stream), stream.sample_aspect_ratio)
        picker = FramePicker(track, lambda: open_video(file, limits, stream.index), limits, check_time, resizer)
        frames = np.empty((FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) if into is None else into
        presentation = picker.pick(stream.codec_context, frames)
        facts = ClipFacts(
            container=_short_name(container.format.name),
            codec=stream.codec_context.codec.canonical_name,
            width=resizer.width,
            height=resizer.height,
            coded_width=resizer.coded_width,
            coded_height=resizer.coded_height,
            frames=len(presentation.sources),
            duration_s=float(presentation.duration),
            rotation=resizer.rotation,
            damaged_frames=presentation.damaged,
        )
    times = map(float, sample_instants(Fraction(0), presentation.duration))
    sampled = tuple(SampledFrame(index, time_s) for index, time_s in zip(presentation.wanted, times, strict=True))
    return DecodedClip(frames, facts, sampled)


def _short_name(demuxer: str) -> str:
    return "mp4" if demuxer.startswith("mov,") else demuxer.split(",", maxsplit=1)[0]


CONTAINERS = frozenset(map(_short_name, DEMUXERS))
"""Every value that ``ClipFacts.container`` may have."""
