"""H.264 and HEVC: where decoding can start, and which packets hold frames."""

import io
import re
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ClipTooLong
from service.video.decoder import DecodeLimits, decode_clip
from service.video.headers import VideoPacket
from service.video.headers.h264 import read_h264
from service.video.headers.hevc import read_hevc
from tests.service.video.clips import Image, encode, with_content
from tests.service.video.headers.full_decode import assert_provable, assert_same_frames, open_stream, structure_of

FRAMES = 30
X264 = ("keyint=8:scenecut=0:{}", "x264-params", "libx264")
IDR_HEADER = re.compile(b"(\0\0\1[\x26\x28]\1)(.)", re.DOTALL)  # of HEVC, up to "discard earlier frames"
READERS = {"h264": read_h264, "hevc": read_hevc}
X265 = ("log-level=none:keyint=8:scenecut=0:{}", "x265-params", "libx265")


def pictures(frames: int = FRAMES, width: int = 64, height: int = 64) -> list[Image]:
    """Blocks of noise that move, so that inter prediction pays."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return [noise[number % 32 :][:height, number:][:, :width].copy() for number in range(frames)]


def render(codec: str, params: str, container: str = "mp4", size: int = 64) -> bytes:
    template, option, encoder = X264 if codec == "h264" else X265
    return encode(pictures(width=size), codec=encoder, container=container, options={option: template.format(params)})


def remux(
    clip: bytes, container: str, change: Callable[[int, bytes], bytes | None] = lambda number, data: data
) -> bytes:
    """Write a clip's packets to another container; packets that ``change`` turns into ``None`` are left out."""
    file = io.BytesIO()
    with av.open(io.BytesIO(clip), "r") as source, av.open(file, "w", format=container) as output:
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        for number, packet in enumerate(packet for packet in source.demux(video) if packet.size):
            content = change(number, bytes(packet))
            if content is not None:
                other = with_content(packet, content)
                other.stream, other.is_keyframe = stream, packet.is_keyframe
                output.mux(other)
    return file.getvalue()


def join(clips: Sequence[bytes], container: str = "mpegts") -> bytes:
    """Write the packets of several clips one after the other, as if the first clip's stream went on."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: VideoStream | None = None
        start = 0
        for clip in clips:
            with av.open(io.BytesIO(clip), "r") as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                packets = [packet for packet in source.demux(video) if packet.size]
                for packet in packets:
                    packet.stream = stream
                    packet.pts, packet.dts = cast(int, packet.pts) + start, cast(int, packet.dts) + start
                    output.mux(packet)
                start = max(cast(int, packet.pts) for packet in packets) + (packets[0].duration or 0)
    return file.getvalue()


@pytest.mark.parametrize(
    "params",
    [
        "bframes=0",
        "bframes=3:b-pyramid=normal",
        "bframes=3:b-pyramid=strict:ref=4:weightp=2",
        "bframes=1:cabac=0:repeat-headers=1",
        "bframes=2:slices=4",
        "bframes=2:interlaced=1",
        "bff=1:pic-struct=1",
        "fake-interlaced=1",
        "aud=1:nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500",
        "stitchable=1:no-deblock=1",
        "bframes=2:cqm=jvt",
        f"bframes=1:cqm4iy={','.join(map(str, range(6, 22)))}",
        "keyint=1",
    ],
)
def test_decoding_can_start_at_every_idr_picture_of_h264(params: str) -> None:
    assert_provable(render("h264", params), FRAMES if params == "keyint=1" else 4)


@pytest.mark.parametrize("params", ["bframes=2:open-gop=1", "bframes=0:intra-refresh=1"])
def test_decoding_cannot_start_at_a_recovery_point_of_h264(params: str) -> None:
    assert_provable(render("h264", params), 1)


@pytest.mark.parametrize(
    ("params", "empty"),
    [
        ("bframes=2:b-adapt=0:open-gop=1", {1}),
        ("bframes=3:b-adapt=0:open-gop=1:b-pyramid=normal", {1, 2, 3}),
        ("bframes=2:b-adapt=0:open-gop=1:interlaced=1", {1}),
        ("bframes=0:intra-refresh=1", None),
    ],
)
def test_a_broadcast_of_h264_may_begin_with_a_recovery_point(params: str, empty: set[int] | None) -> None:
    clip = render("h264", f"repeat-headers=1:{params}", "mpegts")
    with open_stream(clip) as (packets, _):
        first = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
    cut = remux(clip, "mpegts", lambda number, data: data if number >= first else None)
    if empty is None:
        assert structure_of(cut) is None
    else:
        assert assert_provable(cut, 1).empty == empty


@pytest.mark.parametrize(
    "params",
    [
        "bframes=0",
        "bframes=4:b-adapt=0",
        "bframes=4:no-open-gop=1:repeat-headers=1",
        "bframes=4:no-open-gop=1:radl=2:b-adapt=0",
        "bframes=8:ref=5:weightb=1:slices=2",
        "aud=1:hrd=1:vbv-maxrate=500:vbv-bufsize=500:idr-recovery-sei=1",
        "interlace=tff",
    ],
)
def test_decoding_can_start_at_every_idr_and_cra_picture_of_hevc(params: str) -> None:
    assert_provable(render("hevc", params), 4)


@pytest.mark.parametrize("container", ["mov", "matroska", "avi", "flv", "mpegts", "mpeg"])
@pytest.mark.parametrize("params", ["bframes=2:repeat-headers=1", "bframes=0:slices=2"])
def test_every_container_of_h264_is_read(container: str, params: str) -> None:
    assert_provable(render("h264", params, container), 4)


@pytest.mark.parametrize("container", ["mov", "matroska", "flv", "mpegts", "mpeg"])
def test_every_container_of_hevc_is_read(container: str) -> None:
    assert_provable(render("hevc", "bframes=3:slices=2", container), 4)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
class TestParameterSets:
    def test_repetitions_are_allowed(self, codec: str) -> None:
        clip = render(codec, "repeat-headers=1:bframes=0", "mpegts")
        assert_provable(join([clip, clip]), 8)

    @pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
    @pytest.mark.parametrize("other", ["ref=3", "size"])
    def test_a_change_needs_a_full_decode(self, codec: str, container: str, other: str) -> None:
        clips = [
            render(codec, "repeat-headers=1:bframes=0:ref=1", "mpegts"),
            render(codec, f"repeat-headers=1:bframes=0:{'ref=1' if other == 'size' else other}", "mpegts", 96),
        ]
        joined = join(clips)
        assert structure_of(joined if container == "mpegts" else remux(joined, container)) is None

    def test_decoding_can_start_only_where_sets_that_the_extradata_lacks_are_repeated(self, codec: str) -> None:
        with open_stream(render(codec, "bframes=0", "mpegts")) as (packets, stream):
            structure = READERS[codec](packets, b"")
            assert structure is not None
            assert len(structure.entries) == 4
            bare = [with_content(packet, without_sets(codec, bytes(packet))) for packet in packets]
            for packet in bare:
                packet.stream = stream
            structure = READERS[codec]([packets[0], *bare[1:]], b"")
            assert structure is not None
            assert structure.entries == {0}
            assert READERS[codec](bare, b"") is None
            assert READERS[codec]([*bare[:8], *packets[8:]], b"") is None
            structure = READERS[codec](bare, bytes(stream.codec_context.extradata or b""))
            assert structure is not None
            assert len(structure.entries) == 4


def without_sets(codec: str, packet: bytes) -> bytes:
    units = re.split(b"\0?\0\0\1", packet)[1:]
    kinds = [unit[0] & 31 if codec == "h264" else unit[0] >> 1 for unit in units]
    return b"".join(b"\0\0\1" + unit for unit, kind in zip(units, kinds, strict=True) if kind not in {7, 8, 32, 33, 34})


class Writer:
    """Writes H.264 bit by bit, for what libx264 does not write: fields, and frames in any order."""

    def __init__(self) -> None:
        self.bits = ""

    def number(self, value: int, bits: int) -> "Writer":
        self.bits += f"{value:0{bits}b}"
        return self

    def codes(self, *values: int) -> "Writer":
        """Write unsigned Exp-Golomb codes."""
        for value in values:
            self.bits += "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"
        return self

    def block(self, level: int) -> "Writer":
        """Write a macroblock of samples that are not compressed."""
        self.codes(25)
        self.bits += "0" * (-len(self.bits) % 8)
        return self.number(int.from_bytes(bytes([level]) * 384), 8 * 384)

    def unit(self, head: int) -> bytes:
        """Return a NAL unit, with a start code."""
        self.bits += "1"
        self.bits += "0" * (-len(self.bits) % 8)
        content = int(self.bits, 2).to_bytes(len(self.bits) // 8)
        return b"\0\0\0\1" + bytes([head]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", content)


def parameter_sets(*, fields: bool, redundant: bool = False) -> bytes:
    """Return the sets for pictures of 16×32 samples. They do not say how far frames are reordered."""
    sequence = Writer().number(77, 8).number(0, 8).number(30, 8).codes(0, 0, 0, 4, 4).number(0, 1)
    sequence.codes(0, 0).number(0b001, 3) if fields else sequence.codes(0, 1).number(0b11, 2)
    picture = Writer().codes(0, 0).number(0, 2).codes(0, 0, 0).number(0, 3).codes(0, 0, 0)
    picture.number(redundant, 3)
    return sequence.number(0, 2).unit(0x67) + picture.unit(0x68)


def picture(number: int, order: int, level: int, *, parity: int | None = None, idr: bool = False) -> bytes:
    """Return an intra picture of one grey level: a frame, or a field if it has a parity."""
    slice_ = Writer().codes(0, 7, 0).number(number % 16, 4)
    if parity is not None:
        slice_.number(2 + parity, 2)
    if idr:
        slice_.codes(0)
    slice_.number(order % 256, 8).number(0, 2 if idr else 1).codes(0)
    for _ in range(2 if parity is None else 1):
        slice_.block(level)
    return slice_.unit(0x65 if idr else 0x41)


def write(sets: bytes, packets: Sequence[bytes], container: str) -> bytes:
    """Write packets of H.264 as a clip of 25 packets a second; those that begin with an IDR picture are keyframes."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(sets + b"".join(packets)), format="h264") as source,
        av.open(file, "w", format=container) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, content in enumerate(packets):
            keyframe = content[4] == 0x65
            packet = Packet(sets + content if keyframe else content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), keyframe
            packet.pts = packet.dts = number
            output.mux(packet)
    return file.getvalue()


def fields(frames: int, group: int = 4) -> list[bytes]:
    """Return the fields of frames, top fields first; every group starts with an IDR field."""
    return [
        picture(frame % group, 2 * (frame % group) + parity, 20 + 5 * frame + parity, parity=parity, idr=idr)
        for frame in range(frames)
        for parity, idr in [(0, frame % group == 0), (1, False)]
    ]


class TestFields:
    @pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
    def test_of_two_fields_in_two_packets_the_second_is_empty(self, container: str) -> None:
        structure = assert_provable(write(parameter_sets(fields=True), fields(12), container), 3)
        assert structure.empty == set(range(1, 24, 2))
        assert not structure.skippable

    @pytest.mark.parametrize("container", ["matroska", "mp4"])
    def test_two_fields_in_a_packet_are_a_frame(self, container: str) -> None:
        packets = fields(12)
        both = [top + bottom for top, bottom in zip(packets[::2], packets[1::2], strict=True)]
        structure = assert_provable(write(parameter_sets(fields=True), both, container), 3)
        assert not structure.empty

    @pytest.mark.parametrize("left_out", [1, 2, 3, 10, 23])
    def test_a_field_without_its_partner_needs_a_full_decode(self, left_out: int) -> None:
        packets = fields(12)
        del packets[left_out]
        assert structure_of(write(parameter_sets(fields=True), packets, "matroska")) is None

    def test_fields_that_need_a_full_decode_do_not_count_as_frames(self) -> None:
        packets = fields(12)
        del packets[10]
        clip = write(parameter_sets(fields=True), packets, "matroska")

        assert structure_of(clip) is None
        assert decode_clip(clip, DecodeLimits(max_frames=11)).facts.frames == 11
        with pytest.raises(ClipTooLong):
            decode_clip(clip, DecodeLimits(max_frames=10))

    def test_a_packet_with_fields_of_two_frames_needs_a_full_decode(self) -> None:
        first, *others = fields(12)
        shifted = [
            first,
            *(bottom + top for bottom, top in zip(others[:-1:2], others[1:-1:2], strict=True)),
            others[-1],
        ]
        assert structure_of(write(parameter_sets(fields=True), shifted, "matroska")) is None

    def test_the_sample_of_a_broadcast_is_read(self, shared: Path) -> None:
        path = shared / "faults" / "paff.ts"
        if not path.exists():
            pytest.skip(f"needs real clips: {path}")
        structure = assert_provable(path.read_bytes())
        assert len(structure.empty) == 100


class TestOrder:
    def test_frames_that_a_decoder_would_lose_need_a_full_decode(self) -> None:
        orders = [0, 2, 16, 14, 12, 10, 8, 6, 4]
        packets = [picture(number, order, 20 + order, idr=not number) for number, order in enumerate(orders)]
        assert structure_of(write(parameter_sets(fields=False), packets * 2, "matroska")) is None

    def test_frames_in_order_need_no_hint(self) -> None:
        packets = [picture(number % 4, 2 * (number % 4), 20 + number, idr=not number % 4) for number in range(12)]
        assert_provable(write(parameter_sets(fields=False), packets, "matroska"), 3)

    def test_missing_frames_need_a_full_decode(self) -> None:
        packets = [picture(number % 4, 2 * (number % 4), 20 + number, idr=not number % 4) for number in range(12)]
        del packets[6]
        assert structure_of(write(parameter_sets(fields=False), packets, "matroska")) is None

    def test_sets_that_announce_redundant_pictures_need_a_full_decode(self) -> None:
        packets = [picture(0, 0, 20 + number, idr=True) for number in range(4)]
        assert structure_of(write(parameter_sets(fields=False), packets, "matroska"))
        assert structure_of(write(parameter_sets(fields=False, redundant=True), packets, "matroska")) is None

    def test_two_frames_in_a_packet_need_a_full_decode(self) -> None:
        packets = [picture(number % 4, 2 * (number % 4), 20 + number, idr=not number % 4) for number in range(12)]
        packets[5:7] = [packets[5] + packets[6]]
        assert structure_of(write(parameter_sets(fields=False), packets, "matroska")) is None


def test_the_version_of_x264_in_the_first_packet_keeps_decoding_from_starting_later() -> None:
    """FFmpeg imitates faults of old versions."""
    options = {"x264-params": X264[0].format("bframes=2")}
    clip = encode(pictures(), options=options, pix_fmt="yuv444p")
    assert_provable(clip, 4)
    assert_provable(re.sub(rb"x264 - core \d+", b"x264 - core 120", clip), 1)


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data) ^ 1 << bit).to_bytes(len(data))


class TestHevc:
    def test_pictures_before_a_first_cra_picture_are_empty(self) -> None:
        clip = render("hevc", "bframes=4:b-adapt=0:repeat-headers=1", "mpegts")
        with open_stream(clip) as (packets, _):
            first = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        structure = assert_provable(remux(clip, "mpegts", lambda n, data: data if n >= first else None), 3)
        assert structure.empty == {1, 2}

    def test_an_idr_picture_after_cra_pictures_changes_nothing(self) -> None:
        clip = render("hevc", "bframes=4:b-adapt=0", "mpegts")
        joined = join([clip, clip])
        assert_provable(joined, 8)
        with open_stream(joined) as (packets, _):
            first = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        structure = assert_provable(remux(joined, "mpegts", lambda n, data: data if n >= first else None), 7)
        assert structure.empty == {1, 2}

    def test_decoding_cannot_start_at_a_cra_picture_that_later_references_reach_across(self) -> None:
        clip = render("hevc", "bframes=0:ref=3")
        entries: list[set[int]] = []
        for bit in range(32):  # in one of them the next picture names its references

            def reach(number: int, data: bytes, bit: int = bit) -> bytes:
                return data[:7] + flip(data[7:11], bit) + data[11:] if number == 9 else data

            structure = structure_of(remux(clip, "mp4", reach))
            if structure is not None:
                entries.append(set(structure.entries))
        assert {0, 8, 16, 24} in entries
        assert {0, 16, 24} in entries

    @pytest.mark.parametrize("params", ["bframes=0:ref=3", "bframes=3:b-adapt=0:ref=2", "bframes=3:temporal-layers=3"])
    def test_a_missing_picture_needs_a_full_decode(self, params: str) -> None:
        clip = render("hevc", params)
        assert structure_of(clip) is not None
        assert structure_of(remux(clip, "mp4", lambda number, data: None if number == 9 else data)) is None

    def test_frames_that_higher_temporal_layers_refer_to_are_not_skipped(self) -> None:
        """A picture that its own temporal layer does not refer to is called a non-reference picture."""

        def mark(number: int, data: bytes) -> bytes:
            kind = data[4] >> 1
            return data[:4] + bytes([kind - 1 << 1]) + data[5:] if kind in {3, 9} else data

        clip = render("hevc", "bframes=3:temporal-layers=3:b-adapt=0")
        assert assert_provable(clip, 4).skippable
        structure = assert_provable(remux(clip, "mp4", mark), 4)
        assert not structure.skippable
        with pytest.raises((AssertionError, av.error.FFmpegError)):
            assert_same_frames(remux(clip, "mp4", mark), replace(structure, skippable=True))

    def test_an_idr_picture_that_discards_frames_needs_a_full_decode(self) -> None:
        def discard(number: int, data: bytes) -> bytes:
            return re.sub(IDR_HEADER, lambda found: found[1] + bytes([found[2][0] | 64]), data) if number else data

        clip = render("hevc", "bframes=4:no-open-gop=1", "mpegts")
        changed = remux(clip, "mpegts", discard)
        assert structure_of(clip) is not None
        assert structure_of(changed) is None

    def test_pictures_behind_the_end_of_a_sequence_need_a_full_decode(self) -> None:
        clip = render("hevc", "bframes=2:repeat-headers=1", "mpegts")
        ended = remux(clip, "mpegts", lambda number, data: data + b"\0\0\1\x48\1" if number in {7, 29} else data)
        assert structure_of(ended) is None


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_bytes_raise_nothing(codec: str, data: st.DataObject) -> None:
    container = data.draw(st.sampled_from(["mp4", "mpegts"]))
    with open_stream(hostile_source(codec, container)) as (packets, stream):
        extradata = bytearray(stream.codec_context.extradata or b"")
        changed: list[VideoPacket] = []
        for content in [extradata, *(bytearray(packet) for packet in packets[:12])]:
            for _ in range(data.draw(st.integers(0, 2))):
                place = data.draw(st.integers(0, min(len(content), 80) - 1))
                content[place] = data.draw(st.integers(0, 255))
            if content is not extradata:
                changed.append(with_content(packets[len(changed)], bytes(content)))
                changed[-1].stream = stream
        READERS[codec](changed, bytes(extradata))
        READERS[codec](packets, bytes(extradata))
        READERS[codec](changed, bytes(stream.codec_context.extradata or b""))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
class TestHostilePackets:
    @pytest.mark.parametrize(
        ("units", "messages", "proven"), [(1, 60, True), (4, 15, True), (1, 65, False), (5, 15, False)]
    )
    def test_a_packet_with_many_messages_needs_a_full_decode(
        self, codec: str, units: int, messages: int, proven: bool
    ) -> None:
        unit = b"\0\0\1" + {"h264": b"\x06", "hevc": b"\x4e\1"}[codec] + b"\1\0" * messages + b"\x80"
        clip = remux(hostile_source(codec, "mpegts"), "mpegts", lambda number, data: units * unit + data)
        assert (structure_of(clip) is not None) is proven

    def test_a_packet_of_start_codes_takes_no_more_memory_than_its_size(self, codec: str) -> None:
        with open_stream(hostile_source(codec, "mpegts")) as (packets, stream):
            start_codes = with_content(packets[0], b"\0\0\1" * 2**20)
            start_codes.stream = stream
            tracemalloc.start()
            try:
                assert READERS[codec]([start_codes], b"") is None
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 3 * start_codes.size


@pytest.mark.parametrize(("last", "proven"), [(255, True), (256, False)])
def test_a_stream_with_more_parameter_sets_than_numbers_needs_a_full_decode(last: int, proven: bool) -> None:
    """FFmpeg ignores sets with other numbers. Each slice might name another one."""
    unused = Writer().codes(last, 0).number(0, 2).codes(0, 0, 0).number(0, 3).codes(0, 0, 0).number(0, 3).unit(0x68)
    clip = write(parameter_sets(fields=False) + unused, [picture(0, 0, 20, idr=True)] * 4, "matroska")
    assert (structure_of(clip) is not None) is proven


@cache
def hostile_source(codec: str, container: str) -> bytes:
    return render(codec, "bframes=2:repeat-headers=1", container)
