"""Which instants of a clip are looked at, and which frames are on screen then.

Rule ``segment-center``: the clip is cut into ``FRAME_COUNT`` equal segments and the middle of each is looked at. All
arithmetic is on integers and exact fractions, so that training and serving can never disagree by a rounding.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

FRAME_COUNT = 40
SAMPLING_RULE = "segment-center"
# Raised when other frames of some clips are sampled, so that features stored before expire. 2: of AVI files; 3: after
# packets that hold no picture; 4: of MPEG-4 with packed B-frames.
SAMPLING_REVISION = 4


def sample_instants(start: Fraction, duration: Fraction, count: int = FRAME_COUNT) -> list[Fraction]:
    """Middles of ``count`` equal segments: ``t_k = start + (k + 1/2) * duration / count``, in the unit given.

    Raises:
        ValueError: ``duration`` is not positive, or ``count`` is not.
    """
    if duration <= 0 or count <= 0:
        raise ValueError(f"a clip of duration {duration} cannot be cut into {count} segments")
    half = duration / (2 * count)
    # Over one denominator: sums of fractions would be a fiftieth of the time that a short clip takes to decode.
    first, step = start.numerator * half.denominator, half.numerator * start.denominator
    return [Fraction(first + (2 * k + 1) * step, start.denominator * half.denominator) for k in range(count)]


def frames_shown(instants: Sequence[Fraction], timestamps: Sequence[int]) -> list[int]:
    """Index of the frame on screen at each instant.

    A frame is shown from half a tick before its timestamp (containers that count milliseconds round) until the next
    frame is; the first is shown before that, too. Where frames usually come one tick apart, as in an AVI, timestamps
    count frames and nothing was rounded: there a frame is shown from its timestamp on, and a clip of constant frame
    rate gives the same frames whatever container it is in. Of frames with equal timestamps the last is shown.

    Args:
        instants: in ticks of the stream's time base.
        timestamps: of every frame in presentation order (not decreasing), in ticks; at least one.

    Raises:
        ValueError: ``timestamps`` is empty.
    """
    if not timestamps:
        raise ValueError("no frame has a timestamp")
    steps = sorted(later - earlier for earlier, later in pairwise(timestamps))
    half_ticks = 1 if steps and steps[len(steps) // 2] > 1 else 0
    ticks = [(2 * at.numerator + half_ticks * at.denominator) // (2 * at.denominator) for at in instants]
    return [max(0, bisect_right(timestamps, tick) - 1) for tick in ticks]
