"""The sampled frames as small pictures, for people who cannot play the clip."""

import io
from collections.abc import Sequence

from PIL import Image as PillowImage

from service.video.decoder import Image, SampledFrame

# The 40 pictures of a clip of UCF-101 take 100 to 200 KB as base64 (benchmarks/RESULTS.md).
REDUCTION = 2
QUALITY = 75


def frame_jpegs(frames: Image, sampled: Sequence[SampledFrame]) -> tuple[bytes, ...]:
    """A JPEG of 112×112 for each of the frames, uint8 (40, 224, 224, 3), RGB; a frame sampled again is encoded once.

    Takes some 15 ms, for most of which it holds the interpreter: meant for a thread, and for one at a time.
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
