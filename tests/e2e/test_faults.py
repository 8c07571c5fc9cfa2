"""Clips that were once answered wrongly, each of them with the right answer, through the real service."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.video.sampling import FRAME_COUNT
from tests.service.video.clips import corners, read_count
from tests.service.video.oracle import TOLERANCE, difference, look_at

Pixels = npt.NDArray[np.uint8]

# What the list of answers says in words only. In the AVI, 50 frames at 25 a second are followed by a gap of two
# seconds, through which frame 49 stays on screen; the decoder's delay of two frames is heeded.
IN_WORDS = {
    "sei_rot_counted.ts": {"frames": 40, "duration_s": 1.6, "indices": list(range(40)), "counted": True},
    "vfr_h264.avi": {
        "frames": 150,
        "duration_s": 8.0,
        "indices": [*range(2, 48, 5), *[49] * 10, *range(52, 148, 5)],
    },
}
FILES = [
    "crop_counted.mkv",
    "dv5_dvhe.mp4",
    "flv_new_sps.flv",
    "matrix_ictcp.mp4",
    "packed_counted.avi",
    "paff.ts",
    "sei_rot_counted.ts",
    "spatial.mov",
    "subtitles.mp4",
    "ts_gap60.ts",
    "ts_reset_counted.ts",
    "two_stsd2.mp4",
    "two_tracks_counted.mp4",
    "vfr_h264.avi",
    "vp8_altref_counted.webm",
    "zero_ts.mkv",
]


@pytest.fixture(scope="module")
def answers(shared: Path) -> dict[str, dict[str, Any]]:
    """The right answer for each file."""
    path = shared / "faults" / "index.json"
    if not path.is_file():
        pytest.skip(f"needs real clips: {path}")
    return {
        entry["file"]: entry | IN_WORDS.get(entry["file"], {}) for entry in json.loads(path.read_text(encoding="utf-8"))
    }


def test_every_file_of_the_list_is_tried(answers: dict[str, dict[str, Any]]) -> None:
    assert sorted(answers) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_clip_that_was_once_answered_wrongly_is_answered_rightly(
    client: httpx.Client, shared: Path, answers: dict[str, dict[str, Any]], name: str
) -> None:
    right = answers[name]

    answer = client.post("/predict?frames=jpeg", content=(shared / "faults" / name).read_bytes())

    assert answer.status_code == right["status"], answer.text
    body = answer.json()
    if right["status"] != 200:
        assert body["code"] == right["code"]
        return
    assert body["clip"]["frames"] == right["frames"]
    if right["duration_s"] is not None:
        assert body["clip"]["duration_s"] == pytest.approx(right["duration_s"], abs=0.001)
    shown = [frame["index"] for frame in body["frames"]]
    assert shown == right["indices"]
    assert len(shown) == FRAME_COUNT
    pictures = [_opened(base64.b64decode(frame["jpeg"])) for frame in body["frames"]]
    if right.get("counted"):
        # Where some pictures ask to be turned and others do not, one answer holds for the clip: undo it here.
        turned_back = [np.rot90(picture, body["clip"]["rotation"] // 90) for picture in pictures]
        assert [read_count(picture) for picture in turned_back] == shown
        assert {corners(picture) for picture in turned_back} == {"red green blue white"}
    else:
        seen = look_at(shared / "faults" / name, shown)
        for index, picture in zip(shown, pictures, strict=True):
            assert difference(picture, _as_jpeg(seen[index])) < TOLERANCE, f"frame {index} is not as ffmpeg shows it"


def _as_jpeg(picture: Pixels) -> Pixels:
    """A picture as the service sends it: half the size, with JPEG's loss."""
    file = io.BytesIO()
    Image.fromarray(picture).reduce(2).save(file, "JPEG", quality=75)
    return _opened(file.getvalue())


def _opened(jpeg: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(jpeg)))
