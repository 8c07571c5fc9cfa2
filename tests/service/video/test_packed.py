"""Packed B-frames: what FFmpeg's decoder makes of the packets as they are is what it makes of them unpacked."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from service.video.decoder import decode_clip
from service.video.headers import VideoPacket, read_structure
from service.video.packed import unpack
from tests.service.video.clips import DIVX_PACKED, NOT_CODED, packed_clip
from tests.service.video.oracle import watch

OPTIONS = {"bf": "2", "g": "12", "sc_threshold": "1000000000"}
DIVX_WAITS = b"\x7f"  # the packet that DivX writes while it waits for its second picture
Contents = Callable[[list[bytes]], Iterable[bytes]]


@pytest.fixture(scope="module")
def packed() -> bytes:
    """An AVI of 40 frames with B-frames and keyframes, each of which begins with a marker, as XviD writes it."""

    def mark(contents: list[bytes]) -> list[bytes]:
        return [content.replace(b"\0\0\1\xb5", DIVX_PACKED + b"\0\0\1\xb5") for content in contents]

    plain = packed_clip(40, options=OPTIONS, width=96, height=64)
    return remuxed(plain, lambda contents: mark([content.replace(DIVX_PACKED, b"") for content in contents]))


@contextmanager
def opened(clip: bytes) -> Iterator[tuple[VideoStream, list[VideoPacket]]]:
    with av.open(io.BytesIO(clip), "r") as container:
        stream = container.streams.video[0]
        yield stream, [packet for packet in container.demux(stream) if packet.size]


def remuxed(clip: bytes, change: Contents = lambda contents: contents, container: str = "avi", start: int = 0) -> bytes:
    """The pictures of a clip's packets in others, one at each tick from ``start`` on."""
    file = io.BytesIO()
    with (
        opened(clip) as (source, packets),
        av.open(file, "w", format=container, options={"avoid_negative_ts": "disabled"}) as output,
    ):
        stream = output.add_stream_from_template(source)
        for tick, content in enumerate(change([bytes(packet) for packet in packets]), start):
            packet = cast(VideoPacket, Packet(content))
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 25), 1
            packet.pts = packet.dts = tick
            packet.is_keyframe = len(content) > 8 and content[content.find(NOT_CODED[:4]) + 4 :][:1] < b"\x40"
            output.mux(packet)
    return file.getvalue()


def decoded(clip: bytes, *, unpacked: bool) -> tuple[list[bytes], list[int | None]]:
    """All frames, in the order in which the decoder outputs them, and the times of their packets."""
    with opened(clip) as (stream, packets):
        pictures = unpack(packets, stream) if unpacked else packets
        times = [packet.pts for packet in pictures]
        for number, packet in enumerate(pictures):
            packet.pts = number
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        frames = [frame for packet in [*pictures, None] for frame in stream.codec_context.decode(packet)]
        return [frame.to_ndarray().tobytes() for frame in frames], [times[cast(int, frame.pts)] for frame in frames]


def assert_pictures_are_those_of_ffmpeg(clip: bytes) -> list[int]:
    """Assert that unpacking changes no picture, and that their times increase. Returns the times."""
    frames, times = decoded(clip, unpacked=True)
    assert frames == decoded(clip, unpacked=False)[0]
    assert None not in times
    known = cast(list[int], times)
    assert all(time < later for time, later in pairwise(known))
    return known


def shown_by_ffmpeg(clip: bytes, folder: Path) -> list[int]:
    """When the ffmpeg command shows each frame of an AVI, in ticks."""
    path = folder / "clip.avi"
    path.write_bytes(clip)
    return watch(path).times


def relative(times: Sequence[int]) -> list[int]:
    return [time - times[0] for time in times]


def with_marker(packed: bytes, marker: bytes) -> bytes:
    """A packed AVI that is marked in another way."""
    return remuxed(packed, lambda contents: [content.replace(DIVX_PACKED[4:], marker) for content in contents])


class TestMarkers:
    @pytest.mark.parametrize(
        "marker", [b"DivX503b1393p", b"DivX503Build1393p", b"DivX5b1p", b"DivX 503Build 1393p"], ids=bytes.decode
    )
    def test_a_stream_is_packed_if_the_last_letter_is_a_p(self, packed: bytes, marker: bytes, tmp_path: Path) -> None:
        clip = with_marker(packed, marker)

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert len(times) == 40
        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))

    @pytest.mark.parametrize("marker", [b"DivX503b1393P", b"DivX503b1393", b"DivX503b1393n", b"divx503b1393p"])
    def test_a_stream_is_not_packed_without_it(self, packed: bytes, marker: bytes) -> None:
        with opened(with_marker(packed, marker)) as (stream, packets):
            assert unpack(packets, stream) is packets

    def test_the_marker_may_come_late(self, packed: bytes, tmp_path: Path) -> None:
        def late(contents: list[bytes]) -> list[bytes]:
            return [c.replace(DIVX_PACKED, b"") if number < 10 else c for number, c in enumerate(contents)]

        clip = remuxed(packed, late)
        assert len(assert_pictures_are_those_of_ffmpeg(clip)) < 40  # FFmpeg's decoder loses B-frames until then

    @pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi"])
    def test_the_marker_may_be_in_the_stream_s_extradata(self, packed: bytes, container: str) -> None:
        """So it is in files that were copied from AVI. Their times are those of packets, not those of pictures."""
        plain = remuxed(packed, lambda contents: [content.replace(DIVX_PACKED, b"") for content in contents], container)
        with opened(plain) as (stream, _):
            name = (stream.codec_context.extradata or b"").rpartition(b"\0\0\1\xb2")[2]
        clip = plain.replace(name, b"DivX" + b"5b1p".rjust(len(name) - 4, b"0"), 1)

        times = assert_pictures_are_those_of_ffmpeg(clip)

        steps = {later - time for time, later in pairwise(times)}
        assert len(times) == 40
        assert len(steps) == 1


class TestPlaceholders:
    @pytest.mark.parametrize("waits", [1, 2])
    def test_a_packet_in_which_divx_waits_delays_no_frame(self, packed: bytes, waits: int, tmp_path: Path) -> None:
        clip = remuxed(packed, lambda contents: [contents[0], *[DIVX_WAITS] * waits, *contents[1:]])

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert relative(times) == list(range(40))
        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))

    @pytest.mark.parametrize("place", [10, 22, 40])
    def test_placeholders_that_are_left_over_are_no_frames(self, packed: bytes, place: int, tmp_path: Path) -> None:
        def insert(contents: list[bytes]) -> list[bytes]:
            return [*contents[:place], NOT_CODED, NOT_CODED, *contents[place:]]

        clip = remuxed(packed, insert)

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert len(times) == 40
        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))
        with opened(clip) as (stream, packets):
            structure = read_structure(unpack(packets, stream), stream)
        if place == 40:  # FFmpeg's decoder outputs the last frame instead of that of its packet
            assert structure is None
        else:
            assert structure
            assert len(structure.empty) == 2

    def test_placeholders_may_be_all_that_tells_a_packed_stream(self, packed: bytes) -> None:
        """MPEG-TS has a packet for each picture."""
        times = assert_pictures_are_those_of_ffmpeg(remuxed(packed, container="mpegts"))

        assert len(times) == 40


class TestCuts:
    """AVIs that were cut or joined at any packet, also between the two packets of a pair."""

    @pytest.mark.parametrize("end", range(13, 19))
    def test_a_clip_may_end_anywhere(self, packed: bytes, end: int, tmp_path: Path) -> None:
        clip = remuxed(packed, lambda contents: contents[:end])

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))

    @pytest.mark.parametrize("end", range(13, 19))
    @pytest.mark.parametrize("encoder", ["XviD", "DivX"])
    def test_another_clip_may_follow_anywhere(self, packed: bytes, end: int, encoder: str, tmp_path: Path) -> None:
        """The first packet of XviD's clips begins with a header of the sequence, that of DivX's does not."""

        def join(contents: list[bytes]) -> list[bytes]:
            first, *others = contents
            first = first.replace(b"\0\0\1\xb0\xf1", b"") if encoder == "DivX" else first
            return [first, *others[: end - 1], first, *others]

        clip = remuxed(packed, join)

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))

    def test_a_third_picture_in_a_packet_is_lost_as_in_ffmpeg(self, packed: bytes, tmp_path: Path) -> None:
        def merge(contents: list[bytes]) -> list[bytes]:
            return [contents[0], contents[1] + contents[2], NOT_CODED, *contents[3:]]

        clip = remuxed(packed, merge)

        times = assert_pictures_are_those_of_ffmpeg(clip)

        assert len(times) == 39
        assert relative(times) == relative(shown_by_ffmpeg(clip, tmp_path))


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_pictures_before_the_start_of_an_edit_list_are_not_shown(packed: bytes, container: str) -> None:
    clip = remuxed(packed, container=container, start=-19)
    with opened(clip) as (_, packets):
        assert any(packet.is_discard for packet in packets)

    assert decode_clip(clip).facts.frames == 21
