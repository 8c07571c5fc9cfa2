"""What the decoder takes of a clip, against a naive decode of everything and against clips that number their frames."""

import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_high
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

from service.video.decoder import DecodedClip, DecodeLimits, decode_clip
from service.video.errors import (
    ClipError,
    ClipTooLong,
    CorruptClip,
    DecodeTimeout,
    NoFrames,
    ResolutionTooLarge,
    UnsupportedMedia,
)
from service.video.rendering import render_clip

Image = npt.NDArray[np.uint8]
Change = Callable[[int, "Packet[VideoStream]"], "Packet[VideoStream]"]

# -- clips that number their frames: tens in the grey of the left half, units in that of the right ---------------------

GREY_STEP = 24
QUIET = {"libx264": {"bf": "0"}, "libx265": {"x265-params": "log-level=none"}}


def numbered(number: int, width: int = 64, height: int = 48) -> Image:
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = GREY_STEP * (number // 10), GREY_STEP * (number % 10)
    return picture


def read_number(picture: Image) -> int:
    tens, units = (round(float(half.mean()) / GREY_STEP) for half in (picture[80:140, 30:80], picture[80:140, 140:190]))
    return 10 * tens + units


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def indices(clip: DecodedClip) -> list[int]:
    return [frame.index for frame in clip.sampled]


def encode(
    pictures: Iterable[Image],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 25,
    pts: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
    change: Change = lambda number, packet: packet,
) -> bytes:
    """A clip of these pictures; `pts` in frames of `rate`, `change` sees each packet before it is muxed."""
    file = io.BytesIO()
    pictures = list(pictures)
    height, width = pictures[0].shape[:2]
    with av.open(file, "w", format=container, options=dict(muxing or {})) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=rate, options=dict(options or QUIET.get(codec, {}))))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        prepare(stream)
        packets: list[Packet[VideoStream]] = []
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = pts[number] if pts else number, Fraction(1, rate)
            packets += stream.encode(frame)
        for number, packet in enumerate([*packets, *stream.encode()]):
            output.mux(change(number, packet))
    return file.getvalue()


def numbered_clip(
    frames: int,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    pts: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    change: Change = lambda number, packet: packet,
) -> bytes:
    pictures = (numbered(number) for number in range(frames))
    return encode(pictures, codec=codec, container=container, pts=pts, options=options, muxing=muxing, change=change)


def middle_frames(frames: int) -> list[int]:
    """The rule on constant frame rate: ⌊(k + ½)·N/40⌋."""
    return [(2 * k + 1) * frames // 80 for k in range(40)]


# -- a naive decode: everything, in plain PyAV -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame that a naive decode shows: its timestamp and duration in ticks, upright and resized."""

    pts: int
    duration: int
    image: Image


def naive_decode(source: bytes | Path) -> list[Shown]:
    reformatter = VideoReformatter()
    frames = []
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with av.open(file, "r", metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, VideoStream)
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                small = reformatter.reformat(frame, 224, 224, "rgb24", interpolation=Interpolation.BILINEAR)
                image = np.rot90(cast(Image, small.to_ndarray()), frame.rotation // 90)
                assert frame.pts is not None
                frames.append(Shown(frame.pts, frame.duration, image))
    return frames


def naive_sample(frames: Sequence[Shown]) -> list[Image]:
    """The 40 images that DESIGN §3 asks for, found by looking at every frame for every instant."""
    start, last = frames[0].pts, frames[-1]
    duration = last.pts + last.duration - start
    steps = [later.pts - earlier.pts for earlier, later in pairwise(frames)]
    rounding = Fraction(1, 2) if steps and median_high(steps) > 1 else 0  # ticks that count frames are not rounded
    images = []
    for k in range(40):
        instant = start + (k + Fraction(1, 2)) * duration / 40
        images.append([frame.image for frame in frames if frame.pts - rounding <= instant or frame is frames[0]][-1])
    return images


def assert_same_as_naive(clip: DecodedClip, source: bytes | Path) -> None:
    naive = naive_decode(source)
    assert clip.facts.frames == len(naive)
    assert clip.facts.damaged_frames == 0
    np.testing.assert_array_equal(clip.frames, naive_sample(naive))


def refusal(source: bytes, limits: DecodeLimits | None = None) -> ClipError:
    with pytest.raises(ClipError) as refused:
        decode_clip(source, limits)
    sentence = str(refused.value)
    assert sentence
    assert sentence.isprintable()
    return refused.value


# -- which frames ------------------------------------------------------------------------------------------------------


class TestSampledFrames:
    @pytest.mark.parametrize("frames", [1, 2, 7, 39, 40, 41, 80, 100])
    @pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("mpeg4", "mov")])
    def test_are_the_middles_of_forty_segments(self, frames: int, codec: str, container: str) -> None:
        clip = decode_clip(numbered_clip(frames, codec=codec, container=container))

        assert clip.frames.shape == (40, 224, 224, 3)
        assert clip.frames.dtype == np.uint8
        assert indices(clip) == middle_frames(frames)
        assert numbers(clip) == middle_frames(frames)

    def test_carry_their_instants_in_seconds_after_the_first_frame(self) -> None:
        clip = decode_clip(numbered_clip(50, pts=range(30, 80)))

        assert [frame.time_s for frame in clip.sampled] == pytest.approx([(k + 0.5) * 2 / 40 for k in range(40)])

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
    @pytest.mark.parametrize(
        "options", [{"bf": "3"}, {"bf": "3", "g": "10"}, {"x264-params": "open-gop=1:keyint=8:bframes=3"}]
    )
    def test_come_in_presentation_order_from_a_clip_with_b_frames(
        self, container: str, options: Mapping[str, str]
    ) -> None:
        clip = decode_clip(numbered_clip(100, container=container, options=options))

        assert numbers(clip) == middle_frames(100)

    @pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
    def test_come_in_presentation_order_from_an_avi_whose_timestamps_are_decode_times(self, codec: str) -> None:
        clip = decode_clip(numbered_clip(80, codec=codec, container="avi", options={"bf": "2", "b_strategy": "0"}))

        assert numbers(clip) == middle_frames(80)
        assert indices(clip) == numbers(clip)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv", "avi"])
    def test_do_not_depend_on_the_container(self, container: str) -> None:
        assert numbers(decode_clip(numbered_clip(100, container=container))) == middle_frames(100)

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
    def test_follow_a_variable_frame_rate(self, container: str) -> None:
        pts = [*range(10), *range(20, 100, 10), *range(100, 120)]  # quick, slow, quick
        clip = decode_clip(numbered_clip(len(pts), container=container, pts=pts))

        on_screen = [max(n for n, shown_from in enumerate(pts) if shown_from <= 3 * k + 1.5) for k in range(40)]
        assert numbers(clip) == on_screen
        assert indices(clip) == on_screen

    @pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv", "avi"])
    def test_do_not_depend_on_when_the_clip_starts(self, container: str) -> None:
        late = decode_clip(numbered_clip(60, container=container, pts=range(1000, 1060)))

        assert numbers(late) == numbers(decode_clip(numbered_clip(60, container=container)))
        assert late.facts.duration_s == pytest.approx(2.4)

    def test_may_have_negative_timestamps(self) -> None:
        data = numbered_clip(
            60, container="mpegts", pts=range(-30, 30), options={"bf": "2"}, muxing={"avoid_negative_ts": "disabled"}
        )

        assert naive_decode(data)[0].pts < 0
        assert numbers(decode_clip(data)) == middle_frames(60)

    def test_begin_where_an_edit_list_does(self) -> None:
        clip = decode_clip(numbered_clip(60, pts=range(-20, 40)))

        assert clip.facts.frames == 40
        assert numbers(clip) == list(range(20, 60))

    def test_are_right_where_the_container_calls_every_frame_a_keyframe(self) -> None:
        def call_it_a_keyframe(_: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            packet.is_keyframe = True
            return packet

        for codec, container in (("mpeg4", "mp4"), ("msmpeg4", "avi"), ("h263", "3gp"), ("libx264", "mp4")):
            pictures = [numbered(number, 176, 144) for number in range(80)]
            data = encode(pictures, codec=codec, container=container, options={"g": "80"}, change=call_it_a_keyframe)

            assert_same_as_naive(decode_clip(data), data)

    def test_are_the_same_of_bytes_a_path_and_an_open_file(self, tmp_path: Path) -> None:
        data = numbered_clip(45)
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)

        with path.open("rb") as file:
            clips = [decode_clip(source) for source in (data, path, str(path), file)]

        for clip in clips[1:]:
            np.testing.assert_array_equal(clip.frames, clips[0].frames)
            assert (clip.facts, clip.sampled) == (clips[0].facts, clips[0].sampled)


class TestNaiveDecode:
    """Short cuts change no pixel."""

    @pytest.mark.parametrize(
        ("codec", "container"),
        [
            ("libx264", "mp4"),
            ("libx264", "matroska"),
            ("libx264", "mpegts"),
            ("libx264", "flv"),
            ("libx265", "mp4"),
            ("mpeg4", "avi"),
            ("mpeg4", "mov"),
            ("msmpeg4", "avi"),
            ("mjpeg", "avi"),
            ("mpeg1video", "mpeg"),
            ("mpeg2video", "mpegts"),
            ("libvpx", "webm"),
            ("libvpx-vp9", "webm"),
        ],
    )
    def test_takes_the_same_pixels_of_a_rendered_clip(self, codec: str, container: str) -> None:
        data = render_clip(frames=60, width=96, height=72, codec=codec, container=container).data

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
    def test_takes_the_same_pixels_of_groups_of_pictures(
        self, codec: str, options: Mapping[str, str], container: str
    ) -> None:
        rng = np.random.default_rng(0)
        scene = rng.integers(0, 256, (64, 400, 3), np.uint8)
        pictures = [np.ascontiguousarray(scene[:, n : n + 96]) for n in range(200)]
        data = encode(pictures, codec=codec, container=container, options=options)

        assert_same_as_naive(decode_clip(data), data)

    def test_takes_the_same_pixels_of_a_group_so_long_that_most_are_left_out(self) -> None:
        data = encode((numbered(n // 5) for n in range(480)), options={"g": "5", "bf": "2"})

        assert_same_as_naive(decode_clip(data), data)


# -- turned clips ------------------------------------------------------------------------------------------------------


class TestDisplayMatrix:
    @pytest.mark.parametrize(
        ("counter_clockwise", "hflip", "vflip", "corners", "clockwise"),
        [
            # corners as shown: top left, top right, bottom left, bottom right of a picture stored as 0 1 / 2 3
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
    def test_turns_and_mirrors(
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
        assert (clip.facts.width, clip.facts.height) == (96, 48)
        if clockwise is not None:
            assert clip.facts.rotation == clockwise


# -- what the clip is --------------------------------------------------------------------------------------------------


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
    def test_name_the_container_and_the_codec(self, codec: str, container: str, called: tuple[str, str]) -> None:
        facts = decode_clip(numbered_clip(10, codec=codec, container=container)).facts

        assert (facts.container, facts.codec) == called
        assert (facts.width, facts.height, facts.frames) == (64, 48, 10)
        assert facts.duration_s == pytest.approx(0.4, abs=0.001)
        assert (facts.rotation, facts.damaged_frames) == (0, 0)

    def test_count_the_last_frame_s_own_duration(self) -> None:
        assert decode_clip(numbered_clip(1)).facts.duration_s == pytest.approx(0.04)


# -- damage ------------------------------------------------------------------------------------------------------------


def with_content(packet: "Packet[VideoStream]", content: bytes) -> "Packet[VideoStream]":
    """A packet of other bytes in the place of an intra-only clip's."""
    other = cast("Packet[VideoStream]", Packet(content))
    other.stream, other.time_base, other.is_keyframe = packet.stream, packet.time_base, True
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    return other


def break_packets(broken: Iterable[int]) -> Change:
    """Makes these packets of an intra-only clip undecodable."""
    damaged = set(broken)
    return lambda number, packet: with_content(packet, b"no picture") if number in damaged else packet


@pytest.fixture(scope="module")
def small_clips() -> list[bytes]:
    kinds = (("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm"), ("mpeg2video", "mpegts"))
    return [numbered_clip(12, codec=codec, container=container) for codec, container in kinds]


class TestDamage:
    def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_one_before_and_counted(self) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets([10, 11, 30]))

        clip = decode_clip(data)

        assert indices(clip) == list(range(40))
        assert numbers(clip) == [*range(10), 9, 9, *range(12, 30), 29, *range(31, 40)]
        assert clip.facts.damaged_frames == 3

    def test_the_first_frames_are_replaced_by_the_first_that_can_be_decoded(self) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets([0, 1]))

        assert numbers(decode_clip(data)) == [2, 2, *range(2, 40)]

    @pytest.mark.parametrize(("broken", "refused"), [(20, False), (21, True), (40, True)])
    def test_a_clip_is_corrupt_if_more_than_half_of_its_sampled_frames_are(self, broken: int, refused: bool) -> None:
        data = numbered_clip(40, codec="mjpeg", container="matroska", change=break_packets(range(broken)))

        if refused:
            assert isinstance(refusal(data), CorruptClip)
        else:
            assert decode_clip(data).facts.damaged_frames == broken

    @pytest.mark.parametrize("container", ["matroska", "mpegts", "flv", "avi"])
    def test_a_clip_cut_off_is_sampled_as_far_as_it_goes(self, container: str) -> None:
        data = numbered_clip(80, container=container, codec="mpeg4" if container == "avi" else "libx264")

        clip = decode_clip(data[: len(data) * 6 // 10])

        assert 10 < clip.facts.frames < 80
        assert numbers(clip) == sorted(numbers(clip))
        assert max(numbers(clip)) < clip.facts.frames

    def test_an_mp4_cut_off_before_its_index_is_corrupt(self) -> None:
        data = numbered_clip(80)

        assert isinstance(refusal(data[: data.index(b"moov") - 4]), CorruptClip)

    def test_frames_may_change_size_on_the_way_but_not_beyond_the_limit(self) -> None:
        with av.open(io.BytesIO(encode([numbered(7, 160, 120)], codec="mjpeg", container="avi")), "r") as larger:
            large = bytes(next(larger.demux(video=0)))
        data = numbered_clip(
            40,
            codec="mjpeg",
            container="matroska",
            change=lambda number, packet: packet if number < 15 else with_content(packet, large),
        )

        assert numbers(decode_clip(data)) == [*range(15), *[7] * 25]
        assert isinstance(refusal(data, DecodeLimits(max_pixels=64 * 48)), ResolutionTooLarge)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_whatever_is_overwritten_the_clip_is_sampled_or_refused(
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


# -- what is refused ---------------------------------------------------------------------------------------------------


def tone(*, cover: bool = False, video: bool = False) -> bytes:
    """An MP4 with sound, on request with a picture of its cover and with a video of 10 frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=44100)
        streams = []
        for codec in ["mjpeg"] * cover + ["libx264"] * video:
            stream = cast(VideoStream, output.add_stream(codec, rate=25))
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        if cover:
            streams[0].disposition = Disposition.attached_pic
        for stream in streams:
            for number in range(10 if stream.codec_context.name == "libx264" else 1):
                frame = VideoFrame.from_ndarray(numbered(number)).reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        for number in range(4):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 44100, 1024 * number
            output.mux(sound.encode(silence))
        output.mux(sound.encode())
    return file.getvalue()


def as_vc1(clip: bytes) -> bytes:
    """An MPEG-TS whose H.264 stream is declared as VC-1, stream type 0xEA, with the checksums of its tables."""
    clip_as_vc1 = bytearray(clip)
    for start in range(0, len(clip), 188):
        section = start + 5
        if clip[section] == 2 and clip[start + 1] & 0x40:
            end = section + 3 + (int.from_bytes(clip[section + 1 : section + 3]) & 0xFFF)
            clip_as_vc1[clip.index(b"\x1b", section)] = 0xEA
            clip_as_vc1[end - 4 : end] = mpeg_checksum(clip_as_vc1[section : end - 4])
    return bytes(clip_as_vc1)


def mpeg_checksum(section: bytes | bytearray) -> bytes:
    """CRC-32/MPEG-2: zlib's polynomial, unreflected and not inverted at the end."""
    register = 0xFFFFFFFF
    for byte in section:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x104C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return register.to_bytes(4)


class TestRefusals:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"The quick brown fox jumps over the lazy dog.\n" * 100,
            b"<html><body>not found</body></html>",
            np.random.default_rng(1).bytes(50_000),
            b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
            b"ffconcat version 1.0\nfile '/etc/hostname'\n",
            b"\x89PNG\r\n\x1a\n" + zlib.compress(b"not a picture"),
        ],
        ids=["empty", "one byte", "text", "html", "random", "playlist", "concat", "png"],
    )
    def test_what_is_no_video_is_unsupported(self, data: bytes) -> None:
        error = refusal(data)

        assert isinstance(error, UnsupportedMedia)
        assert error.code == "unsupported_media"

    @pytest.mark.parametrize(("codec", "container"), [("ffv1", "matroska"), ("flv", "flv"), ("rawvideo", "avi")])
    def test_another_codec_is_unsupported_and_named(self, codec: str, container: str) -> None:
        error = refusal(numbered_clip(5, codec=codec, container=container))

        assert isinstance(error, UnsupportedMedia)
        assert codec in str(error)

    def test_a_codec_whose_tag_is_no_text_is_unsupported_too(self) -> None:
        error = refusal(as_vc1(numbered_clip(10, container="mpegts")))

        assert isinstance(error, UnsupportedMedia)
        assert "vc1" in str(error)

    @pytest.mark.parametrize("container", ["asf", "h264", "nut"])
    def test_another_container_is_unsupported(self, container: str) -> None:
        assert isinstance(refusal(numbered_clip(5, container=container)), UnsupportedMedia)

    @pytest.mark.parametrize("cover", [False, True])
    def test_sound_alone_is_unsupported_even_with_a_cover(self, cover: bool) -> None:
        error = refusal(tone(cover=cover))

        assert isinstance(error, UnsupportedMedia)
        assert "no video" in str(error)

    def test_a_cover_is_not_taken_for_the_video(self) -> None:
        facts = decode_clip(tone(cover=True, video=True)).facts

        assert (facts.codec, facts.frames) == ("h264", 10)

    def test_a_clip_without_frames_says_so(self) -> None:
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
    def test_a_clip_beyond_a_limit_is_refused_and_at_the_limit_taken(
        self, limits: DecodeLimits, error: type[ClipError], code: str
    ) -> None:
        data = numbered_clip(100)

        refused = refusal(data, limits)

        assert type(refused) is error
        assert refused.code == code
        assert (
            decode_clip(data, DecodeLimits(max_duration_s=4.0, max_frames=100, max_pixels=64 * 48)).facts.frames == 100
        )

    def test_a_path_that_cannot_be_read_is_the_caller_s_own_matter(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            decode_clip(tmp_path / "nothing.mp4")


# -- real files --------------------------------------------------------------------------------------------------------

MANY_FRAMES = 2000  # a naive decode of more costs too much time


class TestRealFiles:
    def test_every_nasty_file_is_sampled_as_naively_or_refused(self, shared: Path) -> None:
        files = [path for path in sorted((shared / "nasty").rglob("*")) if path.is_file() and path.suffix != ".json"]
        sampled = 0
        for path in files:
            try:
                clip = decode_clip(path, DecodeLimits(max_frames=MANY_FRAMES))
            except ClipError:
                continue
            sampled += 1
            assert clip.frames.shape == (40, 224, 224, 3), path
            if not clip.facts.damaged_frames:
                assert_same_as_naive(clip, path)
        assert sampled > len(files) / 2

    def test_a_damaged_file_shows_what_a_naive_decode_shows(self, shared: Path) -> None:
        path = shared / "nasty" / "dmlc+decord" / "corrupted.mp4"

        clip = decode_clip(path)

        assert clip.facts.damaged_frames == 1
        np.testing.assert_array_equal(clip.frames, naive_sample(naive_decode(path)))

    @pytest.mark.parametrize("kind", ["avi", "mp4"])
    def test_clips_of_ucf101_are_sampled_as_naively(self, shared: Path, kind: str) -> None:
        for path in sorted((shared / "clips" / "ucf101").glob(f"D*/*.{kind}"))[::6]:
            assert_same_as_naive(decode_clip(path), path)
