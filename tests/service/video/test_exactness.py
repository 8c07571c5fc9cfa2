"""Exactness: the decoder's shortcuts change no pixel compared with a naive decode of every frame."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from service.errors import ClipError
from service.video.decoder import DecodeLimits, decode_clip
from service.video.picking import FramePicker
from tests.service.video.clips import (
    DIVX_PACKED,
    counts,
    encode,
    indices,
    middle_frames,
    numbered,
    numbered_clip,
    numbers,
    packed_clip,
    with_content,
)
from tests.service.video.naive import assert_same_as_naive, naive_decode, naive_sample
from tests.service.video.oracle import assert_timed_as_ffmpeg_does, ffmpeg

# Every allowed codec that FFmpeg can encode here, with the allowed containers that can hold it.
CONTAINERS = {
    "libx264": "mp4 mov 3gp matroska avi mpegts mpeg vob flv",
    "libx265": "mp4 mov matroska mpegts mpeg flv",
    "libsvtav1": "mp4 matroska webm avi flv",
    "libvpx-vp9": "mp4 matroska webm avi flv",
    "libvpx": "matroska webm avi ogg",
    "mpeg4": "mp4 mov 3gp matroska avi mpegts mpeg",
    "msmpeg4": "mov matroska avi",
    "mpeg1video": "mp4 mov matroska avi mpegts mpeg vob",
    "mpeg2video": "mp4 mov matroska avi mpegts mpeg vob",
    "h263": "mov 3gp avi",
    "mjpeg": "mp4 mov matroska avi",
}

# PyAV's FFmpeg cannot encode Theora: `numbered` 0 to 79, encoded by `ffmpeg -c:v libtheora -g 12 -q:v 7`.
THEORA = Path(__file__).with_name("theora.ogv")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence the log of the AV1 encoder."""
    monkeypatch.setenv("SVT_LOG", "0")


def panned(frames: int, width: int = 96, height: int = 64) -> list[npt.NDArray[np.uint8]]:
    """Pictures of noise that moves by one pixel per frame, so that a wrong frame differs a lot."""
    scene = np.random.default_rng(0).integers(0, 256, (height, width + frames, 3), np.uint8)
    return [np.ascontiguousarray(scene[:, n : n + width]) for n in range(frames)]


class TestEncodedClips:
    @pytest.mark.parametrize(
        ("codec", "container"),
        [(codec, container) for codec, containers in CONTAINERS.items() for container in containers.split()],
    )
    def test_every_codec_in_every_container_decodes_as_a_naive_decode_does(self, codec: str, container: str) -> None:
        data = encode(panned(50, 176, 144), codec=codec, container=container)

        assert_same_as_naive(decode_clip(data), data)

    def test_theora_decodes_as_a_naive_decode_does(self) -> None:
        clip = decode_clip(THEORA)

        assert (clip.facts.container, clip.facts.codec) == ("ogg", "theora")
        assert numbers(clip) == middle_frames(80)
        assert_same_as_naive(clip, THEORA)

    def test_headers_of_a_theora_file_that_is_joined_are_no_frames(self) -> None:
        clip = decode_clip(2 * THEORA.read_bytes())

        assert (clip.facts.frames, clip.facts.damaged_frames) == (160, 0)
        assert clip.facts.duration_s == pytest.approx(2 * decode_clip(THEORA).facts.duration_s)
        assert [frame.index for frame in clip.sampled] == middle_frames(160)
        assert numbers(clip) == [index % 80 for index in middle_frames(160)]

    @pytest.mark.parametrize(
        ("codec", "container", "pix_fmt", "width", "height"),
        [
            ("libx264", "mp4", "yuv420p10le", 96, 64),
            ("libx264", "mp4", "yuv422p10le", 96, 64),
            ("libx265", "mp4", "yuv420p10le", 96, 64),
            ("libx265", "mp4", "yuv420p12le", 96, 64),
            ("libsvtav1", "mp4", "yuv420p10le", 96, 64),
            ("libx264", "mp4", "gray", 96, 64),
            ("libx264", "mp4", "yuv444p", 1, 1),
            ("libx264", "mp4", "yuv444p", 33, 17),
            ("libvpx-vp9", "webm", "yuv420p", 35, 19),
            ("libvpx", "webm", "yuv420p", 35, 19),
            ("mjpeg", "avi", "yuvj422p", 35, 19),
            ("libvpx-vp9", "webm", "yuva420p", 64, 48),
            ("libvpx-vp9", "webm", "gbrp", 64, 48),
        ],
    )
    def test_other_pixel_formats_and_sizes_decode_as_a_naive_decode_does(
        self, codec: str, container: str, pix_fmt: str, width: int, height: int
    ) -> None:
        data = encode(panned(45, width, height), codec=codec, container=container, pix_fmt=pix_fmt)

        assert_same_as_naive(decode_clip(data), data)

    def test_transparent_pictures_decode_as_a_naive_decode_does(self) -> None:
        options = {"auto-alt-ref": "0"}
        data = encode(panned(45), codec="libvpx", container="webm", pix_fmt="yuva420p", options=options)

        assert_same_as_naive(decode_clip(data), data)

    @pytest.mark.parametrize(
        ("codec", "options"),
        [
            ("libx264", {"x264-params": "keyint=9:bframes=3:b-adapt=0:b-pyramid=normal"}),
            ("libx264", {"x264-params": "keyint=12:open-gop=1:bframes=3:b-adapt=0"}),
            ("libx264", {"x264-params": "keyint=20:intra-refresh=1:bframes=2"}),
            ("libx264", {"x264-params": "keyint=30:interlaced=1:bframes=2"}),
            ("libx265", {"x265-params": "log-level=none:keyint=12:open-gop=1:bframes=4"}),
            ("mpeg4", {"g": "12", "bf": "2"}),
            ("mpeg2video", {"g": "12", "bf": "2"}),
        ],
    )
    @pytest.mark.parametrize("container", ["mp4", "mpegts"])
    def test_groups_of_pictures_of_any_structure_decode_as_a_naive_decode_does(
        self, codec: str, options: Mapping[str, str], container: str
    ) -> None:
        data = encode(panned(200), codec=codec, container=container, options=options)

        assert_same_as_naive(decode_clip(data), data)

    def test_clips_with_groups_that_are_skipped_decode_as_a_naive_decode_does(self) -> None:
        data = encode((numbered(n // 5) for n in range(480)), options={"g": "5", "bf": "2"})

        assert_same_as_naive(decode_clip(data), data)

    @pytest.mark.parametrize(
        ("codec", "options"), [("libx264", {"bf": "2", "b_strategy": "0"}), ("mpeg4", {"bf": "2"})]
    )
    def test_an_avi_whose_timestamps_are_decode_times_decodes_as_a_naive_decode_does(
        self, codec: str, options: Mapping[str, str]
    ) -> None:
        data = encode(panned(100), codec=codec, container="avi", options=options)

        assert_same_as_naive(decode_clip(data), data)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
    @pytest.mark.parametrize(
        "pts",
        [
            [*range(30), *range(40, 200, 10), *range(200, 230)],
            [n * n for n in range(60)],
            [*range(500, 540), 900],
            [*range(-13, 50)],
        ],
        ids=["slow part", "slowing down", "long frame before the last", "from before zero"],
    )
    def test_variable_frame_rates_decode_as_a_naive_decode_does(self, container: str, pts: Sequence[int]) -> None:
        data = numbered_clip(len(pts), container=container, pts=pts, options={"bf": "2"})

        assert_same_as_naive(decode_clip(data), data)

    def test_decoding_a_clip_a_hundred_times_gives_the_same_frames(self) -> None:
        data = numbered_clip(99, options={"bf": "3"})
        first = decode_clip(data).frames

        assert all(np.array_equal(decode_clip(data).frames, first) for _ in range(100))


class TestSparseDecode:
    """Only what the sampled frames depend on is decoded: the rest may be noise."""

    @pytest.mark.parametrize(
        ("codec", "container", "options"),
        [
            ("libx264", "mp4", {"x264-params": "keyint=3:bframes=2:scenecut=0:b-adapt=0:open-gop=0"}),
            ("libx264", "avi", {"x264-params": "keyint=3:bframes=0:scenecut=0"}),
            ("libx265", "matroska", {"x265-params": "log-level=none:keyint=3:bframes=0:scenecut=0"}),
            ("libvpx-vp9", "webm", {"g": "3", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
            ("mpeg4", "avi", {"g": "3"}),
        ],
    )
    def test_groups_without_a_sampled_frame_are_not_decoded(
        self, monkeypatch: pytest.MonkeyPatch, codec: str, container: str, options: Mapping[str, str]
    ) -> None:
        def spoil(number: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            if number // 3 in needed:
                return packet
            other = with_content(packet, bytes(packet)[:100].ljust(packet.size, b"\x55"))
            other.is_keyframe = packet.is_keyframe
            return other

        needed = {0, *(index // 3 for index in middle_frames(480))}  # the first frame tells the orientation
        clip = encode(panned(480), codec=codec, container=container, options=options)
        spoilt = encode(panned(480), codec=codec, container=container, options=options, change=spoil)
        monkeypatch.setattr(FramePicker, "_pick_from_all", None)

        assert spoilt != clip
        np.testing.assert_array_equal(decode_clip(spoilt).frames, decode_clip(clip).frames)


class TestPackedBFrames:
    """Of MPEG-4 in AVI: one packet holds two pictures, and a later one a placeholder."""

    @pytest.mark.parametrize("bf", ["1", "2", "3"])
    @pytest.mark.parametrize("g", ["12", "25", "200"])
    @pytest.mark.parametrize(("width", "height"), [(320, 240), (64, 48)], ids=["large", "small"])
    def test_packed_b_frames_are_sampled_at_the_instants_they_are_shown(
        self, bf: str, g: str, width: int, height: int
    ) -> None:
        """In small clips B-frames may be hardly larger than placeholders."""
        clip = decode_clip(packed_clip(96, options={"bf": bf, "g": g}, width=width, height=height))

        assert clip.facts.frames == 96
        assert clip.facts.duration_s == pytest.approx(96 / 25)
        assert clip.facts.damaged_frames == 0
        assert indices(clip) == numbers(clip) == middle_frames(96)

    def test_packed_b_frames_are_decoded_sparsely(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FramePicker, "_pick_from_all", None)

        assert numbers(decode_clip(packed_clip(96, options={"bf": "2", "g": "12"}))) == middle_frames(96)

    def test_a_stream_marked_as_packed_may_hold_no_packed_b_frames(self) -> None:
        packed = packed_clip(96, options={"bf": "0"})

        assert_same_as_naive(decode_clip(packed), packed)

    def test_packets_of_a_stream_not_marked_as_packed_are_left_alone(self) -> None:
        """FFmpeg's decoder shows the first picture of each packet of such a stream, and so do we."""
        packed = packed_clip(96, options={"bf": "2", "g": "12"}, marked=False)

        np.testing.assert_array_equal(decode_clip(packed).frames, naive_sample(naive_decode(packed)))

    @pytest.mark.parametrize(
        "left_out", [(), (3, 7), (0, 1), range(40, 70), (94, 95)], ids=["nowhere", "two", "first", "many", "last"]
    )
    def test_packed_b_frames_between_missing_ticks_are_those_that_ffmpeg_shows(
        self, left_out: Container[int], tmp_path: Path
    ) -> None:
        path = tmp_path / "packed.avi"
        path.write_bytes(packed_clip(96, options={"bf": "2", "g": "25"}, left_out=left_out))

        clip = decode_clip(path)

        assert clip.facts.frames == 96
        assert numbers(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path)

    def test_packed_b_frames_of_xvid_are_those_that_ffmpeg_shows(self, tmp_path: Path) -> None:
        path = tmp_path / "xvid.avi"
        source = tmp_path / "source.mkv"
        source.write_bytes(numbered_clip(96, codec="ffv1", container="matroska"))
        ffmpeg("-i", str(source), "-c:v", "libxvid", "-bf", "2", "-q:v", "3", "-g", "24", str(path))
        if DIVX_PACKED not in path.read_bytes():
            pytest.skip("this ffmpeg's libxvid does not pack B-frames")

        clip = decode_clip(path)

        assert numbers(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path)


# HDR, which the naive decoder does not tone-map, and the list of the odd files.
NOT_AS_NAIVE = {
    "hdr10-av1.mp4",
    "hlg10-color-test.mp4",
    "sample_edit_list_no_sync_frame_before_edit.mp4",
    "index.json",
}
MANY_FRAMES = 2000  # a naive decode of more costs too much time


@pytest.mark.slow
class TestRealFiles:
    @pytest.mark.ci
    def test_every_odd_file_that_can_be_decoded_decodes_as_a_naive_decode_does(self, shared: Path) -> None:
        patient = DecodeLimits(max_frames=MANY_FRAMES, timeout_s=120)
        files = [path for path in sorted((shared / "nasty").rglob("*.*")) if path.name not in NOT_AS_NAIVE]
        sampled = 0
        for path in files:
            try:
                clip = decode_clip(path, patient)
            except ClipError:
                continue
            sampled += 1
            np.testing.assert_array_equal(clip.frames, naive_sample(naive_decode(path)), err_msg=str(path))
        assert sampled > len(files) / 2

    @pytest.mark.ci
    def test_one_ucf101_clip_of_each_class_decodes_as_a_naive_decode_does(self, shared: Path) -> None:
        for folder in sorted((shared / "clips" / "ucf101").iterdir()):
            for path in sorted(folder.glob("*.mp4"))[:1]:
                assert_same_as_naive(decode_clip(path), path)

    def test_the_counted_clip_with_packed_b_frames_is_sampled_at_its_known_frames(self, shared: Path) -> None:
        path = shared / "faults" / "packed_counted.avi"
        if not path.is_file():
            pytest.skip(f"needs {path}")

        clip = decode_clip(path)

        assert counts(clip) == indices(clip)
        assert_timed_as_ffmpeg_does(clip, path)
