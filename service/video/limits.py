"""What one clip may cost. Each check raises the error that says so."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from service.errors import ClipTooLong, DecodeTimeout, ResolutionTooLarge


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one clip may cost: seconds of video, pixels a frame, frames, and seconds of decoding."""

    max_duration_s: float = 600.0
    max_pixels: int = 9_500_000
    max_frames: int = 20_000
    timeout_s: float = 20.0

    def check_size(self, width: int, height: int) -> None:
        """Raises ResolutionTooLarge."""
        if width * height > self.max_pixels:
            raise ResolutionTooLarge(f"frames of {width}×{height} are more than the {self.max_pixels} pixels allowed")

    def check_frames(self, frames: int) -> None:
        """Raises ClipTooLong."""
        if frames > self.max_frames:
            raise ClipTooLong(f"the clip has more than the {self.max_frames} frames allowed")

    def check_duration(self, seconds: Fraction) -> None:
        """Raises ClipTooLong."""
        if seconds > self.max_duration_s:
            raise ClipTooLong(f"the clip lasts {float(seconds):.0f} s, more than the {self.max_duration_s:g} s allowed")

    def stopwatch(self) -> Callable[[], None]:
        """Starts the clock. What is returned raises DecodeTimeout when it is called too late."""
        deadline = time.monotonic() + self.timeout_s

        def check_time() -> None:
            if time.monotonic() > deadline:
                raise DecodeTimeout(f"the clip takes more than {self.timeout_s:g} s to decode")

        return check_time
