"""Rendered clips: valid video files, reproducible from a seed, with an actor inside the given boxes."""

import io
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from model_export.rendering.figure import ACTIONS, render_clip

# Difference, of 255, above which a pixel has moved: well above an encoder's noise, well below a moving limb.
MOVED = 40
# Difference, of 255, averaged over a frame: above that of two versions of an encoder, below that of another pose.
MEAN_DIFFERENCE = 1.0

SERVICE = Path(__file__).resolve().parents[3] / "service"


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    with av.open(io.BytesIO(data), "r") as clip:
        return np.array([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)], np.uint8)


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libx264", "mp4"),
        ("libx264", "mov"),
        ("libx264", "matroska"),
        ("libx265", "mp4"),
        ("mpeg4", "avi"),
        ("mjpeg", "avi"),
        ("mpeg2video", "mpegts"),
        ("libvpx", "webm"),
        ("libvpx-vp9", "webm"),
        ("ffv1", "matroska"),
    ],
)
def test_each_codec_and_container_holds_the_requested_frames(codec: str, container: str) -> None:
    clip = render_clip(frames=7, codec=codec, container=container, width=96, height=72)

    assert decode(clip.data).shape == (7, 72, 96, 3)
    assert clip.boxes.shape == (7, 4)


def test_encoding_leaves_the_process_at_its_scheduling_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    render_clip(frames=2, codec="libsvtav1", container="mp4", width=96, height=72)

    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


def test_the_file_declares_its_size_rate_and_duration() -> None:
    clip = render_clip(frames=30, width=128, height=96, fps=15)

    with av.open(io.BytesIO(clip.data), "r") as file:
        stream = file.streams.video[0]
        assert (stream.width, stream.height) == (128, 96)
        assert stream.frames == 30
        assert stream.average_rate == 15
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 2


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libvpx-vp9", "webm")])
def test_the_same_seed_gives_the_same_bytes(codec: str, container: str) -> None:
    first, again = (
        render_clip(frames=4, seed=3, codec=codec, container=container, width=96, height=72) for _ in range(2)
    )

    assert first.data == again.data
    np.testing.assert_array_equal(first.boxes, again.boxes)


def test_seeds_change_the_place_the_person_and_the_position() -> None:
    clips = [render_clip(frames=1, seed=seed, width=96, height=72) for seed in range(6)]

    firsts = [decode(clip.data)[0].astype(int) for clip in clips]
    assert all(np.abs(a - b).mean() > 10 for i, a in enumerate(firsts) for b in firsts[:i])
    assert len({tuple(clip.boxes[0]) for clip in clips}) == 6


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_everything_that_moves_is_inside_the_boxes(action: str, seed: int) -> None:
    clip = render_clip(action, frames=50, seed=seed, width=160, height=120)
    pictures = decode(clip.data).astype(int)

    moving = 0
    for earlier in range(0, 40, 8):
        later = earlier + 7
        moved = np.abs(pictures[later] - pictures[earlier]).max(axis=-1) > MOVED
        boxes = clip.boxes[[earlier, later]]
        left, top = boxes[:, :2].min(axis=0) * (160, 120) - 1
        right, bottom = boxes[:, 2:].max(axis=0) * (160, 120) + 1
        rows, columns = np.nonzero(moved)
        assert np.all((columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom))
        moving += int(moved.sum())
    assert moving > 300


@pytest.mark.parametrize("action", ACTIONS)
def test_the_boxes_are_tight_and_the_figure_is_inside_the_frame(action: str) -> None:
    boxes = render_clip(action, frames=40, width=96, height=72).boxes

    assert np.all(boxes[:, :2] > 0)
    assert np.all(boxes[:, 2:] < 1)
    heights = boxes[:, 3] - boxes[:, 1]
    assert heights.max() < 0.95
    assert heights.min() > 0.25


def test_jumping_jacks_spread_the_limbs_and_hop() -> None:
    boxes = render_clip("jumping_jacks", frames=50, width=96, height=72).boxes
    widths, tops = boxes[:, 2] - boxes[:, 0], boxes[:, 1]

    assert widths.max() > 1.8 * widths.min()
    assert tops.max() - tops.min() > 0.1


def test_squats_bend_the_knees() -> None:
    boxes = render_clip("squats", frames=80, width=96, height=72).boxes

    top, bottom = boxes[:, 1], boxes[:, 3]
    assert top.max() - top.min() > 0.12
    assert bottom.max() - bottom.min() < 0.03


def test_waving_moves_one_arm_only() -> None:
    clip = render_clip("waving", frames=30, width=160, height=120)
    spread = decode(clip.data).astype(int)
    moved = (spread.max(axis=0) - spread.min(axis=0)).max(axis=-1) > MOVED

    left, _, right, bottom = clip.boxes[0] * (160, 120, 160, 120)
    middle = int((left + right) / 2)
    # It is the figure's right arm, on the viewer's left.
    assert moved[:, :middle].sum() > 3 * moved[:, middle:].sum()
    assert moved[: int(bottom) - 40].sum() > moved[int(bottom) - 40 :].sum()


def test_large_clips_show_the_same_scene() -> None:
    large, small = (
        decode(render_clip(frames=1, width=width, height=height).data)[0] for width, height in ((1280, 720), (640, 360))
    )

    shrunk = large.reshape(360, 2, 640, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 4


@pytest.mark.parametrize("size", [(72, 128), (16, 16), (2, 2), (256, 32)])
def test_unusual_shapes_are_drawn(size: tuple[int, int]) -> None:
    width, height = size

    clip = render_clip(frames=3, width=width, height=height, codec="mpeg4", container="avi")

    assert decode(clip.data).shape == (3, height, width, 3)
    assert np.all((clip.boxes >= 0) & (clip.boxes <= 1))


def test_an_unknown_action_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="jumping_jacks, squats, waving"):
        render_clip("flying")


@pytest.mark.parametrize(
    ("frames", "width", "height", "fps"), [(0, 320, 240, 25), (1, 321, 240, 25), (1, 320, 0, 25), (1, 320, 240, 0)]
)
def test_impossible_sizes_are_refused(frames: int, width: int, height: int, fps: int) -> None:
    with pytest.raises(ValueError, match="even and positive"):
        render_clip(frames=frames, width=width, height=height, fps=fps)


def test_an_audio_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="does not encode video"):
        render_clip(frames=1, codec="aac")


def frame_times(data: bytes) -> list[float | None]:
    """Return the presentation time of each frame in seconds."""
    with av.open(io.BytesIO(data), "r") as clip:
        return [frame.time for frame in clip.decode(video=0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("web/sample.mp4", {}), ("isolation/warmup.mp4", {"frames": 4, "width": 64, "height": 48})],
)
def test_a_committed_clip_has_the_frames_that_the_renderer_draws(name: str, options: dict[str, Any]) -> None:
    """Pixels may differ a little: another version of the encoder may have written the file."""
    committed, rendered = (SERVICE / name).read_bytes(), render_clip(**options).data

    assert frame_times(committed) == frame_times(rendered)
    difference = np.abs(decode(committed).astype(int) - decode(rendered))
    assert difference.mean(axis=(1, 2, 3)).max() < MEAN_DIFFERENCE
