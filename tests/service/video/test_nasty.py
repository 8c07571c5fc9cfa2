"""Odd files from the test suites of players and decoders, with the answer that each should get.

The answers were decided by examining each file, not copied from the decoder's output.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.errors import ClipError
from service.http.problems import KINDS
from service.video.decoder import DecodeLimits, decode_clip
from tests.fuzz_decoder import MAX_REAL_BYTES

pytestmark = pytest.mark.slow

PATIENT = DecodeLimits(timeout_s=240)  # so that a busy machine does not change an answer


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a clip that is decoded.

    Attributes:
        width: As coded.
        height: As coded.
        seconds: Rounded to hundredths.
        displayed: Width and height as displayed, where they differ from those as coded.
    """

    container: str
    codec: str
    width: int
    height: int
    frames: int
    seconds: float
    rotation: int = 0
    damaged: int = 0
    displayed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """The HTTP answer to a file that is refused."""

    status: int
    code: str


UNSUPPORTED = Problem(415, "unsupported_media")
NO_FRAMES = Problem(422, "no_frames")
CORRUPT = Problem(422, "corrupt_clip")
TOO_LONG = Problem(422, "clip_too_long")

ANSWERS: dict[str, Facts | Problem] = {
    # -- ordinary small clips of every kind that people send -----------------------------------------------------------
    "Zulko+moviepy/big_buck_bunny_432_433.webm": Facts("matroska", "vp8", 1280, 720, 24, 1.0),
    "Zulko+moviepy/chaplin.mp4": Facts("mp4", "h264", 640, 360, 241, 9.64),
    "Zulko+moviepy/example2.mp4": Facts("mp4", "h264", 1280, 720, 48, 2.0),
    "Zulko+moviepy/example_mask.mp4": Facts("mp4", "h264", 200, 200, 300, 10.0),
    "Zulko+moviepy/media__doc_medias__long_examples__example.mp4": Facts("mp4", "h264", 640, 480, 400, 16.0),
    "androidx+media/bbb_176x144_128kbps_15fps_h263.3gp": Facts("mp4", "h263", 176, 144, 15, 1.0),
    "androidx+media/bbb_642x642_768kbps_30fps_vp9.webm": Facts("matroska", "vp9", 642, 642, 90, 3.0),
    "androidx+media/bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4": Facts(
        "mp4",
        "h264",
        800,
        640,
        120,
        4.0,
        displayed=(1138, 640),  # pixels of 64:45
    ),
    "androidx+media/bt601.mov": Facts("mp4", "h264", 640, 428, 30, 1.02),
    "androidx+media/h265_bframes.mp4": Facts("mp4", "hevc", 854, 480, 30, 1.0),
    "androidx+media/sample.mkv": Facts("matroska", "h264", 1080, 720, 30, 0.97),
    "androidx+media/sample_12_5fps_720p_1s.mp4": Facts("mp4", "h264", 1280, 720, 13, 1.04),
    "androidx+media/sample_av1.mp4": Facts("mp4", "av1", 1080, 720, 30, 1.0),
    "androidx+media/sample_portrait.mp4": Facts("mp4", "h264", 720, 1080, 30, 1.0),
    "androidx+media/sample_video_only.mp4": Facts("mp4", "h264", 1080, 720, 30, 1.0),
    "androidx+media/silent-black-10s.mp4": Facts("mp4", "h264", 320, 240, 300, 10.0),
    "androidx+media/testvid_1022ms.mp4": Facts("mp4", "h264", 480, 360, 30, 1.0),
    "ffmpegwasm+testdata/Big_Buck_Bunny_180_10s_reversed.webm": Facts("matroska", "vp9", 320, 180, 300, 10.0),
    "ffmpegwasm+testdata/video-1s.mp4": Facts("mp4", "h264", 256, 240, 35, 1.0),
    "imageio+imageio-binaries/realshort.mp4": Facts("mp4", "h264", 320, 240, 36, 1.2),
    "pytorch+torchcodec/av1_video.mkv": Facts("matroska", "av1", 640, 360, 125, 5.0),
    "pytorch+torchcodec/h265_video.mp4": Facts("mp4", "hevc", 128, 128, 10, 1.0),
    # -- pixels: a single one, 4:4:4, 10 bits, HDR, not square ---------------------------------------------------------
    "Zulko+moviepy/-video-with-dash-.mp4": Facts("mp4", "h264", 1, 1, 5, 5.0),
    "Zulko+moviepy/test_video.mp4": Facts("mp4", "h264", 1, 1, 5, 5.0),
    "imageio+imageio-binaries/cockatoo.mp4": Facts("mp4", "h264", 1280, 720, 280, 14.0),
    "pytorch+torchcodec/h264_10bits.mp4": Facts("mp4", "h264", 200, 200, 30, 1.0),
    "androidx+media/hdr10-av1.mp4": Facts("mp4", "av1", 720, 1280, 127, 4.24),
    "androidx+media/hlg10-color-test.mp4": Facts("mp4", "hevc", 1920, 1080, 9, 0.3),
    "mozilla+mp4parse-rust/h264_white_frame_sar_16_9.mp4": Facts(
        "mp4", "h264", 640, 480, 1, 0.04, displayed=(1138, 480)
    ),
    # -- rotated; the rotation is clockwise ----------------------------------------------------------------------------
    "androidx+media/internal_emulator_transformer_output_270_rotated.mp4": Facts(
        "mp4", "h264", 1280, 720, 149, 4.97, rotation=270, displayed=(720, 1280)
    ),
    "androidx+media/portrait_4k60.mp4": Facts("mp4", "h264", 3840, 2160, 18, 0.3, rotation=90, displayed=(2160, 3840)),
    "dmlc+decord/video_180.mov": Facts("mp4", "h264", 568, 320, 3, 0.1, rotation=180),
    "dmlc+decord/video_90.mov": Facts("mp4", "h264", 568, 320, 3, 0.1, rotation=90, displayed=(320, 568)),
    # -- time: edit lists that shift or start between keyframes, shuffled frames, a slow-motion part -------------------
    "androidx+media/edit_list_positive_shift.mp4": Facts("mp4", "h264", 1920, 1080, 270, 9.0),
    "androidx+media/sample_edit_list_no_sync_frame_before_edit.mp4": Facts(
        "mp4", "hevc", 1920, 1080, 68, 2.37, rotation=90, displayed=(1080, 1920)
    ),
    "androidx+media/sample_sef_super_slow_motion.mp4": Facts("mp4", "h264", 160, 120, 435, 14.47),
    "androidx+media/sample_with_increasing_timestamps_320w_240h_5s.mp4": Facts("mp4", "h264", 320, 240, 300, 5.0),
    "dmlc+decord/unordered.mov": Facts("mp4", "h264", 50, 50, 4, 0.12),
    "mozilla+mp4parse-rust/bbb_sunflower_QCIF_30fps_h263_noaudio_1f.3gp": Facts(
        "mp4",
        "h263",
        176,
        144,
        1,
        0.03,
        displayed=(216, 144),  # pixels of 27:22
    ),
    # -- containers with defects that do not concern the video ---------------------------------------------------------
    "Zulko+moviepy/video_with_failing_audio.mp4": Facts("mp4", "h264", 640, 360, 280, 11.2),
    "abema+go-mp4/sample_fragmented.mp4": Facts("mp4", "h264", 1280, 720, 10, 1.0),
    "androidx+media/sample.avi": Facts("avi", "mpeg4", 960, 400, 96, 4.09),
    "androidx+media/sample-unflagged-audio-keyframes.avi": Facts("avi", "mpeg4", 960, 400, 96, 4.09),
    "androidx+media/sample_fragmented.mp4": Facts("mp4", "h264", 1080, 720, 30, 1.0),
    "androidx+media/sample_h264_iframes_only.ts": Facts("mpegts", "h264", 854, 480, 30, 1.0),
    "androidx+media/sample_last_cluster.mkv": Facts("matroska", "h264", 1080, 720, 30, 0.97),
    "androidx+media/sample_missing_stsd.mp4": Facts("mp4", "h264", 1080, 720, 30, 1.0),
    # All five frames have one timestamp, and 25 frames a second are declared.
    "androidx+media/sample_with_fake_auxiliary_tracks.mp4": Facts("mp4", "h264", 10, 12, 5, 0.2),
    "mozilla+mp4parse-rust/metadata.mp4": Facts("mp4", "h264", 320, 240, 1, 0.04),  # the other video is a cover
    # -- small files of long clips: within the limits, and beyond them -------------------------------------------------
    "androidx+media/long_1080p_lowbitrate.mp4": Facts("mp4", "h264", 1920, 1080, 10_883, 362.77),
    "androidx+media/long_4k_av1.mp4": TOO_LONG,  # 21,766 frames in 1.1 MB
    # -- damage: 1 of 50 frames, all of 3 frames; a box of 3 bytes -----------------------------------------------------
    "dmlc+decord/corrupted.mp4": Facts("mp4", "h264", 1280, 720, 50, 5.0, damaged=1),
    "mozilla+mp4parse-rust/test_case_1185230.mp4": CORRUPT,
    "androidx+media/sample_malformed_free_box.mp4": CORRUPT,
    # -- video streams without a frame: initialisation segments, a file that only declares frames ----------------------
    "androidx+media/init.mp4": NO_FRAMES,
    "androidx+media/video_init.mp4": NO_FRAMES,
    "androidx+media/sample_with_sdt.ts": NO_FRAMES,
    "mozilla+mp4parse-rust/invalid_userdata.mp4": NO_FRAMES,
    # -- encrypted: reported even if there are no frames ---------------------------------------------------------------
    "abema+go-mp4/sample_init.encv.mp4": UNSUPPORTED,
    "androidx+media/sample_fragmented_widevine.mp4": UNSUPPORTED,
    "mozilla+mp4parse-rust/bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": UNSUPPORTED,
    # -- not a video: empty, animated images, sound, subtitles, an MPEG-4 scene description; Indeo ---------------------
    "Zulko+moviepy/result.webm": UNSUPPORTED,
    "Zulko+moviepy/pigs_in_a_polka.gif": UNSUPPORTED,
    "imageio+imageio-binaries/imageio_issue245.gif": UNSUPPORTED,
    "mozilla+mp4parse-rust/no-ftyp.avif": UNSUPPORTED,
    "androidx+media/5p1_iamf_opus.mp4": UNSUPPORTED,
    "androidx+media/bbb_mono_8kHz_12.2kbps_amrnb.3gp": UNSUPPORTED,
    "androidx+media/sample_ac4_protected.mp4": UNSUPPORTED,
    "androidx+media/sample_audio_only.mp4": UNSUPPORTED,
    "androidx+media/sample.text.mp4": UNSUPPORTED,
    "gpac+testsuite/france.mp4": UNSUPPORTED,
    "ffmpegwasm+testdata/video-15s.avi": UNSUPPORTED,
}


@pytest.fixture(scope="module")
def nasty(shared: Path) -> Path:
    return shared / "nasty"


def answer(path: Path) -> Facts | Problem:
    """The answer that the decoder gives for a file."""
    try:
        facts = decode_clip(path, PATIENT).facts
    except ClipError as error:
        return Problem(KINDS[error.code].status, error.code)
    displayed, coded = (facts.width, facts.height), (facts.coded_width, facts.coded_height)
    return Facts(
        facts.container,
        facts.codec,
        *coded,
        facts.frames,
        round(facts.duration_s, 2),
        facts.rotation,
        facts.damaged_frames,
        displayed if displayed != coded else None,
    )


def small_files(nasty: Path) -> list[tuple[str, bytes]]:
    """The names and the bytes of the files that do not take long to decode."""
    return [(name, (nasty / name).read_bytes()) for name in ANSWERS if (nasty / name).stat().st_size < MAX_REAL_BYTES]


def assert_sampled_or_refused(data: bytes, description: str) -> None:
    """Assert that the bytes give 40 frames or a ``ClipError``, and no other error."""
    try:
        frames = decode_clip(data, DecodeLimits(max_frames=2000, timeout_s=120)).frames
    except ClipError:
        return
    assert frames.shape == (40, 224, 224, 3), description


def test_every_file_of_the_folder_has_an_expected_answer(nasty: Path) -> None:
    present = {path.relative_to(nasty).as_posix() for path in nasty.rglob("*.*") if path.name != "index.json"}

    assert present == ANSWERS.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_file_gets_its_expected_answer(nasty: Path, name: str) -> None:
    assert answer(nasty / name) == ANSWERS[name]


@pytest.mark.timeout(1800)
def test_a_truncated_file_is_sampled_or_refused(nasty: Path) -> None:
    for name, data in small_files(nasty):
        for tenths in range(1, 10):
            assert_sampled_or_refused(data[: len(data) * tenths // 10], f"{name} truncated to {tenths}0 %")


@pytest.mark.timeout(1800)
def test_a_file_with_flipped_bits_is_sampled_or_refused(nasty: Path) -> None:
    """In half of the variants, all flipped bits are in the first 4 KiB, where most headers are."""
    rng = np.random.default_rng(200)
    files = [data for _, data in small_files(nasty) if data]
    for variant in range(200):
        data = bytearray(files[rng.integers(len(files))])
        reach = min(len(data), 4096 if rng.random() < 0.5 else len(data))
        for place in rng.integers(reach, size=rng.integers(1, 40)):
            data[place] ^= 1 << int(rng.integers(8))
        assert_sampled_or_refused(bytes(data), f"variant {variant}")
