"""Streams that need more than each packet in turn: what a good player shows at an instant is the frame that is sampled.

Every picture carries its number, and the ffmpeg command says when each is shown.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import pytest

from service.video.decoder import decode_clip
from tests.service.video.clips import Image, counted, counts, indices, middle_frames
from tests.service.video.oracle import assert_as_ffmpeg_shows, assert_timed_as_ffmpeg_does, ffmpeg
from tests.service.video.streams import (
    RATE,
    Coded,
    avc_entry,
    coded,
    flv_joined,
    later,
    matroska_joined,
    mp4,
    mux,
    samples,
    vfw,
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
) -> None:
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
        assert_timed_as_ffmpeg_does(clip, path)


def on_screen(times: Sequence[float], seconds: float) -> list[int]:
    """The frames on screen in the middles of forty equal parts, if each is shown at its time."""
    instants = [times[0] + (k + 0.5) * seconds / 40 for k in range(40)]
    return [max(n for n, time in enumerate(times) if n == 0 or time <= instant + 0.0005) for instant in instants]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clip"


# Groups of two frames: of 160 frames every fourth is sampled, so that every other group is skipped.
FRAMES, HALF = 160, 80
LARGER = (128, 80)
SETS: dict[str, tuple[Options, Options]] = {
    "libx264": (
        {"x264-params": "keyint=2:bframes=0:cabac=1:8x8dct=1:ref=2:scenecut=0"},
        {"x264-params": "keyint=2:bframes=0:cabac=0:8x8dct=0:ref=1:scenecut=0"},
    ),
    "libx265": (
        {"x265-params": "log-level=none:keyint=2:min-keyint=1:bframes=0:ctu=32:amp=0:sao=1:scenecut=0"},
        {"x265-params": "log-level=none:keyint=2:min-keyint=1:bframes=0:ctu=16:sao=0:sign-hide=0:scenecut=0"},
    ),
    "mpeg4": ({"g": "2", "sc_threshold": "0"}, {"g": "2", "mpeg_quant": "1", "sc_threshold": "0"}),
    "mpeg2video": ({"g": "2"}, {"g": "2"}),
    "mpeg1video": ({"g": "2"}, {"g": "2"}),
    "libvpx": ({"g": "2", "auto-alt-ref": "0"}, {"g": "2", "auto-alt-ref": "0"}),
    "libvpx-vp9": (
        {"g": "2", "deadline": "realtime", "cpu-used": "8"},
        {"g": "2", "deadline": "realtime", "cpu-used": "8"},
    ),
    "libsvtav1": ({"g": "2", "preset": "12"}, {"g": "2", "preset": "12"}),
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

    def test_the_size_of_the_clip_is_that_of_its_first_frame(self) -> None:
        one, two = two_kinds("libvpx-vp9", larger=True)

        facts = decode_clip(mux([*one, *later(two, HALF)], codec="libvpx-vp9", container="webm")).facts

        assert (facts.width, facts.height, facts.coded_width, facts.coded_height) == (96, 64, 96, 64)

    def test_the_first_sets_may_come_back(self, path: Path) -> None:
        codec = "libx264"
        one, two = two_kinds(codec, larger=False, change=40)
        three = without_headers(coded(pictures(range(HALF, FRAMES)), options=SETS[codec][0]), codec)

        data = mux([*one, *later(two[:40], 40), *later(three, HALF)], container="mpegts", options=SETS[codec][0])

        assert_shown(data, path, frames=FRAMES)

    @pytest.mark.parametrize("larger", [False, True], ids=["same size", "larger"])
    def test_a_second_sample_description_of_an_mp4_holds_for_its_samples(self, larger: bool, path: Path) -> None:
        one, two = two_kinds("libx264", larger=larger)
        entries = [avc_entry(one[0].data, 96, 64), avc_entry(two[0].data, *(LARGER if larger else (96, 64)))]
        one, two = (without_headers(part, "libx264", but_first=False) for part in (one, two))

        data = mp4([*samples(one), *samples(two, description=2)], entries)

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

        assert_shown(mp4(content, [avc_entry(head, 96, 64) for head in heads]), path, frames=FRAMES)

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


TWO_HALVES = {"bf": "2", "g": "20"}


def halves(container: str, codec: str = "libx264", muxing: Options | None = None) -> list[bytes]:
    """Two files, which hold the two halves of a clip, each from time 0 on."""
    options = {"auto-alt-ref": "0", "lag-in-frames": "0"} if codec == "libvpx" else TWO_HALVES
    return [
        mux(
            coded(pictures(range(start, start + HALF)), codec=codec, options=options),
            codec=codec,
            container=container,
            options=options,
            muxing=muxing,
        )
        for start in (0, HALF)
    ]


class TestTime:
    @pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
    @pytest.mark.parametrize("container", ["mpegts", "mpeg", "vob"])
    def test_recordings_joined_byte_by_byte_follow_each_other(self, codec: str, container: str, path: Path) -> None:
        data = b"".join(halves(container, codec))

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=container == "mpegts")

    def test_chained_ogg_files_follow_each_other(self, path: Path) -> None:
        """FFmpeg's demuxer hands out the headers of the second file as packets, which are no pictures."""
        assert_shown(b"".join(halves("ogg", "libvpx")), path, frames=FRAMES, by_ffmpeg=False)

    def test_flv_files_joined_tag_by_tag_follow_each_other(self, path: Path) -> None:
        assert_shown(flv_joined(*halves("flv")), path, frames=FRAMES, by_ffmpeg=False)

    @pytest.mark.parametrize(("codec", "container"), [("libx264", "matroska"), ("libvpx", "webm")])
    def test_matroska_files_joined_cluster_by_cluster_follow_each_other(
        self, codec: str, container: str, path: Path
    ) -> None:
        data = matroska_joined(*halves(container, codec, {"live": "1"}))

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=False)

    @pytest.mark.parametrize("jump", [15, 60, 5000], ids=["15 s", "a minute", "5000 s"])
    @pytest.mark.parametrize(
        ("codec", "container"), [("libx264", "mpegts"), ("mpeg2video", "mpegts"), ("libvpx", "ogg")]
    )
    def test_jumps_ahead_are_left_out_where_timestamps_may_jump(
        self, codec: str, container: str, jump: int, path: Path
    ) -> None:
        options = None if codec == "libvpx" else TWO_HALVES
        packets = coded(pictures(range(FRAMES)), codec=codec, options=options)
        at = next(place for place, packet in enumerate(packets) if packet.key and packet.pts >= 70)

        data = mux(
            [*packets[:at], *later(packets[at:], jump * RATE)], codec=codec, container=container, options=options
        )

        assert_shown(data, path, frames=FRAMES)

    @pytest.mark.parametrize(
        ("codec", "container"),
        [
            ("libx264", "mpegts"),
            ("mpeg2video", "mpegts"),
            ("mpeg2video", "mpeg"),
            ("libx264", "flv"),
            ("libx264", "mp4"),
        ],
    )
    def test_a_clock_may_jump_within_a_group_of_pictures(self, codec: str, container: str, path: Path) -> None:
        """Pictures before the jump are shown after some of those behind it."""
        packets = coded(pictures(range(FRAMES)), codec=codec, options=TWO_HALVES)
        at = next(n for n in range(70, FRAMES) if packets[n].pts < packets[n - 1].pts)

        data = mux(
            [*packets[:at], *later(packets[at:], 7200 * RATE)], codec=codec, container=container, options=TWO_HALVES
        )

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=container == "mpegts")

    @pytest.mark.parametrize(
        ("codec", "container"), [("libx264", "matroska"), ("mpeg4", "matroska"), ("mpeg2video", "mpeg")]
    )
    def test_a_clock_may_jump_where_decode_times_follow_from_presentation_times(
        self, codec: str, container: str, path: Path
    ) -> None:
        packets = coded(pictures(range(FRAMES)), codec=codec, options=TWO_HALVES)
        at = next(place for place, packet in enumerate(packets) if packet.key and packet.pts >= 70)

        data = mux(
            [*packets[:at], *later(packets[at:], 7200 * RATE)], codec=codec, container=container, options=TWO_HALVES
        )

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=False)

    @pytest.mark.parametrize("container", ["matroska", "flv", "mp4"])
    def test_a_picture_stays_for_a_minute_where_timestamps_do_not_jump(self, container: str, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "0", "g": "30"})
        times = [n / RATE + (60 if n >= HALF else 0) for n in range(FRAMES)]

        data = mux([*packets[:HALF], *later(packets[HALF:], 60 * RATE)], container=container, options={"bf": "0"})

        seconds = FRAMES / RATE + 60
        assert_shown(data, path, frames=FRAMES, seconds=seconds, shown=on_screen(times, seconds))

    @pytest.mark.parametrize("container", ["matroska", "flv", "mp4"])
    def test_a_clock_that_is_set_ahead_by_two_hours_is_no_pause(self, container: str, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "0", "g": "30"})

        data = mux([*packets[:HALF], *later(packets[HALF:], 7200 * RATE)], container=container, options={"bf": "0"})

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=False)

    @pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
    @pytest.mark.parametrize("container", ["mpegts", "mpeg"])
    def test_timestamps_may_wrap_at_33_bits(self, codec: str, container: str, path: Path) -> None:
        packets = later(coded(pictures(range(FRAMES)), codec=codec, options=TWO_HALVES), 95440 * RATE)

        data = mux(packets, codec=codec, container=container, options=TWO_HALVES)

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=container == "mpegts")

    @pytest.mark.parametrize(("codec", "container"), [("libx264", "matroska"), ("libx264", "flv"), ("libvpx", "webm")])
    def test_equal_timestamps_leave_the_order_and_the_declared_rate(
        self, codec: str, container: str, path: Path
    ) -> None:
        packets = [
            replace(packet, pts=0, dts=0)
            for packet in coded(
                pictures(range(FRAMES)), codec=codec, options={"bf": "0"} if codec == "libx264" else None
            )
        ]

        data = mux(packets, codec=codec, container=container)

        clip = decode_clip(data)
        assert clip.facts.frames == FRAMES
        assert indices(clip) == counts(clip) == middle_frames(FRAMES)

    def test_equal_decode_times_leave_the_order_even_if_presentation_times_differ_from_them(self) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "2"})
        stopped = [replace(packet, pts=packet.pts - packet.dts, dts=0) for packet in packets]

        clip = decode_clip(mux(stopped, container="flv", options={"bf": "2"}))

        assert clip.facts.frames == FRAMES
        assert indices(clip) == counts(clip) == middle_frames(FRAMES)

    @pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2"}], ids=["in order", "B-frames"])
    def test_equal_timestamps_of_an_mp4_leave_the_order(self, options: Options, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options=options)
        content = [replace(sample, duration=0, offset=0) for sample in samples(packets)]

        clip = decode_clip(mp4(content, [avc_entry(packets[0].data, 96, 64)]))

        assert clip.facts.frames == FRAMES
        assert indices(clip) == counts(clip) == middle_frames(FRAMES)

    @pytest.mark.parametrize("container", ["matroska", "flv"])
    def test_of_two_frames_at_the_same_time_the_second_is_shown(self, container: str, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "0"})
        paired = [replace(packet, pts=packet.pts // 2 * 2, dts=packet.dts // 2 * 2) for packet in packets]

        clip = decode_clip(mux(paired, container=container, options={"bf": "0"}))

        assert clip.facts.frames == FRAMES
        assert counts(clip) == indices(clip)
        assert all(index % 2 for index in indices(clip))


AVI_DELAYS: dict[str, tuple[str, Options, int]] = {
    "no delay": ("libx264", {"bf": "0"}, 0),
    "one frame": ("libx264", {"x264-params": "bframes=1:b-adapt=0:b-pyramid=none"}, 1),
    "two frames": ("libx264", {"x264-params": "bframes=3:b-adapt=0:b-pyramid=normal"}, 2),
    "as x264 likes": ("libx264", {"bf": "3"}, 2),
    "MPEG-4": ("mpeg4", {"bf": "2"}, 1),
    "MPEG-2": ("mpeg2video", {"bf": "2"}, 1),
}


class TestAVI:
    @pytest.mark.parametrize(("codec", "options", "delay"), AVI_DELAYS.values(), ids=AVI_DELAYS)
    @pytest.mark.parametrize("at", [3, 50, 147])
    def test_a_gap_is_where_the_decoder_shows_it(
        self, codec: str, options: Options, delay: int, at: int, path: Path
    ) -> None:
        """AVI has decode times only: a frame is shown when the packet is due that the decoder waits for."""
        packets = coded(pictures(range(150)), codec=codec, options=options)
        ticks = [place + (50 if place >= at else 0) for place in range(150)]
        moved = [replace(packet, pts=tick, dts=tick) for packet, tick in zip(packets, ticks, strict=True)]
        due = [*ticks[delay:], *(ticks[-1] + late for late in range(1, delay + 1))]
        seconds = (due[-1] + 1 - due[0]) / RATE

        data = mux(moved, codec=codec, container="avi", options=options)

        shown = on_screen([tick / RATE for tick in due], seconds)
        assert_shown(data, path, frames=150, seconds=seconds, shown=shown)

    @pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2"}], ids=["in order", "B-frames"])
    def test_each_frame_may_take_two_ticks(self, options: Options, path: Path) -> None:
        """Then ticks are those of fields."""
        packets = coded(pictures(range(150)), options=options)
        spaced = [replace(packet, pts=2 * place, dts=2 * place) for place, packet in enumerate(packets)]

        data = mux(spaced, container="avi", options=options)

        ticks = 2 * 149 + 1
        shown = [floor((k + 0.5) * ticks / 40 + 0.5) // 2 for k in range(40)]
        assert_shown(data, path, frames=150, seconds=ticks / RATE, shown=shown, by_ffmpeg=False)

    @pytest.mark.parametrize("container", ["matroska", "mp4"])
    def test_decode_times_may_be_copied_from_an_avi(self, container: str, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "2"})
        copied = [replace(packet, pts=place, dts=place) for place, packet in enumerate(packets)]

        data = mux(copied, container=container, options={"bf": "2"})

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=False)

    @pytest.mark.parametrize("stopped", [False, True], ids=["a clock", "equal times"])
    def test_decode_times_of_an_avi_may_be_in_matroska(self, stopped: bool, path: Path) -> None:
        packets = coded(pictures(range(FRAMES)), options={"bf": "2"})

        data = vfw([0 if stopped else 40 * n for n in range(FRAMES)], packets)

        assert_shown(data, path, frames=FRAMES, by_ffmpeg=False)


class TestEditLists:
    @pytest.mark.parametrize(
        "edits",
        [
            [(4000, 2080)],
            [(2000, 1080), (2000, 5080)],
            [(2000, 5080), (2000, 1080)],
            [(2000, 1080), (2000, 1080)],
            [(1000, -1), (4000, 1080)],
            [(8000, 80)],
            [(1480, 2000)],
            [(400, 1080), (600, -1), (400, 2080)],
        ],
        ids=["one", "two", "two in reverse", "one twice", "after nothing", "all", "between keyframes", "with a pause"],
    )
    def test_edits_choose_what_is_shown(self, edits: Sequence[tuple[int, int]], path: Path) -> None:
        packets = coded(pictures(range(200)), options={"bf": "2", "g": "20"})

        path.write_bytes(mp4(samples(packets), [avc_entry(packets[0].data, 96, 64)], edits=edits))

        assert_as_ffmpeg_shows(decode_clip(path), path)


def encode_twice(codec: str, path: Path, drawn: Sequence[Image], *options: str) -> None:
    """Let ffmpeg encode pictures in two passes, as alternate reference frames of libvpx need."""
    source = path.with_name("source.rgb")
    source.write_bytes(b"".join(picture.tobytes() for picture in drawn))
    size = f"{drawn[0].shape[1]}x{drawn[0].shape[0]}"
    reading = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(RATE), "-i", str(source)]
    coding = ["-c:v", codec, "-b:v", "150k", "-pix_fmt", "yuv420p", "-auto-alt-ref", "1", "-lag-in-frames", "16"]
    for number in "1", "2":
        passes = ["-pass", number, "-passlogfile", str(path.with_name("log"))]
        ffmpeg(*reading, *coding, *options, *passes, "-y", str(path))


class TestPackets:
    """Packets are not pictures."""

    @pytest.mark.parametrize("container", ["webm", "mkv", "avi"])
    def test_alternate_reference_frames_of_vp8_are_no_pictures(self, container: str, path: Path) -> None:
        path = path.with_suffix(f".{container}")
        encode_twice("libvpx", path, pictures(range(FRAMES)))
        with av.open(str(path)) as file:
            packets = sum(bool(packet.size) for packet in file.demux(video=0))
        assert packets > FRAMES

        clip = decode_clip(path)

        assert clip.facts.frames == FRAMES
        assert counts(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path)

    @pytest.mark.parametrize("every", [2, 7, 50])
    @pytest.mark.parametrize("container", ["webm", "matroska"])
    def test_hidden_frames_of_vp8_are_no_pictures(self, container: str, every: int, path: Path) -> None:
        """A hidden frame with another picture comes before every second, seventh or fiftieth frame."""
        numbers = [number for n in range(FRAMES) for number in ([9999, n] if n % every == 1 else [n])]
        options = {"auto-alt-ref": "0", "lag-in-frames": "0", "g": "1000"}
        packets, shown = [], 0
        for number, packet in zip(numbers, coded(pictures(numbers), codec="libvpx", options=options), strict=True):
            data = bytes([packet.data[0] & ~0x10, *packet.data[1:]]) if number == 9999 else packet.data  # "show_frame"
            packets.append(Coded(data, shown, shown, packet.key))
            shown += number != 9999

        assert_shown(mux(packets, codec="libvpx", container=container), path, frames=FRAMES)

    @pytest.mark.parametrize("container", ["webm", "mp4"])
    @pytest.mark.parametrize("codec", ["libvpx-vp9", "libsvtav1"])
    def test_hidden_frames_within_packets_are_no_pictures(self, codec: str, container: str, path: Path) -> None:
        path = path.with_suffix(f".{container}")
        if codec == "libvpx-vp9":
            encode_twice(codec, path, pictures(range(100)))
        else:
            packets = coded(pictures(range(100)), codec=codec, options={"preset": "10"})
            path.write_bytes(mux(packets, codec=codec, container=container))

        assert_shown(path.read_bytes(), path, frames=100)

    def test_hidden_frames_of_vp9_in_packets_of_their_own_are_no_pictures(self, path: Path) -> None:
        path = path.with_suffix(".webm")
        encode_twice("libvpx-vp9", path, pictures(range(100)))
        with av.open(str(path)) as file:
            packets = [
                Coded(bytes(packet), number, number, packet.is_keyframe)
                for number, packet in enumerate(file.demux(video=0))
                if packet.size
            ]
        split = [part for packet in packets for part in without_superframes(packet)]
        assert len(split) > len(packets)

        assert_shown(mux(split, codec="libvpx-vp9", container="webm"), path, frames=100)

    @pytest.mark.parametrize("container", ["avi", "matroska"])
    @pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video", "libvpx", "mjpeg"])
    def test_empty_packets_leave_the_frame_before_on_screen(self, codec: str, container: str, path: Path) -> None:
        options = {"bf": "0"} if codec == "libx264" else None
        packets = coded(pictures(range(100)), codec=codec, options=options)
        spread = [replace(packet, pts=3 * packet.pts, dts=3 * packet.dts) for packet in packets]
        empty = [Coded(b"", packet.pts + late, packet.dts + late, key=False) for packet in spread for late in (1, 2)]

        data = mux(sorted([*spread, *empty], key=lambda packet: packet.dts), codec=codec, container=container)

        path.write_bytes(data)
        clip = decode_clip(data)
        assert counts(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path)


def without_superframes(packet: Coded) -> list[Coded]:
    """The frames of a superframe of VP9 (Annex B), each in a packet of its own."""
    marker = packet.data[-1]
    if marker >> 5 != 0b110:
        return [packet]
    frames, bytes_a_size = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = packet.data[-1 - frames * bytes_a_size : -1]
    sizes = [
        int.from_bytes(index[place * bytes_a_size : (place + 1) * bytes_a_size], "little") for place in range(frames)
    ]
    ends = [sum(sizes[: place + 1]) for place in range(frames)]
    parts = [packet.data[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return [replace(packet, data=part, key=packet.key and not place) for place, part in enumerate(parts)]


def with_still(container: str, *, still_first: bool, still_frames: int = 1) -> bytes:
    """A clip of 75 frames beside a track with one larger picture, as "motion photos" have."""
    file = io.BytesIO()
    tracks = [("video", pictures(range(75))), ("still", pictures([9999] * still_frames, 480, 320))]
    with av.open(file, "w", format=container) as output:
        streams = {}
        for name, drawn in reversed(tracks) if still_first else tracks:
            stream = output.add_stream("libx264", rate=RATE, options={"bf": "0"})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = drawn[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            streams[name] = stream
        output.start_encoding()
        for name, drawn in tracks:
            for packet in coded(drawn, options={"bf": "0"}):
                written = av.Packet(packet.data)
                written.stream, written.time_base = streams[name], Fraction(1, RATE)
                written.pts, written.dts, written.duration = packet.pts, packet.dts, 1
                written.is_keyframe = packet.key
                output.mux(written)
    return file.getvalue()


class TestTracks:
    @pytest.mark.parametrize("still_first", [False, True], ids=["video first", "still first"])
    @pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts", "avi"])
    def test_the_video_is_shown_and_not_the_larger_still(self, container: str, still_first: bool, path: Path) -> None:
        path.write_bytes(with_still(container, still_first=still_first))

        clip = decode_clip(path)

        assert clip.facts.frames == 75
        assert counts(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path, "v:1" if still_first else "v:0")


class TestPictures:
    @pytest.mark.parametrize("container", ["mp4", "matroska"])
    @pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4", "mjpeg"])
    def test_sizes_that_are_no_multiple_of_a_block_are_shown_whole(
        self, codec: str, container: str, path: Path
    ) -> None:
        drawn = pictures(range(50), 90, 70)

        data = mux(coded(drawn, codec=codec), codec=codec, container=container, width=90, height=70)

        assert_shown(data, path, frames=50)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
    def test_interlaced_pictures_are_shown_as_coded(self, container: str, path: Path) -> None:
        options = {"x264-params": "interlaced=1:bframes=2:keyint=25"}
        data = mux(coded(pictures(range(FRAMES)), options=options), container=container, options=options)

        assert_shown(data, path, frames=FRAMES)
