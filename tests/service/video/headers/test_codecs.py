"""Whatever the headers of a clip's packets prove is true of a full decode. H.264 and HEVC have files of their own."""

import io
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

from service.video.headers import READERS, Structure
from tests.service.video.clips import NOT_CODED, encode, with_content
from tests.service.video.headers.full_decode import assert_provable, open_stream, structure_of

FRAMES = 30
REALTIME = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
LOOKAHEAD = {"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "8", "b": "100000"}
GROUP = {"g": "10"}
INTERLACED = {"flags": "+ilme+ildct"}

# Codec, containers, options, pixel format: clips whose structure must be proved.
CLIPS: list[tuple[str, str, Mapping[str, str], str]] = [
    ("libvpx", "webm avi", GROUP, "yuv420p"),
    ("libvpx", "webm matroska", GROUP | LOOKAHEAD, "yuv420p"),
    ("libvpx", "webm", GROUP | REALTIME | {"error-resilient": "default", "static-thresh": "500"}, "yuv420p"),
    ("libvpx-vp9", "webm mp4", GROUP | LOOKAHEAD, "yuv420p"),
    ("libvpx-vp9", "matroska avi", GROUP | REALTIME | {"aq-mode": "3"}, "yuv420p"),
    ("libvpx-vp9", "webm mp4", GROUP | {"aq-mode": "1", "error-resilient": "default", "cpu-used": "8"}, "yuv420p"),
    ("libvpx-vp9", "webm mp4", GROUP | {"profile": "1", "cpu-used": "8"}, "yuv444p"),
    ("libsvtav1", "mp4 matroska", GROUP | {"preset": "12"}, "yuv420p"),
    ("mpeg1video", "mpeg avi", GROUP | {"bf": "2"}, "yuv420p"),
    ("mpeg2video", "mpeg mpegts", GROUP | {"bf": "2"}, "yuv420p"),
    ("mpeg2video", "mp4 matroska avi", GROUP, "yuv420p"),
    ("mpeg2video", "mpegts vob", GROUP | INTERLACED | {"bf": "2", "alternate_scan": "1"}, "yuv420p"),
    ("mpeg2video", "mpegts mov", GROUP | {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}, "yuv422p"),
    ("mpeg4", "avi mp4 mpegts", GROUP, "yuv420p"),
    ("mpeg4", "avi matroska mov", GROUP | {"bf": "2"}, "yuv420p"),
    ("mpeg4", "avi mp4", GROUP | {"bf": "2", "flags": "+qpel+mv4", "mpeg_quant": "1"}, "yuv420p"),
    ("mpeg4", "avi mp4", GROUP | INTERLACED, "yuv420p"),
    ("mpeg4", "avi mp4", GROUP | {"data_partitioning": "1", "ps": "300"}, "yuv420p"),
    ("msmpeg4v2", "avi", GROUP, "yuv420p"),
    ("wmv1", "asf avi", GROUP, "yuv420p"),
    ("wmv2", "asf avi", GROUP, "yuv420p"),
    ("flv", "flv avi", GROUP, "yuv420p"),
    ("mjpeg", "avi mov matroska", {}, "yuvj420p"),
    ("mjpeg", "avi mov", {"huffman": "default", "b": "400000"}, "yuvj422p"),
    ("ffv1", "avi matroska", GROUP | {"context": "1", "level": "1"}, "yuv420p"),
    ("ffv1", "avi matroska", GROUP | {"level": "3"}, "yuv420p10le"),
    ("huffyuv", "avi", {}, "yuv422p"),
    ("ffvhuff", "avi", {"context": "1"}, "yuv420p"),
    ("rawvideo", "avi matroska", {}, "yuv420p"),
    ("prores_ks", "mov matroska", {}, "yuv422p10le"),
]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterable[None]:
    """Silence the log of the AV1 encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVT_LOG", "0")
        yield


def moving(frames: int = FRAMES, width: int = 96, height: int = 64, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Pictures of blurred noise in motion, over which a brighter patch jumps about."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 220, (height // 8, (width + 2 * frames) // 8 + 1, 3), np.uint8)
    scene = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    pictures = []
    for number in range(frames):
        picture = scene[:height, 2 * number : 2 * number + width].copy()
        row, column = random.integers(0, (height - 16, width - 16))
        picture[row : row + 16, column : column + 16] += 35
        pictures.append(picture)
    return pictures


def rendered(codec: str, container: str, options: Mapping[str, str], pix_fmt: str = "yuv420p", seed: int = 0) -> bytes:
    return encode(moving(seed=seed), codec=codec, container=container, options=options, pix_fmt=pix_fmt)


def joined(container: str, *clips: bytes, rewrite: Callable[[int, bytes], Sequence[bytes]] | None = None) -> bytes:
    """The packets of several clips in one, behind the headers of the first.

    ``rewrite`` is called with the index and the content of each packet, and returns the contents of those in its place.
    """
    file, number, tick = io.BytesIO(), 0, 0
    with av.open(file, "w", format=container) as output:
        stream: VideoStream | None = None
        for clip in clips:
            with av.open(io.BytesIO(clip), "r") as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0], opaque=True)
                for packet in source.demux(source.streams.video[0]):
                    contents = [bytes(packet)] if packet.size else []
                    for content in rewrite(number, *contents) if rewrite and contents else contents:
                        copy = with_content(packet, content)
                        copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 25), packet.is_keyframe
                        copy.pts = copy.dts = tick
                        copy.duration, tick = 1, tick + 1
                        output.mux(copy)
                    number += len(contents)
    return file.getvalue()


def short(codec: str, container: str, options: Mapping[str, str], size: tuple[int, int] = (96, 64)) -> bytes:
    """A clip of 14 frames with three key frames."""
    pix_fmt = options.get("pix_fmt", "yuvj420p" if codec == "mjpeg" else "yuv420p")
    options = {name: option for name, option in options.items() if name != "pix_fmt"} | {"g": "6"}
    return encode(moving(14, *size), codec=codec, container=container, options=options, pix_fmt=pix_fmt)


def with_hidden_frames(codec: str, container: str, folder: Path) -> bytes:
    """A clip of libvpx, which writes alternate reference frames only in a second pass. PyAV has none."""
    program = shutil.which("ffmpeg")
    if not program:
        pytest.skip("needs the ffmpeg command")
    source = ["-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-frames:v", "40"]
    options = f"-c:v {codec} -b:v 200k -g 20 -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 4".split()
    for number, output in [("1", ["-f", "null", "-"]), ("2", ["-f", container, str(folder / "clip")])]:
        two_passes = ["-pass", number, "-passlogfile", str(folder / "log")]
        subprocess.run([program, *source, *options, *two_passes, *output], check=True)
    return (folder / "clip").read_bytes()


def frames_of_superframe(content: bytes) -> list[bytes]:
    """The frames of a VP9 packet (annex B)."""
    count, width = (content[-1] & 7) + 1, (content[-1] >> 3 & 3) + 1
    if content[-1] >> 5 != 0b110:
        return [content]
    index = content[-1 - count * width : -1]
    sizes = [int.from_bytes(index[place : place + width], "little") for place in range(0, len(index), width)]
    return [content[sum(sizes[:place]) :][:size] for place, size in enumerate(sizes)]


def units_of_av1(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the first byte of each open bitstream unit of a packet and what follows it: its size and its content."""
    start = 0
    while start < len(content):
        end, size, shift = start + 1, 0, 0
        while True:
            size |= (content[end] & 127) << shift
            end, shift = end + 1, shift + 7
            if content[end - 1] < 128:
                break
        yield content[start], content[start + 1 : end + size]
        start = end + size


class TestRenderedClips:
    @pytest.mark.parametrize(
        ("codec", "container", "options", "pix_fmt"),
        [
            pytest.param(codec, container, options, pix_fmt, id=f"{codec}-{container}-{place}")
            for place, (codec, containers, options, pix_fmt) in enumerate(CLIPS)
            for container in containers.split()
        ],
    )
    def test_decoding_from_each_entry_gives_the_frames_of_a_full_decode(
        self, codec: str, container: str, options: Mapping[str, str], pix_fmt: str
    ) -> None:
        structure = assert_provable(rendered(codec, container, options, pix_fmt))
        assert len(structure.entries) >= 3

    def test_each_intra_frame_of_theora_is_an_entry(self) -> None:
        theora = Path(__file__).parents[1] / "theora.ogv"  # 80 frames, a group of at most 12

        assert len(assert_provable(theora.read_bytes()).entries) >= 7

    def test_codecs_that_carry_over_more_than_headers_tell_have_no_structure(self) -> None:
        assert structure_of(rendered("msmpeg4", "avi", GROUP)) is None
        assert structure_of(rendered("mpeg4", "avi", GROUP | INTERLACED | {"bf": "2"})) is None


class TestHiddenFrames:
    """Frames that later ones refer to, but that are not shown."""

    @pytest.mark.parametrize("container", ["webm", "matroska"])
    def test_alternate_reference_frames_of_vp8_are_empty(self, container: str, tmp_path: Path) -> None:
        assert assert_provable(with_hidden_frames("libvpx", container, tmp_path)).empty

    @pytest.mark.parametrize("container", ["avi", "matroska"])
    def test_frames_of_vp8_that_are_not_shown_are_empty(self, container: str) -> None:
        def hide(number: int, content: bytes) -> list[bytes]:
            return [bytes([content[0] & 0xEF]) + content[1:] if number in {4, 12} else content]

        clip = joined(container, short("libvpx", "webm", {}), rewrite=hide)
        structure = assert_provable(clip)
        assert structure.empty == {4, 12}
        assert structure.entries == {0, 6}  # not that of 12, which is not shown

    @pytest.mark.parametrize("container", ["webm", "mp4"])
    def test_hidden_frames_of_vp9_share_a_packet_with_a_shown_one(self, container: str, tmp_path: Path) -> None:
        clip = with_hidden_frames("libvpx-vp9", container, tmp_path)
        with open_stream(clip) as (packets, _):
            assert any(len(frames_of_superframe(bytes(packet))) > 1 for packet in packets)
        assert not assert_provable(clip).empty

    def test_hidden_frames_of_vp9_may_have_packets_of_their_own(self, tmp_path: Path) -> None:
        plain = with_hidden_frames("libvpx-vp9", "webm", tmp_path)
        clip = joined("avi", plain, rewrite=lambda _, content: frames_of_superframe(content))  # others join them again
        assert assert_provable(clip).empty

    def test_two_shown_frames_of_vp9_in_a_packet_prove_nothing(self) -> None:
        def pair(number: int, content: bytes) -> list[bytes]:
            index = bytes([0b11001001, *len(content).to_bytes(2, "little"), 1, 0, 0b11001001])
            return [content + b"\x88" + index if number == 9 else content]  # show_existing_frame

        assert structure_of(joined("matroska", short("libvpx-vp9", "webm", {}), rewrite=pair)) is None

    def test_units_of_av1_may_name_their_layer(self) -> None:
        """A clip without layers may have the extension of the units' headers that names them: layer 0."""

        def extend(number: int, content: bytes) -> list[bytes]:
            return [b"".join(bytes([head | 4, 0]) + rest for head, rest in units_of_av1(content))]

        clip = joined("matroska", short("libsvtav1", "mp4", {"preset": "12"}), rewrite=extend)
        assert assert_provable(clip).entries == {0, 6, 12}

    def test_packets_of_av1_without_a_frame_are_empty(self) -> None:
        delimiter = b"\x12\0"  # a temporal unit with nothing in it
        clip = joined(
            "avi",
            short("libsvtav1", "mp4", {"preset": "12"}),
            rewrite=lambda number, content: [delimiter, content] if number == 4 else [content],
        )
        assert assert_provable(clip).empty == {4}

    def test_forward_key_frames_of_av1_are_no_entries(self) -> None:
        options = {"preset": "12", "g": "10", "svtav1-params": "irefresh-type=1"}
        assert assert_provable(rendered("libsvtav1", "mp4", options)).entries == {0}

    @pytest.mark.parametrize(("flags", "proved"), [(0x00, True), (0x28, False), (0x38, True)])
    def test_a_key_frame_of_vp8_may_not_keep_the_last_frame_s_segments(self, flags: int, *, proved: bool) -> None:
        """The third of the first flags behind its size enables segments, the fourth tells that a map follows."""

        def set_flags(number: int, content: bytes) -> list[bytes]:
            return [content[:10] + bytes([flags]) + content[11:] if number == 6 else content]

        clip = joined("matroska", short("libvpx", "webm", {}), rewrite=set_flags)
        assert (structure_of(clip) is not None) == proved


class TestJoinedClips:
    """Recordings with other parameters behind one another, as editors and broadcasters join them."""

    @pytest.mark.parametrize("container", ["matroska", "avi"])
    @pytest.mark.parametrize(
        ("codec", "source", "options"),
        [
            ("libvpx", "webm", {}),
            ("libvpx-vp9", "webm", {"cpu-used": "8"}),
            ("libsvtav1", "mp4", {"preset": "12"}),
        ],
    )
    def test_key_frames_of_another_size_are_entries(
        self, container: str, codec: str, source: str, options: Mapping[str, str]
    ) -> None:
        clips = [short(codec, source, options, size) for size in [(96, 64), (128, 96), (96, 64)]]
        assert len(assert_provable(joined(container, *clips)).entries) == 9

    @pytest.mark.parametrize("container", ["matroska", "avi"])
    @pytest.mark.parametrize(
        ("codec", "source", "options"),
        [
            ("mpeg2video", "mpegts", {"intra_matrix": ",".join(["8", *["40"] * 63])}),
            ("mpeg2video", "mpegts", {"bf": "2"}),
            ("mpeg4", "mp4", {"mpeg_quant": "1"}),  # with the headers of the first clip, for want of its own
            ("mjpeg", "avi", {"huffman": "default"}),
        ],
    )
    def test_parameters_that_each_group_brings_with_it_may_change(
        self, container: str, codec: str, source: str, options: Mapping[str, str]
    ) -> None:
        clips = [short(codec, source, other) for other in [{}, options, {}]]
        assert len(assert_provable(joined(container, *clips)).entries) >= 9

    @pytest.mark.parametrize("container", ["matroska", "avi"])
    @pytest.mark.parametrize(
        ("codec", "source", "options", "size"),
        [
            ("mpeg2video", "mpegts", {}, (128, 96)),
            ("mpeg2video", "mpegts", INTERLACED, (96, 64)),
            ("mpeg2video", "mpegts", {"color_primaries": "bt709", "colorspace": "bt709"}, (96, 64)),
            ("mpeg1video", "mpegts", {}, (128, 96)),
            ("mpeg4", "avi", {}, (128, 96)),
            ("mpeg4", "avi", {"mpeg_quant": "1"}, (96, 64)),
            ("mpeg4", "avi", {"bf": "2"}, (96, 64)),
            ("mjpeg", "avi", {}, (128, 96)),
            ("mjpeg", "avi", {"pix_fmt": "yuvj422p"}, (96, 64)),
        ],
    )
    def test_a_skipped_group_with_other_parameters_proves_nothing(
        self, container: str, codec: str, source: str, options: Mapping[str, str], size: tuple[int, int]
    ) -> None:
        clips = [short(codec, source, {}), short(codec, source, options, size), short(codec, source, {})]
        assert structure_of(joined(container, *clips)) is None


class TestMpeg12:
    @pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
    def test_b_pictures_before_the_first_frame_are_not_output(self, codec: str) -> None:
        plain = rendered(codec, "mpegts", GROUP | {"bf": "2"})
        entries = sorted(assert_provable(plain).entries)
        cut = joined("matroska", plain, rewrite=lambda number, content: [content] * (number >= entries[1]))
        assert assert_provable(cut).empty == {1, 2}

    @pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
    def test_groups_without_a_sequence_header_are_not_entered(self, codec: str) -> None:
        def strip(number: int, content: bytes) -> list[bytes]:
            group = content.find(b"\0\0\1\xb8")
            return [content[group:] if number and group > 0 else content]

        clip = joined("matroska", short(codec, "mpegts", {}), rewrite=strip)
        assert assert_provable(clip).entries == {0}

    def test_a_field_in_a_packet_of_its_own_proves_nothing(self) -> None:
        def make_field(number: int, content: bytes) -> list[bytes]:
            extension = content.find(b"\0\0\1\xb5", content.find(b"\0\0\1\0"))
            return [content[: extension + 6] + bytes([content[extension + 6] & 0xFD]) + content[extension + 7 :]]

        plain = short("mpeg2video", "mpegts", {})
        assert structure_of(joined("matroska", plain))
        assert structure_of(joined("matroska", plain, rewrite=make_field)) is None


class TestMpeg4:
    @pytest.mark.parametrize("container", ["avi", "matroska"])
    @pytest.mark.parametrize("options", [{}, {"bf": "2"}])
    def test_pictures_that_are_not_coded_are_empty(self, container: str, options: Mapping[str, str]) -> None:
        replaced = {5, 8, 9}
        clip = joined(
            container,
            short("mpeg4", "avi", options),
            rewrite=lambda number, content: [NOT_CODED if number in replaced else content],
        )
        assert assert_provable(clip).empty >= replaced

    def test_the_last_frame_is_output_again_for_a_last_picture_that_is_not_coded(self) -> None:
        plain = short("mpeg4", "avi", {})
        clip = joined("avi", plain, rewrite=lambda number, content: [content] if number < 13 else [content, NOT_CODED])
        structure = structure_of(clip)
        assert structure is None or not structure.empty

    @pytest.mark.parametrize("container", ["avi", "matroska"])
    def test_bytes_that_divx_fills_packets_with_are_empty(self, container: str) -> None:
        def wait(number: int, content: bytes) -> list[bytes]:
            return [b"\0\0\1\xb2DivX503b2816" + content, b"\x7f"] if not number else [content]

        clip = joined(container, short("mpeg4", "mp4", {}), rewrite=wait)
        assert assert_provable(clip).empty == {1}

    def test_other_user_data_in_a_skipped_group_proves_nothing(self) -> None:
        def rename(number: int, content: bytes) -> list[bytes]:
            return [content.replace(b"Lavc", b"Xavc") if number == 6 else content]

        plain = short("mpeg4", "avi", {})
        assert structure_of(joined("avi", plain))
        assert structure_of(joined("avi", plain, rewrite=rename)) is None

    @pytest.mark.parametrize(("aspect", "proved"), [("0001", True), ("0010", False)])
    def test_headers_may_repeat_without_the_size_of_the_buffer(self, aspect: str, *, proved: bool) -> None:
        """DivX tells it only once. ``aspect`` is the shape of pixels in the first headers."""

        def tell_buffer(number: int, content: bytes) -> list[bytes]:
            if number:
                return [content]
            start = content.find(b"\0\0\1\x20") + 4
            end = content.find(b"\0\0\1", start)
            layer = f"{int.from_bytes(content[start:end]):0{8 * (end - start)}b}"
            assert layer[9] == "1"  # is_object_layer_identifier: the next seven bits are its version and priority
            assert (
                layer[17:25] == "00011010"
            )  # square pixels, control parameters, 4:2:0, frames are reordered: no buffer
            bits = layer[:17] + aspect + layer[21:25] + "1" + "1" * 79 + layer[26:].rstrip("1")  # then stuffing
            bits += "1" * (-len(bits) % 8)
            return [content[:start] + int(bits, 2).to_bytes(len(bits) // 8) + content[end:]]

        clip = joined("avi", short("mpeg4", "avi", {"bf": "2"}), rewrite=tell_buffer)
        assert (structure_of(clip) is not None) == proved
        if proved:
            assert len(assert_provable(clip).entries) == 3

    @pytest.mark.parametrize("earlier", [1, 2, 3])
    def test_b_pictures_whose_time_is_not_between_their_neighbours_are_not_output(self, earlier: int) -> None:
        """The fourth packet is the first of two B-pictures between frames 3 and 6. Ticks are frames."""

        def shift(number: int, content: bytes) -> list[bytes]:
            start = content.find(NOT_CODED[:4]) + 4
            header = int.from_bytes(content[start : start + 2])  # type, no whole second, marker, five bits of ticks
            assert number != 5 or header >> 14 == 2
            moved = (header - (earlier << 7)).to_bytes(2)
            return [content[:start] + moved + content[start + 2 :] if number == 5 else content]

        clip = joined("avi", short("mpeg4", "avi", {"bf": "2", "sc_threshold": "1000000000"}), rewrite=shift)
        assert assert_provable(clip).empty == {5}

    def test_b_vops_before_the_first_frame_are_not_output(self) -> None:
        plain = short("mpeg4", "avi", {"bf": "2", "sc_threshold": "1000000000"})
        start = sorted(assert_provable(plain).entries)[1]
        cut = joined("avi", plain, rewrite=lambda number, content: [content] * (number >= start))
        assert assert_provable(cut).empty == {1, 2}

    def test_a_keyframe_without_a_time_is_not_entered_if_a_later_one_has_one(self) -> None:
        def strip(number: int, content: bytes) -> list[bytes]:
            group = content.find(b"\0\0\1\xb3")
            return [content[:group] + content[group + 7 :] if 0 < number < 8 and group > 0 else content]

        plain = short("mpeg4", "avi", {"bf": "2", "sc_threshold": "1000000000"})
        entries = sorted(assert_provable(plain).entries)
        assert 0 < entries[1] < 8 < entries[2]
        clip = joined("avi", plain, rewrite=strip)
        assert assert_provable(clip).entries == {0, entries[2]}

    def test_groups_without_the_headers_of_the_first_are_not_entered(self) -> None:
        def strip(number: int, content: bytes) -> list[bytes]:
            return [content[content.find(NOT_CODED[:4]) :] if number else content]

        clip = joined("avi", short("mpeg4", "avi", {"bf": "2"}), rewrite=strip)
        assert assert_provable(clip).entries == {0}


class TestTables:
    @pytest.mark.parametrize("container", ["avi", "matroska"])
    def test_pictures_without_the_tables_of_the_first_are_not_entered(self, container: str) -> None:
        def strip(number: int, content: bytes) -> list[bytes]:
            while number % 5 and (start := content.find(b"\xff\xc4")) > 0:
                content = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4]) :]
            return [content]

        clip = joined(container, short("mjpeg", "avi", {"huffman": "optimal"}), rewrite=strip)
        structure = structure_of(clip)
        assert structure
        assert structure.entries == {0, 5, 10}

    def test_a_first_picture_without_its_tables_proves_nothing(self) -> None:
        def strip(number: int, content: bytes) -> list[bytes]:
            start = content.find(b"\xff\xc4")
            end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
            return [content if number else content[:start] + content[end:]]

        clip = joined("avi", short("mjpeg", "avi", {"huffman": "optimal"}), rewrite=strip)
        assert structure_of(clip) is None

    def test_contexts_of_ffv1_carry_over_to_the_next_key_frame(self) -> None:
        assert assert_provable(short("ffv1", "avi", {"level": "3"})).entries == {0, 6, 12}


class TestPackets:
    """Clips that no encoder here writes."""

    @pytest.mark.parametrize(
        ("codec", "usual", "unclear"),
        [
            ("theora", b"\x40", b"\x80theora"),  # headers of another stream
            ("wmv2", b"\x80\0", b"\x82\xe0"),  # three rows of macroblocks that are skipped, and perhaps all others
            ("h263", b"\0\0\x80\x02\x0e\0", b"\0\0\x80\x02\x1c\0"),  # PLUSPTYPE
        ],
    )
    def test_an_unclear_packet_proves_nothing(self, codec: str, usual: bytes, unclear: bytes) -> None:
        intra = {"h263": b"\0\0\x80\x02\x0c\0"}.get(codec, b"\0\0")

        def read(*contents: bytes) -> Structure | None:
            return READERS[codec]([cast("Packet[VideoStream]", Packet(content)) for content in contents], b"")

        assert read(intra, usual) == Structure(frozenset({0}))
        assert read(usual, intra) is None
        assert read(intra, unclear) is None


SAMPLES = {
    "vp8": ("libvpx", "webm", LOOKAHEAD),
    "vp9": ("libvpx-vp9", "webm", LOOKAHEAD),
    "av1": ("libsvtav1", "mp4", {"preset": "12"}),
    "mpeg1video": ("mpeg1video", "mpegts", {"bf": "2"}),
    "mpeg2video": ("mpeg2video", "mpegts", {"bf": "2"}),
    "mpeg4": ("mpeg4", "avi", {"bf": "2"}),
    "msmpeg4v2": ("msmpeg4v2", "avi", {}),
    "wmv1": ("wmv1", "avi", {}),
    "wmv2": ("wmv2", "avi", {}),
    "flv1": ("flv", "flv", {}),
    "mjpeg": ("mjpeg", "avi", {}),
    "ffv1": ("ffv1", "avi", {}),
}


@pytest.mark.parametrize("codec", sorted(SAMPLES.keys() - {"mjpeg"}))
def test_a_clip_that_begins_without_a_key_frame_proves_nothing(codec: str) -> None:
    encoder, container, options = SAMPLES[codec]
    whole = short(encoder, container, options)

    cut = joined(
        "flv" if codec == "flv1" else "avi", whole, rewrite=lambda number, content: [content] if number else []
    )

    assert structure_of(whole)
    assert structure_of(cut) is None


@pytest.mark.parametrize(("rows", "proved"), [(0b000, True), (0b110, True), (0b111, False)])
@pytest.mark.parametrize("kind", [0b10, 0b11], ids=["rows", "columns"])
def test_a_frame_of_wmv2_may_not_skip_all_rows_or_columns(kind: int, rows: int, *, proved: bool) -> None:
    """Behind the type and five bits of the quantiser are the kind of skipping, and a bit for each row or column."""

    def skip(number: int, content: bytes) -> list[bytes]:
        head = content[0] >> 2 << 10 | kind << 8 | rows << 5
        return [head.to_bytes(2) + content[2:] if number == 9 else content]

    clip = joined("avi", short("wmv2", "avi", {}), rewrite=skip)
    assert (structure_of(clip) is not None) == proved


class TestAnyBytes:
    @pytest.mark.parametrize("codec", sorted(READERS.keys() - {"h264", "hevc"}))
    @settings(max_examples=40, deadline=1000)
    @given(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=4), st.binary(max_size=40))
    def test_are_read_without_an_exception(self, codec: str, contents: list[bytes], extradata: bytes) -> None:
        READERS[codec]([cast("Packet[VideoStream]", Packet(content)) for content in contents], extradata)

    @pytest.mark.parametrize("codec", sorted(SAMPLES))
    @settings(max_examples=40, deadline=1000)
    @given(data=st.data())
    def test_of_a_damaged_clip_are_read_without_an_exception(self, codec: str, data: st.DataObject) -> None:
        contents = [bytearray(packet) for packet in sample(codec)]
        for _ in range(data.draw(st.integers(1, 6))):
            content = data.draw(st.sampled_from(contents))
            place = data.draw(st.integers(0, min(len(content), 120) - 1))
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            del content[data.draw(st.integers(1, len(content))) :]
        READERS[codec]([cast("Packet[VideoStream]", Packet(bytes(content))) for content in contents], b"")


@cache
def sample(codec: str) -> list[bytes]:
    encoder, container, options = SAMPLES[codec]
    with open_stream(short(encoder, container, options)) as (packets, _):
        return [bytes(packet) for packet in packets]


class TestSharedClips:
    def test_each_avi_of_ucf101_has_a_structure(self, shared: Path) -> None:
        paths = sorted((shared / "clips").rglob("*.avi"))
        if not paths:
            pytest.skip("no clips of UCF-101 here")
        for path in paths:
            assert structure_of(path.read_bytes()), path

    @pytest.mark.parametrize("name", ["vp8_altref_counted.webm", "packed_counted.avi"])
    def test_each_fault_has_a_structure(self, shared: Path, name: str) -> None:
        path = shared / "faults" / name
        if not path.exists():
            pytest.skip(f"{name} is not here")
        assert_provable(path.read_bytes())
