"""A naive decoder in plain PyAV, which decodes every frame. The real decoder must agree with it pixel for pixel."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_high
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from service.video.decoder import DecodedClip

Image = npt.NDArray[np.uint8]

BT709, UNSPECIFIED = 1, 2  # FFmpeg's numbers of colour matrices; players take BT.709's for HD


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame that the naive decoder shows.

    Attributes:
        pts: Timestamp, in ticks.
        duration: Duration, in ticks; 0 if unknown.
        image: The frame, upright and resized: uint8 ``(224, 224, 3)``, RGB.
    """

    pts: int
    duration: int
    image: Image


def naive_decode(source: bytes | Path) -> list[Shown]:
    """Decode every frame of a clip, in the order in which they are shown."""
    reformatter = VideoReformatter()
    frames: list[Shown] = []
    times: list[int | None] = []
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with av.open(file, "r", metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, VideoStream)
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                pts, duration, rotation = frame.pts, frame.duration, frame.rotation
                if frame.colorspace == UNSPECIFIED and (frame.width >= 1280 or frame.height > 576):
                    frame.colorspace = BT709
                whole = _unflagged(frame) if frame.interlaced_frame else frame
                small = reformatter.reformat(whole, 224, 224, "gbrp", interpolation=Interpolation.BILINEAR)
                image = np.rot90(cast(Image, small.to_ndarray()), rotation // 90)
                times.append(pts)
                frames.append(Shown(0, duration, image))
    known = [time for time in times if time is not None]
    if len(known) < len(frames):  # MPEG program streams: assume a constant rate
        return [replace(frame, pts=number, duration=1) for number, frame in enumerate(frames)]
    # Frames are output in the order in which they are shown. Times in another order are decode times, as AVI's are.
    return [replace(frame, pts=time) for frame, time in zip(frames, sorted(known), strict=True)]


def _unflagged(frame: VideoFrame) -> VideoFrame:
    """A copy that is not flagged as interlaced, so that the scaler takes it as a whole."""
    copy = VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


def naive_sample(frames: Sequence[Shown]) -> list[Image]:
    """Sample 40 images: for each instant, look at every frame to find the one on screen (rule ``segment-center``)."""
    start, last = frames[0].pts, frames[-1]
    steps = [later.pts - earlier.pts for earlier, later in pairwise(frames)]
    duration = last.pts + (last.duration or median_high(steps)) - start
    rounding = Fraction(1, 2) if steps and median_high(steps) > 1 else 0  # ticks that count frames are exact
    images = []
    for k in range(40):
        instant = start + (k + Fraction(1, 2)) * duration / 40
        images.append([frame.image for frame in frames if frame.pts - rounding <= instant or frame is frames[0]][-1])
    return images


def assert_same_as_naive(clip: DecodedClip, source: bytes | Path) -> None:
    """Assert that a decoded clip is undamaged and has the frames of a naive decode of ``source``."""
    naive = naive_decode(source)
    assert clip.facts.frames == len(naive)
    assert clip.facts.damaged_frames == 0
    np.testing.assert_array_equal(clip.frames, naive_sample(naive))
