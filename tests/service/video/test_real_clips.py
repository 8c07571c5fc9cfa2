"""Real clips: their frames are those of a full decode, at the times at which the ffmpeg command shows them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from service.video.decoder import DecodedClip, DecodeLimits, decode_clip
from tests.service.video.clips import indices, middle_frames
from tests.service.video.naive import naive_decode
from tests.service.video.oracle import assert_as_ffmpeg_shows, assert_timed_as_ffmpeg_does, ffmpeg

pytestmark = pytest.mark.slow

PATIENT = DecodeLimits(timeout_s=120)  # a busy machine is no reason to fail


def assert_exact(path: Path) -> None:
    """Assert that a clip is sampled at ffmpeg's times, and that its frames are those of a full decode."""
    assert_timed_as_ffmpeg_does(assert_decoded_exactly(path), path)


def assert_decoded_exactly(path: Path) -> DecodedClip:
    """Assert that a clip's frames are those of a full decode."""
    clip = decode_clip(path, PATIENT)
    naive = naive_decode(path)
    assert clip.facts.frames == len(naive), path
    np.testing.assert_array_equal(clip.frames, [naive[index].image for index in indices(clip)], err_msg=str(path))
    return clip


@pytest.mark.ci
def test_every_avi_has_the_frames_of_a_full_decode(shared: Path) -> None:
    paths = sorted((shared / "clips").rglob("*.avi"))
    assert paths
    for path in paths:
        assert_exact(path)


def test_some_avis_look_as_ffmpeg_shows_them(shared: Path) -> None:
    for path in sorted((shared / "clips").rglob("*.avi"))[::10]:
        assert_as_ffmpeg_shows(decode_clip(path, PATIENT), path)


@pytest.mark.parametrize("container", ["ts", "mpg", "mp4", "mov", "avi"])
def test_field_coded_pictures_are_whole_in_every_container(shared: Path, tmp_path: Path, container: str) -> None:
    """Each field is a packet of its own, of which the second has no time in some containers."""
    source = shared / "faults" / "paff.ts"
    if not source.is_file():
        pytest.skip(f"needs real clips: {source}")
    path = tmp_path / f"paff.{container}"
    if container == "ts":
        shutil.copy(source, path)
    else:
        ffmpeg("-i", source, "-map", "0:v:0", "-c", "copy", path)

    if container == "avi":  # ffmpeg gives the last frame the time of a field
        assert indices(assert_decoded_exactly(path)) == middle_frames(100)
    else:
        assert_exact(path)
