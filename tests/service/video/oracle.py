"""An independent oracle: which frames the ffmpeg command shows, when, and what they look like.

The command is another version of FFmpeg than PyAV's, and does with a clip what players do: it decodes everything in
order, joins recordings whose timestamps start again, and turns pictures upright. Debian's does not crop as containers
ask for; newer versions do.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_high
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from service.video.decoder import DecodedClip

Image = npt.NDArray[np.uint8]

SIZE = 224
# How far apart two versions of swscale may be, in grey levels of 255 on average over a picture. Neighbouring frames of
# the clips that the tests render are further apart.
TOLERANCE = 4.0
IN_ORDER = ["-threads", "1"]  # threads of a decoder do not share tables that only one picture carries
FRAMES_AS_THEY_COME = ["-fps_mode", "passthrough"]  # by default some muxers repeat or drop frames for a constant rate
THE_CLIPS_OWN_TICKS = ["-enc_time_base", "-1"]  # by default times are rounded to the frame rate that ffmpeg guesses


@dataclass(frozen=True, slots=True)
class Showing:
    """When frames are shown.

    Attributes:
        times: When each frame is shown, in ticks, in the order of presentation.
        tick: Length of a tick, in seconds.
        last: How long the last frame is shown, in ticks; 0 if unknown.
    """

    times: list[int]
    tick: Fraction
    last: int

    @property
    def duration(self) -> Fraction:
        """From the first frame to the end of the last, in seconds."""
        return self.tick * (self.times[-1] - self.times[0] + (self.last or self.usual_step))

    @property
    def usual_step(self) -> int:
        """The median distance of two frames, in ticks; 1 if no frames are at different times."""
        steps = [later - earlier for earlier, later in pairwise(self.times)]
        return (median_high(steps) if steps else 0) or 1

    def sampled(self) -> list[int]:
        """The frame on screen in the middle of each fortieth of the clip (rule ``segment-center``).

        A frame counts from half a tick before its time, because containers round times to ticks, except where ticks
        count frames.
        """
        rounding = self.tick / 2 if self.usual_step > 1 else 0
        starts = [self.tick * (time - self.times[0]) - rounding for time in self.times]
        instants = [(k + Fraction(1, 2)) * self.duration / 40 for k in range(40)]
        return [max(0, sum(start <= instant for start in starts) - 1) for instant in instants]


def ffmpeg(*arguments: str | Path) -> bytes:
    """Return what the ffmpeg command writes to standard output; skip the test if it is not installed."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the ffmpeg command as the oracle")
    return subprocess.run(
        [program, "-nostdin", "-v", "error", *arguments], check=True, capture_output=True, timeout=120
    ).stdout


def watch(path: Path, stream: str = "V:0") -> Showing:
    """Let ffmpeg play a file, and note when it shows each frame.

    The muxer ``framecrc`` writes a line a frame: stream, decode time, presentation time, duration, size, checksum. The
    durations of decoded frames are ffmpeg's guess, so that the packets are written beside them, for their durations.
    ``-copyts`` is left out on purpose: with it, ffmpeg would not join recordings whose timestamps start again or jump.

    Args:
        path: The clip.
        stream: FFmpeg's specifier of the stream; by default the first video that is not a picture of an album.
    """
    decoded, copied = ["-map", f"0:{stream}", "-c:v:0", "rawvideo"], ["-map", f"0:{stream}", "-c:v:1", "copy"]
    flags = [*decoded, *copied, *FRAMES_AS_THEY_COME, *THE_CLIPS_OWN_TICKS]
    written = ffmpeg(*IN_ORDER, "-i", path, *flags, "-f", "framecrc", "-").decode().splitlines()
    ticks = dict(line.removeprefix("#tb ").split(": ") for line in written if line.startswith("#tb "))
    lines = [[int(value) for value in line.split(",")[:4]] for line in written if not line.startswith("#")]
    times = [pts for number, _, pts, _ in lines if number == 0]
    assert times, f"ffmpeg shows no frame of {path}"
    assert times == sorted(times), "ffmpeg shows frames in another order than their times"
    tick = Fraction(ticks["0"])
    _, last = max((pts, duration) for number, _, pts, duration in lines if number == 1)
    if ticks["1"] == "1/90000":  # MPEG's streams do not say how long a picture lasts
        return Showing(times, tick, 0)
    if len(times) > 1 and times[0] == times[-1]:  # only the order is left, and how long a frame usually lasts
        return Showing(list(range(len(times))), last * Fraction(ticks["1"]), 1)
    return Showing(times, tick, round(last * Fraction(ticks["1"]) / tick))


def look_at(path: Path, wanted: Sequence[int], stream: str = "V:0") -> dict[int, Image]:
    """Let ffmpeg play a file, and keep the wanted pictures: uint8 ``(224, 224, 3)``, RGB, by the frame's index.

    The filter ``select`` is not used: its count of frames starts again where the size of the pictures changes.
    """
    # As the service does: bilinear, and planar RGB first, whose conversion is the more exact one.
    scaling = f"scale={SIZE}:{SIZE}:flags=bilinear,format=gbrp,format=rgb24"
    flags = ["-map", f"0:{stream}", *FRAMES_AS_THEY_COME, "-vf", scaling]
    pixels = ffmpeg(*IN_ORDER, "-i", path, *flags, "-f", "rawvideo", "-")
    pictures = np.frombuffer(pixels, np.uint8).reshape(-1, SIZE, SIZE, 3)
    return {index: cast(Image, pictures[index]) for index in wanted}


def difference(one: Image, other: Image) -> float:
    """How far apart two square pictures are, in grey levels on average, when both are reduced to 56×56.

    So small, it does not matter that newer versions of FFmpeg scale interlaced pictures field by field.
    """
    small = [image.reshape(56, len(image) // 56, 56, len(image) // 56, 3).mean(axis=(1, 3)) for image in (one, other)]
    return float(np.abs(small[0] - small[1]).mean())


def assert_timed_as_ffmpeg_does(clip: DecodedClip, path: Path, stream: str = "V:0") -> None:
    """Assert that a decoded clip has ffmpeg's number of frames and duration, and is sampled at its times."""
    showing = watch(path, stream)
    assert clip.facts.frames == len(showing.times)
    assert clip.facts.duration_s == pytest.approx(float(showing.duration), abs=1.5 * float(showing.tick))
    assert [frame.index for frame in clip.sampled] == showing.sampled()
    assert clip.facts.damaged_frames == 0


def assert_as_ffmpeg_shows(clip: DecodedClip, path: Path, stream: str = "V:0") -> None:
    """Assert that a decoded clip has ffmpeg's frames, at ffmpeg's times."""
    assert_timed_as_ffmpeg_does(clip, path, stream)
    wanted = [frame.index for frame in clip.sampled]
    pictures = look_at(path, wanted, stream)
    far = {index: difference(ours, pictures[index]) for ours, index in zip(clip.frames, wanted, strict=True)}
    assert max(far.values()) < TOLERANCE, {index: value for index, value in far.items() if value >= TOLERANCE}
