"""Short cuts change no pixel: what the decoder takes is what a naive decode of everything shows at those instants."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.errors import ClipError
from service.video.decoder import DecodeLimits, decode_clip
from tests.service.video.clips import encode, middle_frames, numbered, numbered_clip, numbers
from tests.service.video.naive import assert_same_as_naive, naive_decode, naive_sample

# Every allowed codec that FFmpeg can encode here, in every allowed container that takes it.
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


# The one that it cannot: `numbered` 0 to 79, drawn by our code, encoded by `ffmpeg -c:v libtheora -g 12 -q:v 7`.
THEORA = Path(__file__).with_name("theora.ogv")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")


def panned(frames: int, width: int = 96, height: int = 64) -> list[npt.NDArray[np.uint8]]:
    """Pictures of noise that moves by a pixel a frame: one that is not the right one differs a lot."""
    scene = np.random.default_rng(0).integers(0, 256, (height, width + frames, 3), np.uint8)
    return [np.ascontiguousarray(scene[:, n : n + width]) for n in range(frames)]


class TestMadeClips:
    @pytest.mark.parametrize(
        ("codec", "container"),
        [(codec, container) for codec, containers in CONTAINERS.items() for container in containers.split()],
    )
    def test_of_every_codec_and_container(self, codec: str, container: str) -> None:
        data = encode(panned(50, 176, 144), codec=codec, container=container)

        assert_same_as_naive(decode_clip(data), data)

    def test_of_theora(self) -> None:
        clip = decode_clip(THEORA)

        assert (clip.facts.container, clip.facts.codec) == ("ogg", "theora")
        assert numbers(clip) == middle_frames(80)
        assert_same_as_naive(clip, THEORA)

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
    def test_of_other_pixels_and_sizes(self, codec: str, container: str, pix_fmt: str, width: int, height: int) -> None:
        data = encode(panned(45, width, height), codec=codec, container=container, pix_fmt=pix_fmt)

        assert_same_as_naive(decode_clip(data), data)

    def test_of_transparent_pictures(self) -> None:
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
    def test_of_groups_of_pictures(self, codec: str, options: Mapping[str, str], container: str) -> None:
        data = encode(panned(200), codec=codec, container=container, options=options)

        assert_same_as_naive(decode_clip(data), data)

    def test_of_groups_most_of_which_are_left_out(self) -> None:
        data = encode((numbered(n // 5) for n in range(480)), options={"g": "5", "bf": "2"})

        assert_same_as_naive(decode_clip(data), data)

    @pytest.mark.parametrize(
        ("codec", "options"), [("libx264", {"bf": "2", "b_strategy": "0"}), ("mpeg4", {"bf": "2"})]
    )
    def test_of_an_avi_whose_timestamps_are_decode_times(self, codec: str, options: Mapping[str, str]) -> None:
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
        ids=["a slow part", "ever slower", "a long last but one", "from before zero"],
    )
    def test_of_variable_frame_rates(self, container: str, pts: Sequence[int]) -> None:
        data = numbered_clip(len(pts), container=container, pts=pts, options={"bf": "2"})

        assert_same_as_naive(decode_clip(data), data)

    def test_a_hundred_times_in_a_row_though_decoding_stops_early(self) -> None:
        data = numbered_clip(99, options={"bf": "3"})
        first = decode_clip(data).frames

        assert all(np.array_equal(decode_clip(data).frames, first) for _ in range(100))


# Some 30 real clips: an AVI and an MP4 of each class.
MANY_FRAMES = 2000  # a naive decode of more costs too much time


@pytest.mark.slow
class TestRealFiles:
    def test_every_nasty_file_that_can_be_decoded(self, shared: Path) -> None:
        patient = DecodeLimits(max_frames=MANY_FRAMES, timeout_s=120)
        files = [path for path in sorted((shared / "nasty").rglob("*")) if path.is_file() and path.suffix != ".json"]
        sampled = 0
        for path in files:
            try:
                clip = decode_clip(path, patient)
            except ClipError:
                continue
            sampled += 1
            np.testing.assert_array_equal(clip.frames, naive_sample(naive_decode(path)), err_msg=str(path))
        assert sampled > len(files) / 2

    @pytest.mark.parametrize("kind", ["avi", "mp4"])
    def test_clips_of_ucf101(self, shared: Path, kind: str) -> None:
        for folder in sorted((shared / "clips" / "ucf101").iterdir()):
            for path in sorted(folder.glob(f"*.{kind}"))[:1]:
                assert_same_as_naive(decode_clip(path), path)

    @pytest.mark.parametrize(
        "name", ["Basketball/v_Basketball_g13_c04", "Basketball/v_Basketball_g16_c04", "Diving/v_Diving_g09_c07"]
    )
    def test_clips_of_ucf101_with_packets_that_hold_no_picture(self, shared: Path, name: str) -> None:
        path = shared / "clips" / "ucf101" / f"{name}.avi"

        clip = decode_clip(path)

        naive = naive_decode(path)
        assert clip.facts.frames > len(naive)
        assert clip.facts.damaged_frames == 0
        np.testing.assert_array_equal(clip.frames, naive_sample(naive))
