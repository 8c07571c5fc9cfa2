"""What a file is: the demuxer that is chosen for a clip, and what is said about a file that is none."""

import io
import struct
from collections.abc import Callable, Sequence

import av.logging
import numpy as np
import PIL.Image
import pytest

from service.errors import CorruptClip, UnsupportedMedia
from service.video.decoder import decode_clip
from tests.service.video.boxes import box
from tests.service.video.clips import numbered, numbered_clip, refusal

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
INDEX_FIRST = {"moov_size": "4000"}
KINDS = [
    ("libx264", "mp4"),
    ("libx264", "matroska"),
    ("libvpx", "webm"),
    ("mpeg4", "avi"),
    ("libx264", "mpegts"),
    ("mpeg2video", "vob"),
    ("mpeg1video", "mpeg"),
    ("flv", "flv"),
    ("libvpx", "ogg"),
    ("wmv2", "asf"),
    ("dvvideo", "dv"),
]


def clip_of(codec: str, container: str) -> bytes:
    """A clip of 30 frames. DV has no other sizes than those of television."""
    size = (720, 576) if codec == "dvvideo" else (64, 48)
    return numbered_clip(30, codec=codec, container=container, size=size)


def large_box(kind: bytes, content: bytes) -> bytes:
    """A box with a 64-bit size."""
    return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content


def boxes(clip: bytes) -> dict[bytes, bytes]:
    """The content of each top-level box, by type."""
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(clip):
        size, kind = struct.unpack_from(">I4s", clip, start)
        found[kind] = clip[start + 8 : start + size]
        start += size
    return found


def with_large_media(clip: bytes) -> bytes:
    """The MP4 with a 64-bit size of its media. FFmpeg leaves room for it: an empty box before."""
    start = clip.index(box(b"free")) + 8
    size = int.from_bytes(clip[start : start + 4])
    return clip[: start - 8] + struct.pack(">I4sQ", 1, b"mdat", size + 8) + clip[start + 8 :]


def with_endless_media(clip: bytes) -> bytes:
    """The MP4, whose media is last, with a size of 0 for it: up to the end of the file."""
    start = clip.rindex(b"mdat")
    return clip[: start - 4] + bytes(4) + clip[start:]


def with_metadata(clip: bytes) -> bytes:
    """The MP4 with items of metadata beside the movie."""
    return clip + box(b"meta", bytes(4) + box(b"hdlr", bytes(25)))


def in_packets_of(packet_bytes: int, clip: bytes) -> bytes:
    """The MPEG-TS with a checksum after each packet, or a timestamp before it."""
    packets = [clip[start : start + 188] for start in range(0, len(clip), 188)]
    before, after = {192: (4, 0), 204: (0, 16)}[packet_bytes]
    return b"".join(bytes(before) + packet + bytes(range(after)) for packet in packets)


def video_packets(clip: bytes) -> bytes:
    """The packets of video of an MPEG-2 program stream, without the packs around them."""
    packets: list[bytes] = []
    start = 0
    while start < len(clip) and clip[start + 3] != 0xB9:  # the end of the stream
        if clip[start + 3] == 0xBA:
            start += 14 + (clip[start + 13] & 7)
            continue
        end = start + 6 + int.from_bytes(clip[start + 4 : start + 6])
        if clip[start + 3] == 0xE0:
            packets.append(clip[start:end])
        start = end
    return b"".join(packets)


def picture(form: str, frames: int = 1) -> bytes:
    """An image file in one of Pillow's formats, animated if it has several frames."""
    file = io.BytesIO()
    first, *others = (PIL.Image.fromarray(numbered(number)) for number in range(frames))
    first.save(file, form, **({"save_all": True, "append_images": others} if others else {}))
    return file.getvalue()


def annex_b(clip: bytes) -> bytes:
    """The AV1 stream in low-overhead format (section 5) in length-delimited format (annex B)."""
    units: list[list[bytes]] = []  # of each temporal unit, the OBUs
    start = 0
    while start < len(clip):
        header, at, size, shift = clip[start], start + 1, 0, 0
        while True:
            size |= (clip[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if clip[at - 1] < 0x80:
                break
        if header >> 3 == 2:  # a temporal delimiter
            units.append([])
        units[-1].append(bytes([header & ~2]) + clip[at : at + size])
        start = at + size
    return b"".join(sized(sized(b"".join(map(sized, obus)))) for obus in units)


def sized(data: bytes) -> bytes:
    """The data after its size in LEB128."""
    size, encoded = len(data), b""
    while size >= 0x80:
        encoded, size = encoded + bytes([size & 0x7F | 0x80]), size >> 7
    return encoded + bytes([size]) + data


class TestDemuxer:
    @pytest.mark.parametrize(("codec", "container"), KINDS)
    def test_ffmpeg_probes_no_file(self, codec: str, container: str) -> None:
        clip = clip_of(codec, container)
        level = av.logging.get_level()
        av.logging.set_level(av.logging.TRACE)
        try:
            with av.logging.Capture() as messages:
                frames = decode_clip(clip).facts.frames
        finally:
            av.logging.set_level(level)

        assert frames == 30
        assert messages
        assert not [text for _, _, text in messages if "probed with size" in text or "hls" in text]

    @pytest.mark.parametrize(
        "before",
        [
            b"",
            box(b"free", bytes(100)),
            box(b"skip", b"GGGG" * 50),
            box(b"wide"),
            box(b"pnot", bytes(12)),
            box(b"udta", bytes(12)),
            large_box(b"free", bytes(70_000)),
            box(b"styp", b"msdh\0\0\0\0msdh"),
            box(b"uuid", bytes(40)),
            box(b"XYZW", bytes(40)) + box(b"free"),
        ],
        ids=["moov", "free", "skip", "wide", "pnot", "udta", "large free", "styp", "uuid", "unknown"],
    )
    def test_an_mp4_may_begin_with_other_boxes_than_its_brand(self, before: bytes) -> None:
        clip = numbered_clip(30, muxing=FRAGMENTED)
        without_brand = clip[int.from_bytes(clip[:4]) :]
        assert without_brand[4:8] == b"moov"

        assert decode_clip(before + without_brand).facts.frames == 30

    @pytest.mark.parametrize(
        ("change", "muxing"), [(with_large_media, {}), (with_endless_media, INDEX_FIRST), (with_metadata, {})]
    )
    def test_rare_kinds_of_top_level_boxes_are_read(
        self, change: Callable[[bytes], bytes], muxing: dict[str, str]
    ) -> None:
        assert decode_clip(change(numbered_clip(30, muxing=muxing))).facts.frames == 30

    @pytest.mark.parametrize("start", [b"\0\0\0\4free", b"\0\0\0\7free", b"\0\0\0\1free\0\0\0\xff", b"\0\0\0\x08fre"])
    def test_a_box_of_an_invalid_size_is_no_mp4(self, start: bytes) -> None:
        assert isinstance(refusal(start), UnsupportedMedia)

    @pytest.mark.parametrize(
        ("change", "muxing"),
        [(with_large_media, {}), (with_large_media, INDEX_FIRST), (with_endless_media, INDEX_FIRST)],
    )
    def test_an_encrypted_mp4_is_recognized_after_any_kind_of_box(
        self, change: Callable[[bytes], bytes], muxing: dict[str, str]
    ) -> None:
        key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
        clip = change(numbered_clip(10, muxing=key | muxing))

        assert "encrypted" in str(refusal(clip))

    @pytest.mark.parametrize("packet_bytes", [188, 192, 204])
    @pytest.mark.parametrize(
        "stray",
        [b"", b"\x47", b"\x47\x40\0\x10" * 30, bytes(187), np.random.default_rng(5).bytes(1000)],
        ids=["none", "one", "false starts", "zeros", "noise"],
    )
    def test_a_transport_stream_may_begin_with_stray_bytes(self, packet_bytes: int, stray: bytes) -> None:
        clip = numbered_clip(30, container="mpegts")

        facts = decode_clip(stray + (clip if packet_bytes == 188 else in_packets_of(packet_bytes, clip))).facts

        assert (facts.container, facts.frames) == ("mpegts", 30)

    def test_a_transport_stream_of_a_few_packets_is_decoded(self) -> None:
        clip = numbered_clip(1, container="mpegts")
        assert len(clip) < 8 * 188

        assert decode_clip(clip).facts.frames == 1

    @pytest.mark.parametrize(("codec", "container"), [("mpeg1video", "mpeg"), ("mpeg2video", "vob"), ("dvvideo", "dv")])
    @pytest.mark.parametrize("stray", [b"\r\n", bytes(100), np.random.default_rng(5).bytes(1000)])
    def test_a_program_stream_or_dv_may_begin_with_stray_bytes(self, codec: str, container: str, stray: bytes) -> None:
        facts = decode_clip(stray + clip_of(codec, container)).facts

        assert (facts.container, facts.frames) == ({"vob": "mpeg"}.get(container, container), 30)

    def test_a_program_stream_may_have_no_packs(self) -> None:
        assert decode_clip(video_packets(clip_of("mpeg2video", "vob"))).facts.frames == 30

    @pytest.mark.parametrize(("codec", "container"), [("libx264", "mpegts"), ("flv", "flv"), ("libvpx", "ogg")])
    def test_an_id3_tag_before_a_stream_is_skipped(self, codec: str, container: str) -> None:
        tag = b"ID3\4\0\0\0\0\x27\x08" + bytes(0x27 << 7 | 8)

        assert decode_clip(tag + clip_of(codec, container)).facts.frames == 30


class TestRefusals:
    @pytest.mark.parametrize(
        ("codec", "container", "name"),
        [
            ("libx264", "h264", "H.264"),
            ("libx265", "hevc", "HEVC"),
            ("mpeg4", "m4v", "MPEG-4"),
            ("mpeg1video", "mpeg1video", "MPEG-1"),
            ("mpeg2video", "mpeg2video", "MPEG-2"),
            ("mjpeg", "mjpeg", "Motion JPEG"),
            ("mjpeg", "mpjpeg", "Motion JPEG"),
            ("libsvtav1", "obu", "AV1"),
            ("libvpx", "ivf", "IVF"),
            ("mpeg2video", "mxf", "MXF"),
            ("rv20", "rm", "RealMedia"),
            ("wrapped_avframe", "yuv4mpegpipe", "YUV4MPEG2"),
            ("gif", "gif", "GIF"),
            ("apng", "apng", "PNG"),
        ],
    )
    def test_a_video_in_no_supported_container_is_named_with_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch, codec: str, container: str, name: str
    ) -> None:
        monkeypatch.setenv("SVT_LOG", "0")
        pix_fmt = {"gif": "rgb8", "apng": "rgb24"}.get(codec)
        error = refusal(numbered_clip(10, codec=codec, container=container, pix_fmt=pix_fmt))

        assert isinstance(error, UnsupportedMedia)
        assert name in str(error)
        assert "MP4" in str(error)
        assert "ffmpeg -i clip." in str(error)

    def test_an_av1_stream_in_annex_b_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SVT_LOG", "0")

        assert "AV1" in str(refusal(annex_b(numbered_clip(10, codec="libsvtav1", container="obu"))))

    @pytest.mark.parametrize(
        ("form", "frames", "words"),
        [("png", 1, "an image"), ("jpeg", 1, "an image"), ("webp", 1, "an image"), ("bmp", 1, "an image")]
        + [("gif", 1, "GIF"), ("gif", 5, "GIF"), ("webp", 5, "animated WebP"), ("png", 5, "animated PNG")],
    )
    def test_an_image_is_unsupported_even_if_animated(self, form: str, frames: int, words: str) -> None:
        error = refusal(picture(form, frames))

        assert isinstance(error, UnsupportedMedia)
        assert words in str(error)

    @pytest.mark.parametrize(
        "brand",
        ["avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"],
    )
    def test_a_brand_of_images_is_refused(self, brand: str) -> None:
        error = refusal(numbered_clip(5).replace(b"ftypisom", b"ftyp" + brand.encode()))

        assert isinstance(error, UnsupportedMedia)
        assert "image" in str(error)

    def test_items_without_a_movie_are_an_image(self) -> None:
        error = refusal(box(b"ftyp", b"XXXX\0\0\0\0") + box(b"meta", bytes(100)) + box(b"mdat", bytes(100)))

        assert isinstance(error, UnsupportedMedia)
        assert "image" in str(error)

    @pytest.mark.parametrize("first", [[b"moof"], [b"styp", b"moof"], [b"sidx", b"moof"], [b"ftyp", b"moof"]])
    def test_a_fragment_of_an_mp4_is_named(self, first: Sequence[bytes]) -> None:
        parts = boxes(numbered_clip(30, muxing=FRAGMENTED))
        contents = {b"styp": b"msdh\0\0\0\0msdh", b"sidx": bytes(32)} | parts
        error = refusal(b"".join(box(kind, contents[kind]) for kind in [*first, b"mdat"]))

        assert isinstance(error, UnsupportedMedia)
        assert "fragment" in str(error)

    @pytest.mark.parametrize(("kept", "left_out"), [("1f43b675", ""), ("18538067", ""), ("1a45dfa3", "1654ae6b")])
    def test_a_fragment_of_a_webm_is_named(self, kept: str, left_out: str) -> None:
        """Without all that comes before a cluster or a segment, or without the description of the tracks."""
        clip = numbered_clip(30, codec="libvpx", container="webm", muxing={"live": "1"})
        clip = clip[clip.index(bytes.fromhex(kept)) :]
        if left_out:
            start = clip.index(bytes.fromhex(left_out), clip.index(bytes.fromhex(left_out)) + 4)  # past the index
            clip = clip[:start] + clip[clip.index(b"\x1f\x43\xb6\x75", start) :]
        error = refusal(clip)

        assert isinstance(error, UnsupportedMedia)
        assert "fragment" in str(error)

    @pytest.mark.parametrize("tenths", [2, 5, 9])
    @pytest.mark.parametrize("change", [bytes, with_large_media])
    def test_an_mp4_that_ends_before_its_index_is_damaged(self, change: Callable[[bytes], bytes], tenths: int) -> None:
        clip = change(numbered_clip(50))
        error = refusal(clip[: clip.rindex(b"moov") * tenths // 10])

        assert isinstance(error, CorruptClip)
        assert "index" in str(error)

    @pytest.mark.parametrize(("codec", "container", "kept"), [("mpeg4", "avi", 100), ("libvpx", "ogg", 20)])
    def test_a_container_that_ends_early_is_damaged(self, codec: str, container: str, kept: int) -> None:
        assert isinstance(refusal(clip_of(codec, container)[:kept]), CorruptClip)
