"""How many clips may come in, and what those hear that may not."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from service.errors import Overloaded

# The share of the newest clip in what is known of the rate: a change is seen within ten clips, an odd one forgotten.
NEWEST = 0.125


class Admission:
    """Lets in `capacity` clips at a time, and measures how fast they leave.

    A clip that could not be answered by its deadline, at the rate at which those before it leave, is not let in: it
    would only be in their way. Belongs to one event loop.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.inside = 0
        self._clock = clock
        self._clip_s: float | None = None  # one clip leaves in so much time, while others wait to
        self._last_left = -math.inf

    def check(self, deadline: float, clips: int = 1) -> None:
        """Raises Overloaded where so many clips would not be let in together now. `deadline` is on the clock."""
        clip_s = self._clip_s or 0
        if self.inside + clips > self.capacity:
            reason = "no more are accepted"
        elif self.inside and self._clock() + clip_s * (self.inside + clips) > deadline:
            reason = "more would not be answered in time"
        else:
            return
        raise Overloaded(f"{self.inside} clips are waiting or being worked on, {reason}", clip_s * self.inside)

    @contextlib.contextmanager
    def place(self, deadline: float, clips: int = 1) -> Iterator[None]:
        """Be inside. Only those that leave without an exception tell something of the rate. Raises Overloaded."""
        self.check(deadline, clips)
        self.inside += clips
        came = self._clock()
        try:
            yield
            self._learn((self._clock() - max(came, self._last_left)) / clips)
        finally:
            self.inside -= clips
            self._last_left = self._clock()

    def _learn(self, clip_s: float) -> None:
        before = clip_s if self._clip_s is None else self._clip_s
        self._clip_s = before + NEWEST * (clip_s - before)
