"""Chooses the instants at which a clip is sampled, and finds the frame on screen at each.

The rule is called ``segment-center``: the clip is cut into ``FRAME_COUNT`` equal segments and sampled in the middle of
each. All arithmetic is on integers and exact fractions, so that rounding cannot make training and serving differ.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

FRAME_COUNT = 40
SAMPLING_RULE = "segment-center"
# Raised when other frames of some clips are sampled, so that older stored features expire. 2: of AVI files; 3: after
# packets that hold no picture; 4: of MPEG-4 with packed B-frames; 5: where packets are not pictures, timestamps jump or
# are equal, parameter sets change, or there are several video streams.
SAMPLING_REVISION = 5


def sample_instants(start: Fraction, duration: Fraction, count: int = FRAME_COUNT) -> list[Fraction]:
    """Return the middles of ``count`` equal segments: ``t_k = start + (k + 1/2) * duration / count``.

    Args:
        start: When the clip begins, in any unit.
        duration: How long the clip is, in the same unit.
        count: Number of segments.

    Raises:
        ValueError: ``duration`` or ``count`` is not positive.
    """
    if duration <= 0 or count <= 0:
        raise ValueError(f"a clip of duration {duration} cannot be cut into {count} segments")
    half = duration / (2 * count)
    # One denominator for all: adding fractions would take a fiftieth of the time that decoding a short clip takes.
    first, step = start.numerator * half.denominator, half.numerator * start.denominator
    return [Fraction(first + (2 * k + 1) * step, start.denominator * half.denominator) for k in range(count)]


def frames_shown(instants: Sequence[Fraction], timestamps: Sequence[int]) -> list[int]:
    """Find the frame on screen at each instant.

    A frame is on screen from half a tick before its timestamp, because containers that count milliseconds round, until
    the next frame is. The first frame is also on screen before that. If frames usually come one tick apart, as in an
    AVI, timestamps count frames and were not rounded: a frame is then on screen from its timestamp on. Thus a clip of
    constant frame rate gives the same frames in every container. Of frames with equal timestamps the last is on screen.

    Args:
        instants: In ticks of the stream's time base.
        timestamps: Of every frame in presentation order (not decreasing), in ticks; at least one.

    Returns:
        Indices into ``timestamps``, one per instant.

    Raises:
        ValueError: ``timestamps`` is empty.
    """
    if not timestamps:
        raise ValueError("no frame has a timestamp")
    steps = sorted(later - earlier for earlier, later in pairwise(timestamps))
    half_ticks = 1 if steps and steps[len(steps) // 2] > 1 else 0
    ticks = [(2 * at.numerator + half_ticks * at.denominator) // (2 * at.denominator) for at in instants]
    return [max(0, bisect_right(timestamps, tick) - 1) for tick in ticks]
