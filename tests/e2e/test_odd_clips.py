"""Clips that need rarely used parts of PyAV. Decoders cannot import modules, so all of PyAV must be loaded before."""

import io
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.service.video.clips import clip_with_track, encode, middle_frames, numbered, with_content

SUBTITLES = [
    ("mp4", "mov_text", b"\0\5Hello"),
    ("mov", "mov_text", b"\0\5Hello"),
    ("matroska", "subrip", b"Hello"),
    ("matroska", "ass", b"0,0,Default,,0,0,0,,Hello"),
    ("matroska", "webvtt", b"Hello"),
    ("webm", "webvtt", b"Hello"),
    ("matroska", "dvdsub", b"\0\4\0\2"),
    ("matroska", "hdmv_pgs_subtitle", b"\x80\0\0"),
    ("mpegts", "dvbsub", b"\x20\0\x0f" + bytes(8)),
]
DATA = [("mpegts", "klv", b"\x06\x0e\x2b\x34" + bytes(20)), ("mpegts", "timed_id3", b"ID3\4" + bytes(6))]
TRACKS = [*SUBTITLES, *DATA]


@pytest.mark.parametrize(
    ("container", "codec", "content"), TRACKS, ids=[f"{codec} in {box}" for box, codec, _ in TRACKS]
)
def test_a_subtitle_or_data_track_does_not_change_the_frames(
    client: httpx.Client, container: str, codec: str, content: bytes
) -> None:
    answer = client.post("/predict", content=clip_with_track(container, codec, content))

    assert answer.status_code == 200, answer.text
    assert answer.json()["clip"]["frames"] == 50
    assert [frame["index"] for frame in answer.json()["frames"]] == middle_frames(50)


def test_side_data_of_a_type_unknown_to_pyav_is_ignored(client: httpx.Client) -> None:
    def photo(number: int) -> bytes:
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6  # orientation: a quarter turn clockwise
        Image.fromarray(numbered(number)).save(file, "jpeg", exif=exif)
        return file.getvalue()

    data = encode(
        map(numbered, range(50)),
        codec="mjpeg",
        container="avi",
        change=lambda number, packet: with_content(packet, photo(number)),
    )

    answer = client.post("/predict", content=data)

    assert answer.status_code == 200, answer.text
    assert answer.json()["clip"]["rotation"] == 90  # from the display matrix, which accompanies the Exif data
    assert answer.json()["clip"]["frames"] == 50


@pytest.mark.parametrize("name", ["subtitles.mp4", "spatial.mov", "packed_counted.avi"])
def test_clips_that_were_once_decoded_wrongly_are_answered(client: httpx.Client, shared: Path, name: str) -> None:
    folder = shared / "faults"
    if not (folder / name).is_file():
        pytest.skip(f"needs {name} in {folder}")
    right = next(entry for entry in json.loads((folder / "index.json").read_text()) if entry["file"] == name)

    answer = client.post("/predict", content=(folder / name).read_bytes())

    assert answer.status_code == right["status"], answer.text
    body = answer.json()
    assert body["clip"]["frames"] == right["frames"]
    assert body["clip"]["duration_s"] == pytest.approx(right["duration_s"], abs=0.001)
    assert [frame["index"] for frame in body["frames"]] == right["indices"]
