"""Decodes a clip: from its bytes to the 40 frames that the network looks at.

``media`` decides what counts as a clip, ``presentation`` finds out when each frame is shown, ``sampling`` chooses the
frames, ``picking`` decodes them, and ``resizing`` brings them to the network's size.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.video.limits import DecodeLimits
from service.video.media import open_video
from service.video.picking import FramePicker
from service.video.presentation import Presentation
from service.video.resizing import IMAGE_SIZE, RESIZE_REVISION, RESIZE_RULE, Image
from service.video.sampling import FRAME_COUNT, sample_instants

__all__ = [
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
    """What the clip is. ``width`` × ``height`` are as coded, before ``rotation`` (degrees clockwise) is applied."""

    container: str
    codec: str
    width: int
    height: int
    frames: int
    duration_s: float
    rotation: int
    damaged_frames: int


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """``index`` in presentation order, and the sampled instant in seconds after the clip's first frame."""

    index: int
    time_s: float


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """``frames`` is uint8 ``(40, 224, 224, 3)``, RGB, upright; ``sampled`` says where each was taken."""

    frames: Image
    facts: ClipFacts
    sampled: tuple[SampledFrame, ...]


def decode_clip(
    source: bytes | str | Path | BinaryIO, limits: DecodeLimits | None = None, into: Image | None = None
) -> DecodedClip:
    """Decodes the frames on screen at the 40 sampled instants of the clip's best video stream.

    Args:
        source: the clip's bytes, its path, or a seekable binary file.
        limits: what the clip may cost; the defaults where ``None``.
        into: where to put the frames, uint8 ``(40, 224, 224, 3)``; in new memory where ``None``.

    Raises:
        ClipError: the clip cannot be sampled (see ``service.errors``).
        OSError: the path cannot be read.
    """
    limits = limits or DecodeLimits()
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    check_time = limits.stopwatch()
    with open_video(file, limits) as (container, stream):
        presentation = Presentation.read(container, stream, limits, check_time)
        picker = FramePicker(presentation, lambda: open_video(file, limits), limits, check_time)
        frames = np.empty((FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) if into is None else into
        damaged = picker.pick(stream.codec_context, frames)
        facts = ClipFacts(
            container=_short_name(container.format.name),
            codec=stream.codec_context.codec.canonical_name,
            width=picker.resizer.width,
            height=picker.resizer.height,
            frames=presentation.frames,
            duration_s=float(presentation.duration * presentation.time_base),
            rotation=picker.resizer.rotation,
            damaged_frames=damaged,
        )
    times = map(float, sample_instants(Fraction(0), presentation.duration * presentation.time_base))
    sampled = tuple(SampledFrame(index, time_s) for index, time_s in zip(presentation.wanted, times, strict=True))
    return DecodedClip(frames, facts, sampled)


def _short_name(demuxer: str) -> str:
    return "mp4" if demuxer.startswith("mov,") else demuxer.split(",", maxsplit=1)[0]
