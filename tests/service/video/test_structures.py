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
from tests.service.video.clips import counted, indices, read_count
from tests.service.video.naive import naive_decode
from tests.service.video.oracle import assert_timed_as_ffmpeg_does, ffmpeg, look_at
from tests.service.video.streams import Coded, coded, later, mux, without_headers

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "15"))

CONTAINERS = {
    "libx264": ["mp4", "mov", "matroska", "mpegts", "flv", "avi"],
    "libx265": ["mp4", "matroska", "mpegts"],
    "mpeg4": ["mp4", "matroska", "mpegts", "avi"],
    "mpeg2video": ["matroska", "mpegts", "avi"],
    "libvpx": ["webm", "avi"],
    "libvpx-vp9": ["webm", "mp4"],
}
# Options that change parameter sets, behind those that they follow.
OTHER_SETS = {"libx264": ":cabac=0:8x8dct=0:ref=1", "libx265": ":ctu=16:sao=0"}
PARAMS = {"libx264": "x264-params", "libx265": "x265-params"}
SUFFIXES = {"matroska": "mkv", "mpegts": "ts"}
CLOCKED = {"mpegts"}  # containers whose recordings ffmpeg joins


@dataclass(frozen=True, slots=True)
class Structure:
    """How a clip is made.

    Attributes:
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        options: Options of the encoder.
        change: Options of the second half's encoder, whose parameter sets come once; ``None`` if they are the same.
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
    change: dict[str, str] | None
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
        options = {"g": str(keyint), "bf": str(min(bf, 2) if keyint > 1 else 0)}  # else the encoder loses frames
    else:
        options = {"g": str(keyint), "deadline": "realtime", "cpu-used": "8"}
    frames = draw(st.integers(20, 240))
    steps = [1] * (frames - 1)
    for place in draw(st.lists(st.integers(8, frames - 10), max_size=3)):
        steps[place] = draw(st.integers(2, 100))
    change = draw(st.booleans()) and codec in OTHER_SETS
    clocked = container in CLOCKED and max(steps) == 1  # with a gap beside it, ffmpeg's guess of a jump is rough
    return Structure(
        codec=codec,
        container=container,
        options=options,
        change=options | {PARAMS[codec]: options[PARAMS[codec]] + OTHER_SETS[codec]} if change else None,
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
    if structure.change:
        packets = _with_change(
            packets, coded(drawn, codec=structure.codec, options=structure.change, pts=times), structure.codec
        )
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


def _with_change(one: Sequence[Coded], two: Sequence[Coded], codec: str) -> list[Coded]:
    """Follow one way of encoding the pictures, and another from a keyframe near the middle on.

    Parameter sets are left out but where they change.
    """
    for place in _middle_first(len(one)):
        if one[place].key and two[place].key and _is_cut(one, place) and _is_cut(two, place):
            return [*without_headers(one[:place], codec), *without_headers(two[place:], codec)]
    return list(one)


def _middle_first(count: int) -> list[int]:
    return sorted(range(1, count), key=lambda place: abs(place - count // 2))


def _is_cut(packets: Sequence[Coded], place: int) -> bool:
    """Whether all pictures from a packet on are shown after all those before it."""
    return max(packet.pts for packet in packets[:place]) < min(packet.pts for packet in packets[place:])


def _with_jump(packets: Sequence[Coded], jump: int) -> list[Coded]:
    """Set the clock ahead at a keyframe near the middle."""
    for place in _middle_first(len(packets)):
        if packets[place].key and _is_cut(packets, place):
            return [*packets[:place], *later(packets[place:], jump)]
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
        assert_timed_as_ffmpeg_does(clip, path)
        pictures = look_at(path, indices(clip))
        shown = [read_count(pictures[index]) for index in indices(clip)]
        assert [read_count(frame) for frame in clip.frames] == shown
