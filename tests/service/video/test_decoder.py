"""The decoder: which frames it samples, which facts it reports, and how it handles damage and limits.

The frames of the test clips show their number.
"""

import io
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import (
    ClipError,
    ClipTooLong,
    CorruptClip,
    DecodeTimeout,
    NoFrames,
    ResolutionTooLarge,
)
from service.video.decoder import DecodeLimits, decode_clip
from tests.service.video.clips import (
    NOT_CODED,
    QUIET,
    Change,
    encode,
    indices,
    middle_frames,
    numbered,
    numbered_clip,
    numbers,
    refusal,
    with_content,
)
from tests.service.video.naive import assert_same_as_naive, naive_decode


class TestSampledFrames:
    @pytest.mark.parametrize("frames", [1, 2, 7, 39, 40, 41, 80, 100])
    @pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("mpeg4", "mov")])
    def test_the_middles_of_forty_segments_are_sampled(self, frames: int, codec: str, container: str) -> None:
        clip = decode_clip(numbered_clip(frames, codec=codec, container=container))

        assert clip.frames.shape == (40, 224, 224, 3)
        assert clip.frames.dtype == np.uint8
        assert indices(clip) == middle_frames(frames)
        assert numbers(clip) == middle_frames(frames)

    def test_sampled_times_are_in_seconds_after_the_first_frame(self) -> None:
        clip = decode_clip(numbered_clip(50, pts=range(30, 80)))

        assert [frame.time_s for frame in clip.sampled] == pytest.approx([(k + 0.5) * 2 / 40 for k in range(40)])

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
    @pytest.mark.parametrize(
        "options", [{"bf": "3"}, {"bf": "3", "g": "10"}, {"x264-params": "open-gop=1:keyint=8:bframes=3"}]
    )
    def test_a_clip_with_b_frames_is_sampled_in_presentation_order(
        self, container: str, options: Mapping[str, str]
    ) -> None:
        clip = decode_clip(numbered_clip(100, container=container, options=options))

        assert numbers(clip) == middle_frames(100)

    @pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
    def test_an_avi_whose_timestamps_are_decode_times_is_sampled_in_presentation_order(self, codec: str) -> None:
        clip = decode_clip(numbered_clip(80, codec=codec, container="avi", options={"bf": "2", "b_strategy": "0"}))

        assert numbers(clip) == middle_frames(80)
        assert indices(clip) == numbers(clip)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv", "avi"])
    def test_the_container_does_not_change_the_sampled_frames(self, container: str) -> None:
        assert numbers(decode_clip(numbered_clip(100, container=container))) == middle_frames(100)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
    def test_a_variable_frame_rate_is_followed(self, container: str) -> None:
        pts = [*range(10), *range(20, 100, 10), *range(100, 120)]  # quick, slow, quick
        clip = decode_clip(numbered_clip(len(pts), container=container, pts=pts))

        on_screen = [max(n for n, shown_from in enumerate(pts) if shown_from <= 3 * k + 1.5) for k in range(40)]
        assert numbers(clip) == on_screen
        assert indices(clip) == on_screen

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])  # AVI always starts at zero
    def test_a_late_start_does_not_change_the_sampled_frames(self, container: str) -> None:
        late = decode_clip(numbered_clip(60, container=container, pts=range(1000, 1060)))

        assert numbers(late) == numbers(decode_clip(numbered_clip(60, container=container)))
        assert late.facts.duration_s == pytest.approx(2.4)

    def test_negative_timestamps_do_not_change_the_sampled_frames(self) -> None:
        data = numbered_clip(
            60, container="mpegts", pts=range(-30, 30), options={"bf": "2"}, muxing={"avoid_negative_ts": "disabled"}
        )

        assert naive_decode(data)[0].pts < 0
        assert numbers(decode_clip(data)) == middle_frames(60)

    def test_frames_with_shuffled_timestamps_are_sampled_in_the_order_of_their_timestamps(self) -> None:
        shuffled = [int(place) for place in np.random.default_rng(3).permutation(40)]

        def shuffle(number: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            other = with_content(packet, bytes(packet))
            other.pts = 40 + shuffled[number]  # never before its decode time
            return other

        clip = decode_clip(numbered_clip(40, codec="mjpeg", container="matroska", change=shuffle))

        assert [shuffled[number] for number in numbers(clip)] == list(range(40))

    def test_sampling_begins_at_the_start_of_an_edit_list(self) -> None:
        clip = decode_clip(numbered_clip(60, pts=range(-20, 40)))

        assert clip.facts.frames == 40
        assert numbers(clip) == list(range(20, 60))

    def test_frames_are_right_if_the_container_marks_every_packet_as_a_keyframe(self) -> None:
        def mark_as_keyframe(_: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            packet.is_keyframe = True
            return packet

        for codec, container in (("mpeg4", "mp4"), ("msmpeg4", "avi"), ("h263", "3gp"), ("libx264", "mp4")):
            pictures = [numbered(number, 176, 144) for number in range(80)]
            data = encode(pictures, codec=codec, container=container, options={"g": "80"}, change=mark_as_keyframe)

            assert_same_as_naive(decode_clip(data), data)

    def test_bytes_a_path_and_an_open_file_give_the_same_clip(self, tmp_path: Path) -> None:
        data = numbered_clip(45)
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)

        with path.open("rb") as file:
            clips = [decode_clip(source) for source in (data, path, str(path), file)]

        for clip in clips[1:]:
            np.testing.assert_array_equal(clip.frames, clips[0].frames)
            assert (clip.facts, clip.sampled) == (clips[0].facts, clips[0].sampled)


# -- rotated clips -----------------------------------------------------------------------------------------------------


class TestDisplayMatrix:
    @pytest.mark.parametrize(
        ("counter_clockwise", "hflip", "vflip", "corners", "clockwise"),
        [
            # corners as shown (top left, top right, bottom left, bottom right) of a picture stored as 0 1 / 2 3
            (0, False, False, [0, 1, 2, 3], 0),
            (90, False, False, [1, 3, 0, 2], 270),
            (180, False, False, [3, 2, 1, 0], 180),
            (270, False, False, [2, 0, 3, 1], 90),
            (-90, False, False, [2, 0, 3, 1], 90),
            (0, True, False, [1, 0, 3, 2], None),
            (0, False, True, [2, 3, 0, 1], None),
            (90, True, False, [3, 1, 2, 0], None),
            (90, False, True, [0, 2, 1, 3], None),
        ],
    )
    def test_frames_are_rotated_and_mirrored_as_the_display_matrix_says(
        self, counter_clockwise: int, hflip: bool, vflip: bool, corners: list[int], clockwise: int | None
    ) -> None:
        picture = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 24, 0), 48, 1)
        data = encode(
            [np.stack([picture] * 3, -1)] * 3,
            prepare=lambda stream: stream.set_display_rotation(counter_clockwise, hflip=hflip, vflip=vflip),
        )

        clip = decode_clip(data)

        shown = clip.frames[20, 56::112, 56::112, 0].astype(int).ravel()
        np.testing.assert_allclose(shown / 80, corners, atol=0.1)
        assert (clip.facts.coded_width, clip.facts.coded_height) == (96, 48)
        assert (clip.facts.width, clip.facts.height) == ((48, 96) if counter_clockwise % 180 else (96, 48))
        if clockwise is not None:
            assert clip.facts.rotation == clockwise

    UNIT, LEAST = 1 << 16, -(1 << 31)
    MATRICES: ClassVar = {
        "identity": (UNIT, 0, 0, UNIT),
        "90": (0, UNIT, -UNIT, 0),
        "180": (-UNIT, 0, 0, -UNIT),
        "270": (0, -UNIT, UNIT, 0),
        "flipped left to right": (-UNIT, 0, 0, UNIT),
        "flipped top to bottom": (UNIT, 0, 0, -UNIT),
        "transposed": (0, UNIT, UNIT, 0),
        "transposed along the other diagonal": (0, -UNIT, -UNIT, 0),
        "scaled by a half, and 90": (0, UNIT // 2, -UNIT // 2, 0),
        "scaled by a hundred, and 180": (-100 * UNIT, 0, 0, -100 * UNIT),
        "as small as can be, and 270": (0, -1, 1, 0),
        "overflowing 180": (LEAST, 0, 0, LEAST),
        "overflowing 270": (0, LEAST, -LEAST - 1, 0),
    }
    ODD_MATRICES: ClassVar = {
        "zero": (0, 0, 0, 0),
        "1": (65526, 1144, -1144, 65526),
        "44": (47142, 45525, -45525, 47142),
        "45": (46341, 46341, -46341, 46341),
        "46": (45525, 47142, -47142, 45525),
        "135": (-46341, 46341, -46341, -46341),
        "359": (65526, -1144, 1144, 65526),
        "128 and nothing else": (128, 0, 0, 0),
        "one column of zeros": (0, 0, UNIT, UNIT),
        "one row of zeros": (0, UNIT, 0, 0),
        "noise": (LEAST, LEAST, LEAST, LEAST),
    }

    @pytest.mark.parametrize("matrix", (MATRICES | ODD_MATRICES).values(), ids=(MATRICES | ODD_MATRICES).keys())
    def test_the_rotation_is_the_multiple_of_90_that_was_applied(self, matrix: tuple[int, ...]) -> None:
        clip = decode_clip(_with_matrix(matrix))

        assert clip.facts.rotation in {0, 90, 180, 270}
        corners = np.array([[0, 1], [2, 3]])
        turned = [np.rot90(view, -clip.facts.rotation // 90) for view in (corners, corners[::-1])]
        assert any((_corners(clip.frames[20]) == view).all() for view in turned)

    @pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
    def test_rotation_and_frames_are_those_of_ffmpeg(self, matrix: tuple[int, ...], tmp_path: Path) -> None:
        if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
            pytest.skip("needs ffmpeg")
        file = tmp_path / "clip.mp4"
        file.write_bytes(_with_matrix(matrix))
        frame = run(
            "ffmpeg", "-i", file, "-frames:v", "1", "-vf", "scale=224:224", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"
        )
        probed = run("ffprobe", "-show_entries", "stream_side_data=rotation", "-of", "csv=p=0", file).split()
        counter_clockwise = int(probed[0].rstrip(b",")) if probed else 0

        clip = decode_clip(file)

        theirs = np.frombuffer(frame, np.uint8).reshape(224, 224, 3)
        np.testing.assert_array_equal(_corners(clip.frames[20]), _corners(theirs))
        assert clip.facts.rotation == -counter_clockwise % 360


def run(program: str, *arguments: object) -> bytes:
    command = [program, "-v", "error", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout


def _with_matrix(matrix: tuple[int, ...]) -> bytes:
    """A clip of a picture with the corners 0 1 / 2 3, with this display matrix (a, b, c, d) in its track's header."""
    picture = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 48, 0), 48, 1)
    data = bytearray(encode([np.stack([picture] * 3, -1)] * 3))
    a, b, c, d = matrix
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


def _corners(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    corners: npt.NDArray[np.int64] = (image[56::112, 56::112, 0] / 80).round().astype(np.int64)
    return corners


# -- facts about the clip ----------------------------------------------------------------------------------------------


class TestFacts:
    @pytest.mark.parametrize(
        ("codec", "container", "called"),
        [
            ("libx264", "mp4", ("mp4", "h264")),
            ("libx264", "mov", ("mp4", "h264")),
            ("libx265", "matroska", ("matroska", "hevc")),
            ("libvpx-vp9", "webm", ("matroska", "vp9")),
            ("mpeg4", "avi", ("avi", "mpeg4")),
            ("mpeg2video", "mpegts", ("mpegts", "mpeg2video")),
        ],
    )
    def test_facts_name_the_container_and_the_codec(self, codec: str, container: str, called: tuple[str, str]) -> None:
        facts = decode_clip(numbered_clip(10, codec=codec, container=container)).facts

        assert (facts.container, facts.codec) == called
        assert (facts.width, facts.height, facts.frames) == (64, 48, 10)
        assert facts.duration_s == pytest.approx(0.4, abs=0.001)
        assert (facts.rotation, facts.damaged_frames) == (0, 0)

    def test_the_duration_includes_the_last_frame(self) -> None:
        assert decode_clip(numbered_clip(1)).facts.duration_s == pytest.approx(0.04)


# -- damage ------------------------------------------------------------------------------------------------------------


def break_packets(broken: Iterable[int]) -> Change:
    """Return a change that makes these packets of an intra-only clip undecodable."""
    damaged = set(broken)
    return lambda number, packet: with_content(packet, b"no picture") if number in damaged else packet


@pytest.fixture(scope="module")
def small_clips() -> list[bytes]:
    kinds = (("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm"), ("mpeg2video", "mpegts"))
    return [numbered_clip(12, codec=codec, container=container) for codec, container in kinds]


class TestDamage:
    def test_a_packet_without_a_picture_is_no_frame_and_the_one_before_stays_on_screen(self) -> None:
        data = numbered_clip(
            80,
            codec="mpeg4",
            container="avi",
            options={"g": "1"},
            change=lambda number, packet: with_content(packet, NOT_CODED) if number in {20, 21, 61} else packet,
        )

        clip = decode_clip(data)

        pictures = [number for number in range(80) if number not in {20, 21, 61}]
        assert numbers(clip) == [{21: 19, 61: 60}.get(number, number) for number in middle_frames(80)]
        assert indices(clip) == [pictures.index(number) for number in numbers(clip)]
        assert clip.facts.frames == len(pictures)
        assert clip.facts.damaged_frames == 0

    def test_a_damaged_frame_is_replaced_by_the_frame_shown_before_not_by_the_one_sampled_before(self) -> None:
        data = numbered_clip(80, codec="mjpeg", container="matroska", change=break_packets([21, 50, 51]))

        clip = decode_clip(data)

        assert numbers(clip) == [{21: 20, 51: 49}.get(number, number) for number in middle_frames(80)]
        assert clip.facts.damaged_frames == 2

    def test_damaged_frames_are_replaced_by_the_frame_before_and_counted(self) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets([10, 11, 30]))

        clip = decode_clip(data)

        assert indices(clip) == list(range(40))
        assert numbers(clip) == [*range(10), 9, 9, *range(12, 30), 29, *range(31, 40)]
        assert clip.facts.damaged_frames == 3

    def test_damaged_first_frames_are_replaced_by_the_first_that_can_be_decoded(self) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets([0, 1]))

        assert numbers(decode_clip(data)) == [2, 2, *range(2, 40)]

    @pytest.mark.parametrize(("broken", "refused"), [(20, False), (21, True), (40, True)])
    def test_a_clip_is_corrupt_if_more_than_half_of_its_sampled_frames_are_damaged(
        self, broken: int, refused: bool
    ) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets(range(broken)))

        if refused:
            assert isinstance(refusal(data), CorruptClip)
        else:
            assert decode_clip(data).facts.damaged_frames == broken

    @pytest.mark.parametrize("container", ["matroska", "mpegts", "flv", "avi"])
    def test_a_truncated_clip_is_sampled_up_to_where_it_ends(self, container: str) -> None:
        data = numbered_clip(80, container=container, codec="mpeg4" if container == "avi" else "libx264")

        clip = decode_clip(data[: len(data) * 6 // 10])

        assert 10 < clip.facts.frames < 80
        assert numbers(clip) == sorted(numbers(clip))
        assert max(numbers(clip)) < clip.facts.frames

    @pytest.mark.parametrize("codec", ["libx264", "libx265"])
    def test_a_clip_without_its_only_keyframe_is_corrupt(self, codec: str) -> None:
        data = encode([numbered(7)] * 80, codec=codec, container="mpegts", options=QUIET[codec] | {"g": "80"})

        assert isinstance(refusal(data[len(data) // 2 :]), CorruptClip)

    def test_an_mp4_that_is_truncated_before_its_index_is_corrupt(self) -> None:
        data = numbered_clip(80)

        assert isinstance(refusal(data[: data.index(b"moov") - 4]), CorruptClip)

    def test_a_clip_whose_frames_change_size_is_sampled(self) -> None:
        large = keyframe(numbered(7, 160, 120), codec="mjpeg", container="avi")
        data = numbered_clip(
            40,
            codec="mjpeg",
            container="matroska",
            change=lambda number, packet: packet if number < 15 else with_content(packet, large),
        )

        assert numbers(decode_clip(data)) == [*range(15), *[7] * 25]

    @settings(max_examples=60)
    @given(data=st.data())
    def test_a_clip_with_overwritten_bytes_is_sampled_or_refused(
        self, small_clips: Sequence[bytes], data: st.DataObject
    ) -> None:
        clip = bytearray(data.draw(st.sampled_from(small_clips)))
        for place in data.draw(st.lists(st.integers(0, len(clip) - 1), min_size=1, max_size=30)):
            clip[place] = data.draw(st.integers(0, 255))

        try:
            frames = decode_clip(bytes(clip)).frames
        except ClipError:
            return
        assert frames.shape == (40, 224, 224, 3)


# -- limits ------------------------------------------------------------------------------------------------------------


def keyframe(picture: npt.NDArray[np.uint8], *, codec: str, container: str) -> bytes:
    """The bytes of a packet that holds ``picture``."""
    with av.open(io.BytesIO(encode([picture], codec=codec, container=container)), "r") as clip:
        return bytes(next(clip.demux(video=0)))


class TestLimits:
    def test_a_clip_without_frames_is_refused(self) -> None:
        fragmented = numbered_clip(30, muxing={"movflags": "frag_keyframe+empty_moov"})
        error = refusal(fragmented[: fragmented.index(b"moof") - 4])

        assert isinstance(error, NoFrames)
        assert error.code == "no_frames"

    @pytest.mark.parametrize(
        ("limits", "error", "code"),
        [
            (DecodeLimits(max_duration_s=3.9), ClipTooLong, "clip_too_long"),
            (DecodeLimits(max_frames=99), ClipTooLong, "clip_too_long"),
            (DecodeLimits(max_pixels=64 * 48 - 1), ResolutionTooLarge, "resolution_too_large"),
            (DecodeLimits(timeout_s=0.0), DecodeTimeout, "decode_timeout"),
        ],
    )
    def test_a_clip_beyond_a_limit_is_refused_and_one_at_the_limit_is_decoded(
        self, limits: DecodeLimits, error: type[ClipError], code: str
    ) -> None:
        data = numbered_clip(100)

        refused = refusal(data, limits)

        assert type(refused) is error
        assert refused.code == code
        assert (
            decode_clip(data, DecodeLimits(max_duration_s=4.0, max_frames=100, max_pixels=64 * 48)).facts.frames == 100
        )

    def test_frames_as_large_as_allowed_are_decoded_whatever_their_width(self) -> None:
        data = encode([numbered(number, 100, 50) for number in range(5)])

        assert decode_clip(data, DecodeLimits(max_pixels=100 * 50)).facts.damaged_frames == 0

    @pytest.mark.parametrize(
        ("width", "height"), [(160, 120), (1600, 1200)], ids=["noticed by the service", "noticed by FFmpeg"]
    )
    @pytest.mark.parametrize(
        ("codec", "container"),
        [
            ("libx264", "mpegts"),
            ("libx265", "mpegts"),
            ("mpeg2video", "mpegts"),
            ("mpeg4", "mpegts"),
            ("mjpeg", "matroska"),
            ("libvpx", "webm"),
            ("libvpx-vp9", "webm"),
            ("libsvtav1", "webm"),
        ],
    )
    def test_a_clip_whose_frames_grow_beyond_the_limit_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, codec: str, container: str, width: int, height: int
    ) -> None:
        monkeypatch.setenv("SVT_LOG", "0")
        large = numbered(7, width, height)
        if container == "mpegts":  # two streams, one after the other, are one stream
            data = numbered_clip(30, codec=codec, container=container)
            data += encode([large] * 3, codec=codec, container=container, pts=range(30, 33))
        else:
            picture = keyframe(large, codec=codec, container=container)
            data = numbered_clip(
                40,
                codec=codec,
                container=container,
                change=lambda number, packet: packet if number < 20 else with_content(packet, picture),
            )

        assert isinstance(refusal(data, DecodeLimits(max_pixels=64 * 64)), ResolutionTooLarge)

    def test_a_path_that_cannot_be_read_raises_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            decode_clip(tmp_path / "nothing.mp4")
