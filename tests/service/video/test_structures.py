"""Clips of random structure have the frames of a full decode, at the times at which the ffmpeg command shows them.

``HYPOTHESIS_EXAMPLES`` sets how many are tried.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st

from service.video.decoder import decode_clip
from tests.service.video.clips import counted, indices
from tests.service.video.naive import naive_decode
from tests.service.video.oracle import assert_as_ffmpeg_shows, ffmpeg
from tests.service.video.streams import Coded, coded, later, mux

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "15"))

CONTAINERS = {
    "libx264": ["mp4", "mov", "matroska", "mpegts", "flv", "avi"],
    "libx265": ["mp4", "matroska", "mpegts"],
    "mpeg4": ["mp4", "matroska", "mpegts", "avi"],
    "mpeg2video": ["matroska", "mpegts", "avi"],
    "libvpx": ["webm", "avi"],
    "libvpx-vp9": ["webm", "mp4"],
}
SUFFIXES = {"matroska": "mkv", "mpegts": "ts"}
CLOCKED = {"mpegts"}  # containers whose recordings ffmpeg joins


@dataclass(frozen=True, slots=True)
class Structure:
    """How a clip is made.

    Attributes:
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        options: Options of the encoder.
        width: In pixels; not always a multiple of a block, so that decoders crop.
        height: In pixels.
        steps: From each frame to the next, in 1/25 s; longer ones are gaps. None is near an end, since it is not agreed
            how long the last frame is shown after one, nor when a recording begins that starts with one.
        jump: Frames by which the clock is set ahead in the middle, or ``None``.
        restart: Whether a second recording follows, whose clock starts at zero.
        cut_s: Seconds that are cut off at the start without encoding anew, as an edit list or as pictures to skip.
    """

    codec: str
    container: str
    options: dict[str, str]
    width: int
    height: int
    steps: list[int]
    jump: int | None
    restart: bool
    cut_s: float


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    codec = draw(st.sampled_from(sorted(CONTAINERS)))
    container = draw(st.sampled_from(CONTAINERS[codec]))
    keyint, bf = draw(st.sampled_from([1, 2, 5, 12, 30, 250])), draw(st.integers(0, 4))
    pyramid, open_gop, interlaced = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    if codec == "libx264":
        params = f"keyint={keyint}:bframes={bf}:b-adapt=0:b-pyramid={'normal' if pyramid else 'none'}"
        options = {"x264-params": f"{params}:open-gop={open_gop:d}:interlaced={interlaced:d}"}
    elif codec == "libx265":
        params = f"log-level=none:keyint={keyint}:bframes={bf}:b-adapt=0:b-pyramid={pyramid:d}:open-gop={open_gop:d}"
        options = {"x265-params": params, "preset": "ultrafast"}
    elif codec in {"mpeg4", "mpeg2video"}:
        options = {"g": str(keyint), "bf": str(min(bf, 2))}
    else:
        options = {"g": str(keyint), "deadline": "realtime", "cpu-used": "8"}
    frames = draw(st.integers(20, 100))
    steps = [1] * (frames - 1)
    for place in draw(st.lists(st.integers(8, frames - 10), max_size=3)):
        steps[place] = draw(st.integers(2, 100))
    clocked = container in CLOCKED and max(steps) == 1  # with a gap beside it, ffmpeg's guess of a jump is rough
    return Structure(
        codec=codec,
        container=container,
        options=options,
        width=draw(st.sampled_from([96, 90, 112])),
        height=draw(st.sampled_from([64, 68])),  # a multiple of 4, as interlaced pictures need
        steps=steps,
        jump=draw(st.none() | st.integers(300, 100_000)) if clocked else None,
        restart=draw(st.booleans()) if clocked else False,
        cut_s=draw(st.sampled_from([0, 0, 0.32, 1])) if container in {"mp4", "mov", "matroska"} else 0,
    )


def write(structure: Structure, path: Path) -> None:
    """Render a clip."""
    times = [0, *accumulate(structure.steps)]
    drawn = [counted(number, structure.width, structure.height) for number in range(len(times))]
    packets = coded(drawn, codec=structure.codec, options=structure.options, pts=times)
    if structure.jump:
        packets = _with_jump(packets, structure.jump)
    if structure.container == "avi":  # its times are decode times
        ticks = sorted(packet.pts for packet in packets)
        packets = [replace(packet, pts=tick, dts=tick) for packet, tick in zip(packets, ticks, strict=True)]
    data = mux(
        packets,
        codec=structure.codec,
        container=structure.container,
        options=structure.options,
        width=structure.width,
        height=structure.height,
    )
    path.write_bytes(data * 2 if structure.restart else data)
    if 0 < structure.cut_s < times[-1] / 25 / 2:
        whole = path.rename(path.with_stem("whole"))
        ffmpeg("-ss", str(structure.cut_s), "-i", whole, "-c", "copy", "-y", path)


def _with_jump(packets: Sequence[Coded], jump: int) -> list[Coded]:
    """Set the clock ahead at the keyframe nearest to the middle that has no picture before it on screen after it."""
    for place in sorted(range(1, len(packets)), key=lambda place: abs(place - len(packets) // 2)):
        before, after = packets[:place], packets[place:]
        if packets[place].key and max(packet.pts for packet in before) < min(packet.pts for packet in after):
            return [*before, *later(after, jump)]
    return list(packets)


@settings(max_examples=EXAMPLES)
@given(structures())
def test_a_clip_of_any_structure_has_the_frames_of_a_full_decode_at_their_times(structure: Structure) -> None:
    note(repr(structure))  # Hypothesis leaves it out
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{SUFFIXES.get(structure.container, structure.container)}"
        write(structure, path)

        clip = decode_clip(path)

        note(f"{clip.facts}, {indices(clip)}")
        naive = naive_decode(path)
        assert clip.facts.frames == len(naive)
        np.testing.assert_array_equal(clip.frames, [naive[index].image for index in indices(clip)])
        assert_as_ffmpeg_shows(clip, path)
