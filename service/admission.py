"""Admission control: limits how many clips the service holds at once and refuses the rest with a retry hint."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator

from service.errors import Overloaded

# Weight of the newest clip in the moving average of seconds per clip. At an eighth, a change of load shows within ten
# clips, and one outlier is soon forgotten.
SMOOTHING = 0.125


class Admission:
    """Admits ``capacity`` clips at a time, and measures the rate at which the engine runs them.

    A clip is refused if, at that rate, it would not be answered by its deadline: it would only delay others. Clips that
    leave without having been run say nothing about the rate. Use it from one event loop only.

    Args:
        capacity: Number of clips that may be inside at a time.
        clock: Returns the time in seconds; deadlines are on this clock.

    Attributes:
        capacity: As given; it may be changed at any time.
        inside: Number of clips inside now.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.inside = 0
        self._clock = clock
        self._clip_s: float | None = None  # seconds from the end of one clip's run to that of the next
        self._last_run = -math.inf

    def check(self, deadline: float, clips: int = 1) -> None:
        """Check whether clips would be admitted together now.

        Args:
            deadline: When their answers are due.
            clips: Number of clips.

        Raises:
            Overloaded: They would not be admitted.
        """
        clip_s = self._clip_s or 0
        if self.inside + clips > self.capacity:
            reason = f"of at most {self.capacity}"
        elif self.inside and self._clock() + clip_s * (self.inside + clips) > deadline:
            reason = "so another would not be answered in time"
        else:
            return
        raise Overloaded(
            f"{self.inside} clips are waiting or in progress, {reason}; try again later", clip_s * self.inside
        )

    @contextlib.contextmanager
    def place(self, deadline: float, clips: int = 1) -> Iterator[Callable[[], None]]:
        """Hold places for clips during a ``with`` statement.

        Args:
            deadline: When their answers are due.
            clips: Number of clips.

        Returns:
            A function to be called for each clip that the engine has run, even after the end of the statement: the
            engine finishes a batch that has begun whether or not anybody waits for it.

        Raises:
            Overloaded: They are not admitted.
        """
        self.check(deadline, clips)
        self.inside += clips
        try:
            yield functools.partial(self._learn, self._clock())
        finally:
            self.inside -= clips

    def _learn(self, entered: float) -> None:
        """Measure the rate: the engine has run a clip that entered at this time."""
        now = self._clock()
        clip_s = now - max(entered, self._last_run)
        self._last_run = now
        before = clip_s if self._clip_s is None else self._clip_s
        self._clip_s = before + SMOOTHING * (clip_s - before)
