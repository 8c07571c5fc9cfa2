"""Encodes the sampled frames as small JPEG images, for clients that cannot play the clip."""

import io
from collections.abc import Sequence

from PIL import Image as PillowImage

from service.video.decoder import Image, SampledFrame

# The 40 images of a UCF-101 clip take 100 to 200 KB as base64 (benchmarks/RESULTS.md).
REDUCTION = 2
QUALITY = 75


def frame_jpegs(frames: Image, sampled: Sequence[SampledFrame]) -> tuple[bytes, ...]:
    """Encode each frame as a JPEG image of 112×112 pixels. A frame that was sampled repeatedly is encoded once.

    Takes about 15 ms and holds the interpreter lock for most of it: run it in a thread, one call at a time.

    Args:
        frames: uint8 ``(40, 224, 224, 3)``, RGB.
        sampled: Which frame of the clip each of them is.

    Returns:
        One JPEG file per frame.
    """
    encoded: dict[int, bytes] = {}
    for frame, pixels in zip(sampled, frames, strict=True):
        if frame.index not in encoded:
            encoded[frame.index] = _jpeg(pixels)
    return tuple(encoded[frame.index] for frame in sampled)


def _jpeg(pixels: Image) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).reduce(REDUCTION).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
