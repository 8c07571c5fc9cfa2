"""Clips that need rarely used parts of PyAV. Decoders cannot import modules, so all of PyAV must be loaded before."""

import io
from fractions import Fraction
from typing import Any, cast

import httpx
import pytest
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

from tests.service.video.clips import (
    clip_with_track,
    encode,
    middle_frames,
    numbered,
    numbered_clip,
    with_content,
)
from tests.service.video.vc1 import vc1_clip, wmv3_clip

# Every codec of subtitles and data that FFmpeg's muxers write, by container. MPEG streams carry any codec in the same
# way, as private data, so only those are here that have a type of their own.
CODECS = {
    "mp4": "mov_text dvd_subtitle ttml bin_data",
    "mov": "mov_text eia_608 lcevc",
    "matroska": "subrip ass text webvtt dvd_subtitle dvb_subtitle hdmv_pgs_subtitle hdmv_text_subtitle",
    "webm": "webvtt",
    "mpegts": "dvb_subtitle dvb_teletext arib_caption hdmv_pgs_subtitle hdmv_text_subtitle subrip ttml klv timed_id3"
    " scte_35 smpte_2038 smpte_436m_anc epg lcevc bin_data",
    "mpeg": "dvd_subtitle subrip",
}
CONTENTS = {"klv": b"\x06\x0e\x2b\x34", "timed_id3": b"ID3\4\0\0\0\0\0\0", "dvb_subtitle": b"\x20\0\x0f"}
TRACKS = [(container, codec) for container, codecs in CODECS.items() for codec in codecs.split()]
# Formats of the list that the tests of decoding do not send through the sandbox, with a pixel format.
FORMATS = [
    *((codec, "asf", "yuv420p") for codec in ("wmv1", "wmv2", "msmpeg4v2", "msmpeg4", "mpeg4", "libx264")),
    *((codec, "avi", "yuv420p") for codec in ("wmv2", "msmpeg4v2", "rawvideo", "ffvhuff", "ffv1", "flv", "dvvideo")),
    *(("rawvideo", "avi", pix_fmt) for pix_fmt in ("bgr24", "gray", "yuyv422")),
    ("huffyuv", "avi", "yuv422p"),
    *(("rawvideo", container, "yuv422p") for container in ("matroska", "mov")),
    ("ffv1", "matroska", "yuv444p10le"),
    ("flv", "flv", "yuv420p"),
    ("mpeg4", "mpegts", "yuv420p"),
    ("dvvideo", "dv", "yuv420p"),
    ("dvvideo", "mov", "yuv420p"),
    *(("prores_ks", "mov", pix_fmt) for pix_fmt in ("yuv422p10le", "yuva444p10le")),
    ("dnxhd", "mov", "yuv422p"),
]


def assert_all_frames(answer: httpx.Response, frames: int) -> None:
    """Assert that a clip is answered, and its frames counted and sampled in order."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["clip"]["frames"] == frames
    assert answer.json()["clip"]["damaged_frames"] == 0
    assert [frame["index"] for frame in answer.json()["frames"]] == middle_frames(frames)


@pytest.mark.parametrize(("container", "codec"), TRACKS, ids=[f"{codec} in {box}" for box, codec in TRACKS])
def test_a_subtitle_or_data_track_does_not_change_the_frames(client: httpx.Client, container: str, codec: str) -> None:
    content = CONTENTS.get(codec, b"\0\5Hello") + bytes(20)

    assert_all_frames(client.post("/predict", content=clip_with_track(container, codec, content)), 50)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "webm", "ogg", "asf"])
def test_chapters_do_not_change_the_frames(client: httpx.Client, container: str) -> None:
    chapters = [
        {"id": n, "start": n * 500, "end": n * 500 + 500, "time_base": Fraction(1, 1000), "metadata": {"title": f"{n}"}}
        for n in range(4)
    ]

    def add_chapters(stream: VideoStream) -> None:
        cast(Any, stream.container).set_chapters(chapters)

    codec = "libvpx" if container in {"webm", "ogg"} else "libx264"
    clip = encode(map(numbered, range(50)), codec=codec, container=container, prepare=add_chapters)

    assert_all_frames(client.post("/predict", content=clip), 50)


@pytest.mark.parametrize(
    ("name", "kind"), [("font.ttf", "font/ttf"), ("cover.jpg", "image/jpeg"), ("notes.txt", "text/plain")]
)
def test_attachments_do_not_change_the_frames(client: httpx.Client, name: str, kind: str) -> None:
    def attach(stream: VideoStream) -> None:
        cast(OutputContainer, stream.container).add_attachment(name, kind, photo(1) if "image" in kind else bytes(100))

    clip = encode(map(numbered, range(50)), container="matroska", prepare=attach)

    assert_all_frames(client.post("/predict", content=clip), 50)


@pytest.mark.parametrize("container", ["mov", "mp4", "matroska"])
def test_a_timecode_track_does_not_change_the_frames(client: httpx.Client, container: str) -> None:
    clip = encode(
        map(numbered, range(50)),
        container=container,
        prepare=lambda stream: stream.metadata.update(timecode="01:02:03:04"),
    )
    assert container == "matroska" or b"tmcd" in clip

    assert_all_frames(client.post("/predict", content=clip), 50)


@pytest.mark.parametrize(("tag", "handler"), [(b"gpmd", b"meta"), (b"camm", b"camm"), (b"mett", b"meta")])
def test_a_track_of_telemetry_does_not_change_the_frames(client: httpx.Client, tag: bytes, handler: bytes) -> None:
    clip = clip_with_track("mov", "mov_text", b"\0\x20DEVC" + bytes(30))
    clip = clip.replace(b"text" + bytes(6), tag + bytes(6)).replace(b"mhlrtext", b"mhlr" + handler)
    assert tag in clip

    assert_all_frames(client.post("/predict", content=clip), 50)


@pytest.mark.parametrize(("codec", "container", "pix_fmt"), FORMATS, ids=map("-".join, FORMATS))
def test_every_format_is_decoded_in_the_sandbox(client: httpx.Client, codec: str, container: str, pix_fmt: str) -> None:
    broadcast = codec in {"dvvideo", "dnxhd"}  # formats with a few sizes only
    clip = numbered_clip(
        12 if broadcast else 50,
        codec=codec,
        container=container,
        pix_fmt=pix_fmt,
        size=(720, 576) if broadcast else (64, 48),
        options={"profile": "dnxhr_lb"} if codec == "dnxhd" else None,
    )

    assert_all_frames(client.post("/predict", content=clip), 12 if broadcast else 50)


@pytest.mark.parametrize("container", ["asf", "avi"])
def test_windows_media_video_9_is_decoded_in_the_sandbox(client: httpx.Client, container: str) -> None:
    assert_all_frames(client.post("/predict", content=wmv3_clip(30, container)), 30)


def test_vc1_is_decoded_in_the_sandbox(client: httpx.Client) -> None:
    assert_all_frames(client.post("/predict", content=vc1_clip(30)), 30)


def photo(number: int, orientation: int = 1) -> bytes:
    """A JPEG with Exif data."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(numbered(number)).save(file, "jpeg", exif=exif)
    return file.getvalue()


def test_side_data_of_a_type_unknown_to_pyav_is_ignored(client: httpx.Client) -> None:
    data = encode(
        map(numbered, range(50)),
        codec="mjpeg",
        container="avi",
        change=lambda number, packet: with_content(packet, photo(number, 6)),  # a quarter turn
    )

    answer = client.post("/predict", content=data)

    assert answer.status_code == 200, answer.text
    assert answer.json()["clip"]["rotation"] == 90  # from the display matrix, which accompanies the Exif data
    assert answer.json()["clip"]["frames"] == 50
