"""Streams that need more than each packet in turn: what a good player shows at an instant is the frame that is sampled.

Every picture carries its number. Each clip is also compared with what the ffmpeg command shows.
"""

import io
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import av
import pytest

from service.video.decoder import DecodedClip, decode_clip
from tests.service.video.clips import Image, corners, counted, counts, encode, indices, middle_frames, read_count
from tests.service.video.oracle import assert_as_ffmpeg_shows, difference, ffmpeg, look_at
from tests.service.video.streams import (
    RATE,
    Coded,
    Sample,
    avc_entry,
    coded,
    flv_joined,
    later,
    matroska_joined,
    mp4,
    mux,
    samples,
    without_headers,
)

Options = Mapping[str, str]


def pictures(numbers: Iterable[int], width: int = 96, height: int = 64) -> list[Image]:
    return [counted(number, width, height) for number in numbers]


def assert_shown(
    data: bytes,
    path: Path,
    *,
    frames: int,
    seconds: float | None = None,
    shown: Sequence[int] | None = None,
    by_ffmpeg: bool = True,
) -> DecodedClip:
    """Assert that a clip has so many frames and shows each at its time.

    Args:
        data: A clip whose pictures carry their indices.
        path: Where to write it for the ffmpeg command.
        frames: How many frames it shows.
        seconds: How long it is (default: as long as the frames at the usual rate).
        shown: The frames at the sampled instants (default: those of a constant rate).
        by_ffmpeg: Whether ffmpeg shows the clip in the same way. It does not join restarts in all containers.
    """
    clip = decode_clip(data)
    assert clip.facts.frames == frames
    assert clip.facts.duration_s == pytest.approx(frames / RATE if seconds is None else seconds, abs=0.002)
    assert indices(clip) == (middle_frames(frames) if shown is None else shown)
    assert counts(clip) == indices(clip)
    assert clip.facts.damaged_frames == 0
    if by_ffmpeg:
        path.write_bytes(data)
        assert_as_ffmpeg_shows(clip, path)
    return clip


def on_screen(times: Sequence[float], seconds: float) -> list[int]:
    """The frames on screen in the middles of forty equal parts, if each is shown at its time."""
    instants = [times[0] + (k + 0.5) * seconds / 40 for k in range(40)]
    return [max(n for n, time in enumerate(times) if n == 0 or time <= instant + 0.0005) for instant in instants]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clip"


# Groups of three frames: of 240 frames every sixth is sampled, so that every other group is skipped.
FRAMES, HALF = 240, 120
LARGER = (128, 80)
SETS: dict[str, tuple[Options, Options]] = {
    "libx264": (
        {"x264-params": "keyint=3:bframes=0:cabac=1:8x8dct=1:ref=2:scenecut=0"},
        {"x264-params": "keyint=3:bframes=0:cabac=0:8x8dct=0:ref=1:scenecut=0"},
    ),
    "libx265": (
        {"x265-params": "log-level=none:keyint=3:min-keyint=3:bframes=0:ctu=32:amp=0:sao=1:scenecut=0"},
        {"x265-params": "log-level=none:keyint=3:min-keyint=3:bframes=0:ctu=16:sao=0:sign-hide=0:scenecut=0"},
    ),
    "mpeg4": ({"g": "3", "sc_threshold": "0"}, {"g": "3", "mpeg_quant": "1", "sc_threshold": "0"}),
    "mpeg2video": ({"g": "3"}, {"g": "3"}),
    "mpeg1video": ({"g": "3"}, {"g": "3"}),
    "libvpx": ({"g": "3", "auto-alt-ref": "0"}, {"g": "3", "auto-alt-ref": "0"}),
    "libvpx-vp9": ({"g": "3", "lag-in-frames": "0"}, {"g": "3", "lag-in-frames": "0"}),
    "libsvtav1": ({"g": "3", "preset": "12"}, {"g": "3", "preset": "12"}),
}
INTO = {
    "libx264": "mp4 matroska mpegts avi",
    "libx265": "mp4 matroska mpegts",
    "mpeg4": "matroska avi mpegts",
    "mpeg2video": "matroska mpegts avi",
    "mpeg1video": "matroska",
    "libvpx": "webm avi",
    "libvpx-vp9": "webm mp4",
    "libsvtav1": "webm mp4",
}
IN_STREAM = ("libvpx", "libvpx-vp9", "libsvtav1")  # each keyframe has its headers


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence the log of the AV1 encoder."""
    monkeypatch.setenv("SVT_LOG", "0")


def two_kinds(codec: str, *, larger: bool, change: int = HALF) -> tuple[list[Coded], list[Coded]]:
    """Two halves of a clip with other parameter sets, which only the first packet of each half carries."""
    first, second = SETS[codec]
    size = LARGER if larger else (96, 64)
    one = coded(pictures(range(change)), codec=codec, options=first)
    two = coded(pictures(range(change, FRAMES), *size), codec=codec, options=second)
    if codec not in IN_STREAM:
        one, two = without_headers(one, codec), without_headers(two, codec)
    return one, two


def without_tables(packet: Coded) -> Coded:
    """A JPEG without its quantization and Huffman tables (ITU-T T.81, B.5, "abbreviated format")."""
    data, place = packet.data[:2], 2
    while packet.data[place + 1] != 0xDA:  # start of scan
        end = place + 2 + int.from_bytes(packet.data[place + 2 : place + 4])
        if packet.data[place + 1] not in {0xDB, 0xC4}:
            data += packet.data[place:end]
        place = end
    return replace(packet, data=data + packet.data[place:])


class TestParameterSets:
    """They change in a group of pictures that holds no sampled frame, and hold for those after it."""

    @pytest.mark.parametrize("larger", [False, True], ids=["same size", "larger"])
    @pytest.mark.parametrize(
        ("codec", "container"), [(codec, container) for codec, all_ in INTO.items() for container in all_.split()]
    )
    def test_sets_in_the_stream_hold_for_all_pictures_after_them(
        self, codec: str, container: str, larger: bool, path: Path
    ) -> None:
        one, two = two_kinds(codec, larger=larger)

        data = mux([*one, *later(two, HALF)], codec=codec, container=container, options=SETS[codec][0])

        if larger and codec.startswith("mpeg") and codec != "mpeg4":
            # FFmpeg's decoders forget the last picture before the size changes.
            path.write_bytes(data)
            assert_as_ffmpeg_shows(decode_clip(data), path)
        else:
            assert_shown(data, path, frames=FRAMES)

    def test_the_first_sets_may_come_back(self, path: Path) -> None:
        codec = "libx264"
        one, two = two_kinds(codec, larger=False, change=60)
        three = without_headers(coded(pictures(range(HALF, FRAMES)), options=SETS[codec][0]), codec)

        data = mux([*one, *later(two[:60], 60), *later(three, HALF)], container="mpegts", options=SETS[codec][0])

        assert_shown(data, path, frames=FRAMES)

    @pytest.mark.parametrize("larger", [False, True], ids=["same size", "larger"])
    def test_a_second_sample_description_of_an_mp4_holds_for_its_samples(self, larger: bool, path: Path) -> None:
        one, two = two_kinds("libx264", larger=larger)
        entries = [avc_entry(one[0].data, 96, 64), avc_entry(two[0].data, *(LARGER if larger else (96, 64)))]
        one, two = (without_headers(part, "libx264", but_first=False) for part in (one, two))

        data = mp4(([*samples(one), *samples(two, description=2)], entries))

        assert_shown(data, path, frames=FRAMES)

    def test_sample_descriptions_may_alternate(self, path: Path) -> None:
        one, two = (
            without_headers(coded(pictures(range(FRAMES)), options=options), "libx264", but_first=False)
            for options in SETS["libx264"]
        )
        heads = [coded(pictures([0]), options=options)[0].data for options in SETS["libx264"]]
        content = [
            samples(one if place // 12 % 2 == 0 else two, description=1 + place // 12 % 2)[place]
            for place in range(FRAMES)
        ]

        assert_shown(mp4((content, [avc_entry(head, 96, 64) for head in heads])), path, frames=FRAMES)

    @pytest.mark.parametrize("larger", [False, True], ids=["same size", "larger"])
    def test_a_second_sequence_header_of_an_flv_holds_for_the_tags_after_it(self, larger: bool, path: Path) -> None:
        parts = [without_headers(part, "libx264", but_first=False) for part in two_kinds("libx264", larger=larger)]
        one = mux(parts[0], container="flv", options=SETS["libx264"][0])
        width, height = LARGER if larger else (96, 64)
        two = mux(parts[1], container="flv", options=SETS["libx264"][1], width=width, height=height)

        assert_shown(flv_joined(one, two, shift_ms=[0, 1000 * HALF // RATE]), path, frames=FRAMES)

    @pytest.mark.parametrize("container", ["avi", "matroska", "mov"])
    def test_tables_of_motion_jpeg_that_only_the_first_picture_has_hold_for_all(
        self, container: str, path: Path
    ) -> None:
        packets = coded(pictures(range(FRAMES)), codec="mjpeg", options={"huffman": "default"})

        data = mux([packets[0], *map(without_tables, packets[1:])], codec="mjpeg", container=container)

        assert_shown(data, path, frames=FRAMES)
