"""How ``limelight predict`` treats a service that is busy: it waits as told, and asks less at a time."""

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_WAIT_S = 300.0  # for one clip, unless the user says otherwise
LEAST_WAIT_S, LONGEST_WAIT_S = 0.1, 30  # without a word of the service, between two requests for a clip


class Patience:
    """How long to wait for the answer for one clip.

    Args:
        most_s: Seconds after the first refusal in which the clip may be sent again.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._deadline: float | None = None
        self._pause_s = 1.0

    def wait_s(self, retry_after: str | None) -> float | None:
        """Return the seconds to wait after a refusal; ``None`` if patience ends before.

        Args:
            retry_after: The header Retry-After of the refusal, if it has one. Otherwise each wait is twice the last.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + self._most_s
        wait_s = retry_after_s(retry_after) if retry_after else None
        if wait_s is None:
            wait_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_WAIT_S)
        wait_s = max(wait_s, LEAST_WAIT_S)
        return wait_s if now + wait_s <= self._deadline else None


def retry_after_s(header: str) -> float | None:
    """Return the seconds that the header Retry-After asks for, as a number or as a date (RFC 9110, section 10.2.3).

    Returns:
        ``None`` if it is neither.
    """
    try:
        if header.strip().isdecimal():
            return float(header)
        date = parsedate_to_datetime(header)
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None


class Pace:
    """How many requests are in progress at a time, whichever threads send them.

    A service that refuses one halves the number, and none is sent while it asks to wait. Answers raise it again.

    Args:
        most: The largest number.
    """

    def __init__(self, most: int) -> None:
        self._most = self._allowed = float(most)
        self._active = 0
        self._resume = 0.0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until a request may be sent; the body of ``with`` sends it and receives its answer."""
        with self._changed:
            while (left_s := self._resume - time.monotonic()) > 0 or self._active + 1 > self._allowed:
                self._changed.wait(left_s if left_s > 0 else None)
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def slow_down(self, wait_s: float) -> None:
        """Send none for some seconds, and then half as many as now. Call it within the turn that was refused."""
        with self._changed:
            now = time.monotonic()
            if now >= self._resume:  # otherwise another request of the same time has halved the number
                self._allowed = max(1.0, min(self._allowed, self._active) / 2)
            self._resume = max(self._resume, now + wait_s)

    def speed_up(self) -> None:
        """Allow one more request when as many as are allowed have been answered."""
        with self._changed:
            self._allowed = min(self._most, self._allowed + 1 / self._allowed)
