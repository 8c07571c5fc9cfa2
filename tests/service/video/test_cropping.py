"""What a container crops: Matroska's ``PixelCrop`` and MP4's clean aperture."""

import io
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClipError
from service.video.decoder import DecodedClip, decode_clip
from tests.service.video.boxes import (
    CROP_BOTTOM,
    CROP_LEFT,
    CROP_RIGHT,
    CROP_TOP,
    DISPLAY_HEIGHT,
    DISPLAY_UNIT,
    DISPLAY_WIDTH,
    box,
    clap,
    in_sample_entry,
    in_video_track,
    number,
    with_box,
    with_track_of_sound,
)
from tests.service.video.clips import encode, numbered, read_number, with_content

Image = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 160, 120
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
LOSSLESS = {"qp": "0", "bf": "0"}
STREAMED = {"live": "1"}  # without an index, whose offsets would be wrong


def pictures(left: int, top: int, right: int, bottom: int) -> list[Image]:
    """Grey pictures with one part that is red, green, blue and white."""
    picture = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    rows, columns = (np.arange(end - start) * 2 // (end - start) for start, end in ((top, bottom), (left, right)))
    picture[top:bottom, left:right] = QUARTERS[rows][:, columns]
    return [picture] * 3


def assert_shows_only_quarters(clip: DecodedClip, frame: int = 20) -> None:
    """Assert that the coloured part fills a frame: its corners and what is next to the middle have the colours."""
    for y, x in product((1, 100, 123, 222), repeat=2):
        colour = QUARTERS[y // 112, x // 112]
        np.testing.assert_allclose(clip.frames[frame, y, x].astype(int), colour, atol=45, err_msg=f"at {x}, {y}")


def matroska(crops: Mapping[bytes, int], part: Sequence[int]) -> bytes:
    """A clip in Matroska that crops its pictures."""
    clip = encode(pictures(*part), container="matroska", muxing=STREAMED, pix_fmt="yuv444p", options=LOSSLESS)
    return in_video_track(clip, b"".join(number(kind, value) for kind, value in crops.items()))


def mp4(aperture: bytes, part: Sequence[int]) -> bytes:
    """A clip in MP4 with a clean aperture."""
    return in_sample_entry(encode(pictures(*part), pix_fmt="yuv444p", options=LOSSLESS), aperture)


def whole(size: int) -> tuple[int, int]:
    return size, 1


class TestCrops:
    @pytest.mark.parametrize(
        "part",
        [(40, 0, 120, 120), (0, 20, 160, 100), (16, 8, 96, 88), (33, 17, 100, 90), (0, 0, 1, 1), (159, 119, 160, 120)],
    )
    def test_only_the_part_that_matroska_or_mp4_crops_to_is_shown(self, part: Sequence[int]) -> None:
        left, top, right, bottom = part
        crops = {CROP_LEFT: left, CROP_TOP: top, CROP_RIGHT: WIDTH - right, CROP_BOTTOM: HEIGHT - bottom}
        aperture = clap(whole(right - left), whole(bottom - top), (left + right - WIDTH, 2), (top + bottom - HEIGHT, 2))
        for clip in (decode_clip(matroska(crops, part)), decode_clip(mp4(aperture, part))):
            assert (clip.facts.width, clip.facts.height) == (right - left, bottom - top)
            assert (clip.facts.coded_width, clip.facts.coded_height) == (WIDTH, HEIGHT)
            if right - left > 1:
                assert_shows_only_quarters(clip)

    @pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv420p10le", "gray"])
    def test_pictures_of_any_format_are_cropped_at_any_pixel(self, pix_fmt: str) -> None:
        marked = encode(pictures(33, 17, 100, 90), pix_fmt=pix_fmt, options=LOSSLESS)
        aperture = clap(whole(66), whole(72), (34 + 99 - WIDTH, 2), (18 + 89 - HEIGHT, 2))

        clip = decode_clip(in_sample_entry(marked, aperture))

        brightness = QUARTERS @ [0.299, 0.587, 0.114]
        for y, x in product((4, 219), repeat=2):
            expected = brightness[y // 112, x // 112] if pix_fmt == "gray" else QUARTERS[y // 112, x // 112]
            np.testing.assert_allclose(clip.frames[20, y, x].astype(int), expected, atol=40)

    @pytest.mark.parametrize(
        ("aperture", "part"),
        [
            # Edges at 29.5 and 130.5; 30.25 and 130.25; 8.75 and 99.
            (clap(whole(101), whole(120), whole(0), whole(0)), (29, 0, 130, 120)),
            (clap(whole(100), whole(120), (1, 4), whole(0)), (30, 0, 130, 120)),
            (clap(whole(160), (361, 4), whole(0), (-49, 8)), (0, 8, 160, 99)),
            (clap((4000, 50), (800, 10), (-400, 10), (30, 3)), (0, 30, 80, 110)),
        ],
    )
    def test_edges_between_pixels_are_rounded_down(self, aperture: bytes, part: Sequence[int]) -> None:
        clip = decode_clip(mp4(aperture, part))

        left, top, right, bottom = part
        assert (clip.facts.width, clip.facts.height) == (right - left, bottom - top)
        assert_shows_only_quarters(clip)

    @pytest.mark.parametrize("container", ["mp4", "mov", "3gp"])
    def test_cropping_and_rotation_add_up(self, container: str) -> None:
        data = encode(
            pictures(40, 0, 120, 120), container=container, prepare=lambda stream: stream.set_display_rotation(270)
        )

        clip = decode_clip(in_sample_entry(data, clap(whole(80), whole(120), whole(0), whole(0))))

        assert (clip.facts.width, clip.facts.height, clip.facts.rotation) == (120, 80, 90)
        corners = clip.frames[20, 20::184, 20::184]
        np.testing.assert_allclose(corners, np.rot90(QUARTERS, -1).astype(int), atol=25)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
    def test_h264_may_crop_any_number_of_pixels_on_the_left(self, container: str) -> None:
        """Without being told otherwise, FFmpeg's decoder crops there in steps of 32 only."""
        data = encode(
            pictures(18, 8, 126, 104),
            container=container,
            options=LOSSLESS | {"x264-params": f"crop-rect=18,8,{WIDTH - 126},{HEIGHT - 104}"},
        )

        clip = decode_clip(data)

        assert (clip.facts.width, clip.facts.height) == (108, 96)
        assert_shows_only_quarters(clip)

    def test_a_decoder_crops_first_and_the_container_counts_from_the_same_corner(self) -> None:
        """120 lines are coded as 128. The container declares 128, and cuts off the eight that are already gone."""
        data = matroska({CROP_LEFT: 40, CROP_RIGHT: 40, CROP_BOTTOM: 8}, (40, 0, 120, 120))
        height = b"\xba" + struct.pack(">Q", 1 << 56 | 1) + bytes([HEIGHT])
        assert data.count(height) == 1

        clip = decode_clip(data.replace(height, height[:-1] + bytes([128])))

        assert (clip.facts.width, clip.facts.height) == (80, 120)
        assert_shows_only_quarters(clip)

    def test_frames_that_change_size_are_cropped_where_they_are_large_enough(self) -> None:
        crops = number(CROP_LEFT, 40) + number(CROP_TOP, 60)
        with av.open(io.BytesIO(encode([numbered(7, 32, 24)], codec="mjpeg", container="avi")), "r") as small:
            picture = bytes(next(small.demux(video=0)))
        data = encode(
            pictures(40, 60, 160, 120),
            codec="mjpeg",
            container="matroska",
            muxing=STREAMED,
            change=lambda number, packet: with_content(packet, picture) if number else packet,
        )

        clip = decode_clip(in_video_track(data, crops))

        assert (clip.facts.width, clip.facts.height, clip.facts.damaged_frames) == (120, 60, 0)
        assert_shows_only_quarters(decode_clip(in_video_track(data, crops)), frame=0)
        assert read_number(clip.frames[39]) == 7


class TestShapeOfPixels:
    def test_matroska_gives_the_size_at_which_the_part_is_displayed(self) -> None:
        crops = number(CROP_LEFT, 40) + number(CROP_RIGHT, 40)
        display = number(DISPLAY_WIDTH, 16) + number(DISPLAY_HEIGHT, 12) + number(DISPLAY_UNIT, 3)
        data = encode(pictures(40, 0, 120, 120), container="matroska", muxing=STREAMED)

        facts = decode_clip(in_video_track(data, crops + display, [DISPLAY_UNIT])).facts

        assert (facts.width, facts.height) == (160, 120)

    def test_without_a_shape_of_pixels_an_mp4_track_has_the_size_at_which_the_part_is_displayed(self) -> None:
        aperture = clap(whole(80), whole(120), whole(0), whole(0))
        data = mp4(aperture, (40, 0, 120, 120))
        size = data.index(b"tkhd") + 4 + 76
        assert data[size : size + 8] == struct.pack(">II", WIDTH << 16, HEIGHT << 16)

        for width, displayed in ((80, (80, 120)), (160, (80, 120)), (120, (120, 120)), (40, (80, 240))):
            changed = data[:size] + struct.pack(">II", width << 16, HEIGHT << 16) + data[size + 8 :]
            facts = decode_clip(changed).facts
            assert (facts.width, facts.height) == displayed

    def test_a_shape_of_pixels_holds_for_the_part(self) -> None:
        def squeeze(stream: VideoStream) -> None:
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

        data = encode(pictures(40, 0, 120, 120), prepare=squeeze)

        facts = decode_clip(in_sample_entry(data, clap(whole(81), whole(120), whole(0), whole(0)))).facts

        assert (facts.width, facts.height) == (108, 120)


class TestWhichStream:
    @pytest.mark.parametrize("cropped", [0, 1])
    @pytest.mark.parametrize("container", ["mp4", "matroska"])
    def test_only_the_stream_that_is_cropped_is_cropped(self, container: str, cropped: int) -> None:
        data = _two_tracks(container)
        if container == "matroska":
            data = in_video_track(data, number(CROP_RIGHT, 40), track=cropped)
        else:
            aperture = clap(whole(120), whole(120), (-40, 2), whole(0))
            data = in_sample_entry(data, aperture, kind=b"mp4v" if cropped else b"avc1")

        facts = decode_clip(data).facts

        sampled = ["h264", "mpeg4"].index(facts.codec)
        assert (facts.width, facts.height) == ((120, 120) if sampled == cropped else (160, 120))

    def test_tracks_of_sound_do_not_count(self) -> None:
        data = with_track_of_sound(matroska({CROP_LEFT: 40, CROP_RIGHT: 40}, (40, 0, 120, 120)))

        with av.open(io.BytesIO(data), "r") as container:
            assert [stream.type for stream in container.streams] == ["audio", "video"]
        assert_shows_only_quarters(decode_clip(data))

    @pytest.mark.parametrize(
        "before", [b"\0\0\0\1free" + bytes([0, 0, 0, 0, 0, 0, 0, 16]), box(b"free", b"moov")], ids=["64 bits", "free"]
    )
    def test_boxes_of_any_size_may_come_before_the_movie(self, before: bytes) -> None:
        data = mp4(clap(whole(80), whole(120), whole(0), whole(0)), (40, 0, 120, 120))
        movie = data.index(b"moov") - 4

        assert_shows_only_quarters(decode_clip(data[:movie] + before + data[movie:]))

    def test_the_first_sample_description_of_several_holds(self) -> None:
        data = mp4(clap(whole(80), whole(120), whole(0), whole(0)), (40, 0, 120, 120))
        entry = data[data.index(b"avc1", data.index(b"stsd")) - 4 : data.index(b"clap") - 4 + 40]
        again = with_box(data, entry.replace(b"clap", b"free"), b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
        count = again.index(b"stsd") + 8
        assert again[count : count + 4] == bytes([0, 0, 0, 1])

        clip = decode_clip(again[:count] + bytes([0, 0, 0, 2]) + again[count + 4 :])

        assert clip.facts.width == 80
        assert_shows_only_quarters(clip)


class TestOddValues:
    @pytest.mark.parametrize(
        "aperture",
        [
            clap(whole(161), whole(120), whole(0), whole(0)),
            clap(whole(160), whole(121), whole(0), whole(0)),
            clap(whole(80), whole(120), whole(41), whole(0)),
            clap(whole(80), whole(120), whole(-41), whole(0)),
            clap(whole(80), whole(60), whole(0), whole(31)),
            clap(whole(0), whole(120), whole(0), whole(0)),
            clap(whole(-80), whole(120), whole(0), whole(0)),
            clap((80, 0), whole(120), whole(0), whole(0)),
            clap((80, -1), (120, -1), whole(0), whole(0)),
            clap(whole(80), whole(120), (1, 0), whole(0)),
            clap(whole(160), whole(120), whole(0), whole(0)),
            clap((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), whole(0), whole(0)),
            box(b"clap", b""),
            box(b"clap", b"\0" * 31),
            box(b"clap", b"\xff" * 32),
        ],
    )
    def test_an_aperture_that_is_empty_or_larger_than_the_picture_is_ignored(self, aperture: bytes) -> None:
        clip = decode_clip(mp4(aperture, (0, 0, 160, 120)))

        assert (clip.facts.width, clip.facts.height) == (160, 120)
        assert_shows_only_quarters(clip)

    def test_a_box_whose_size_is_cut_off_is_not_read(self) -> None:
        data = mp4(b"\0\0\0\1clap" + b"\xff" * 4, (0, 0, 160, 120))
        aperture = clap(whole(80), whole(120), whole(0), whole(0))[8:]

        clip = decode_clip(with_box(data, bytes(4) + aperture, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"))

        assert (clip.facts.width, clip.facts.height) == (160, 120)

    @pytest.mark.parametrize("value", [160, 2**31, 2**63])
    def test_matroska_that_crops_everything_is_refused_by_ffmpeg(self, value: int) -> None:
        with pytest.raises(ClipError):
            decode_clip(matroska({CROP_LEFT: value}, (0, 0, 160, 120)))

    @given(data=st.data())
    def test_clips_with_overwritten_headers_are_sampled_or_refused(
        self, cropped_clips: Sequence[bytes], data: st.DataObject
    ) -> None:
        clip = bytearray(data.draw(st.sampled_from(cropped_clips)))
        start = clip.index(b"moov") if b"moov" in clip else 0
        for place in data.draw(st.lists(st.integers(start, min(len(clip), start + 900) - 1), min_size=1, max_size=8)):
            clip[place] = data.draw(st.integers(0, 255))

        try:
            facts = decode_clip(bytes(clip)).facts
        except ClipError:
            return
        assert min(facts.width, facts.height) >= 1


@pytest.fixture(scope="module")
def cropped_clips() -> list[bytes]:
    aperture = clap(whole(80), whole(120), whole(0), whole(0))
    return [mp4(aperture, (40, 0, 120, 120)), matroska({CROP_LEFT: 40, CROP_RIGHT: 40}, (40, 0, 120, 120))]


def test_the_counted_sample_is_cropped(shared: Path) -> None:
    path = shared / "faults" / "crop_counted.mkv"
    if not path.is_file():
        pytest.skip(f"needs {path}")

    clip = decode_clip(path)

    assert (clip.facts.width, clip.facts.height) == (320, 240)
    assert (clip.facts.coded_width, clip.facts.coded_height) == (320, 320)
    np.testing.assert_allclose(clip.frames[:, 8::207, 8::207].astype(int), np.stack([QUARTERS] * 40), atol=25)


def _two_tracks(container: str) -> bytes:
    """A clip with a track of H.264 and one of MPEG-4."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=STREAMED if container == "matroska" else {}) as output:
        streams = [output.add_stream(codec, rate=25, options={"bf": "0"}) for codec in ("libx264", "mpeg4")]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures(0, 0, WIDTH, HEIGHT):
            for stream in streams:
                output.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode())
    return file.getvalue()
