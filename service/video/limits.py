"""Limits on one clip, and the checks that raise the matching error."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from service.errors import ClipTooLong, DecodeTimeout, ResolutionTooLarge


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits on one clip.

    Attributes:
        max_duration_s: Length of the video, in seconds.
        max_pixels: Pixels per frame, width × height of the decoded picture.
        max_frames: Frames in the video stream.
        timeout_s: Processor time that decoding may take, in seconds.
    """

    max_duration_s: float = 600.0
    max_pixels: int = 9_500_000
    max_frames: int = 20_000
    timeout_s: float = 20.0

    def check_size(self, width: int, height: int) -> None:
        """Raise ``ResolutionTooLarge`` if a frame of this size, in pixels, is too large."""
        if width * height > self.max_pixels:
            raise ResolutionTooLarge(f"frames of {width}×{height} have more than the {self.max_pixels} pixels allowed")

    def check_frames(self, frames: int) -> None:
        """Raise ``ClipTooLong`` if a clip has too many frames."""
        if frames > self.max_frames:
            raise ClipTooLong(f"the clip has more than the {self.max_frames} frames allowed")

    def check_duration(self, seconds: Fraction) -> None:
        """Raise ``ClipTooLong`` if a clip is too long."""
        if seconds > self.max_duration_s:
            raise ClipTooLong(f"the clip lasts {float(seconds):.0f} s, more than the {self.max_duration_s:g} s allowed")

    def stopwatch(self) -> Callable[[], None]:
        """Start the time limit. It counts the processor time of the calling thread.

        The time that passes on the clock says more about the machine than about the clip.

        Returns:
            A function that raises ``DecodeTimeout`` once the time is over. Call it often while decoding, from the same
            thread.
        """
        next_look, began = time.monotonic() + self.timeout_s, time.thread_time()

        def check_time() -> None:
            nonlocal next_look
            # Reading a thread's processor time is a system call. It grows no faster than the clock's time.
            now = time.monotonic()
            if now < next_look:
                return
            left_s = self.timeout_s - (time.thread_time() - began)
            if left_s < 0:
                raise self.timed_out()
            next_look = now + left_s

        return check_time

    def timed_out(self) -> DecodeTimeout:
        """Return the error of a clip that takes too long."""
        return DecodeTimeout(f"the clip takes more than {self.timeout_s:g} s of processor time to decode")
