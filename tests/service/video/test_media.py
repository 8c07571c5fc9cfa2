"""The media policy: which files are accepted as video, and which of their streams is decoded."""

import io
import re
import struct
import tracemalloc
import uuid
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.errors import UnsupportedMedia
from service.video.decoder import DecodeLimits, decode_clip
from service.video.dolby_vision import is_plain_track
from service.video.formats import DEMUXERS
from service.video.media import CODECS, open_video
from tests.service.video.boxes import box, in_sample_entry
from tests.service.video.clips import indices, middle_frames, numbered, numbered_clip, refusal, with_stream_type
from tests.service.video.vc1 import vc1_clip, wmv3_clip

PLAIN = Disposition(0)
# ASF's Content Encryption Object, Extended Content Encryption Object and Advanced Content Encryption Object.
ENCRYPTION_OBJECTS = (
    "2211b3fb-bd23-11d2-b4b7-00a0c955fc6e",
    "298ae614-2622-4c17-b935-dae07ee9289c",
    "43058533-6981-49e6-9b74-ad12cb86d58c",
)
LIVE = {"live": "1", "write_crc32": "0"}
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "media.md"


def tone(*, cover: bool = False, video: bool = False) -> bytes:
    """An MP4 with sound; with ``cover`` also a cover picture, with ``video`` also a video of 10 frames."""
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


def two_videos(*streams: tuple[str, int, int], container: str = "matroska") -> bytes:
    """A file with one video stream for each (codec, width, height), of 5 frames."""
    return videos(*(Video(*stream) for stream in streams), container=container)


@dataclass(frozen=True, slots=True)
class Video:
    """One video stream of a file. Its frames are at 25 a second, a single one lasts for the whole second."""

    codec: str
    width: int
    height: int
    frames: int = 5
    disposition: Disposition = PLAIN


def videos(*streams: Video, container: str) -> bytes:
    """A file with several video streams."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        added = [cast(VideoStream, output.add_stream(video.codec, rate=25)) for video in streams]
        for stream, video in zip(added, streams, strict=True):
            stream.width, stream.height = video.width, video.height
            stream.pix_fmt = "yuvj420p" if video.codec == "mjpeg" else "yuv420p"
            stream.disposition = video.disposition
        for stream, video in zip(added, streams, strict=True):
            for number in range(video.frames):
                frame = VideoFrame.from_ndarray(numbered(number, video.width, video.height))
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return file.getvalue()


def encrypted_matroska() -> bytes:
    """A Matroska file whose track is marked as encrypted with a named key."""
    encryption = element("5035", element("47e1", b"\x05") + element("47e2", b"the name of a key"))
    encoding = element("6240", element("5031", b"\0") + element("5032", b"\1") + element("5033", b"\1") + encryption)
    return with_track_element(numbered_clip(10, container="matroska", muxing=LIVE), element("6d80", encoding))


def scrambled(clip: bytes, *, packet_bytes: int = 188, packets: int | None = None) -> bytes:
    """The MPEG-TS with its first ``packets`` video packets (default: all) scrambled as in a pay-TV recording."""
    stream = bytearray(clip)
    starts = range(packet_bytes - 188, len(stream), packet_bytes)
    video = {188: 0x100, 192: 0x1011}[packet_bytes]  # the PIDs that FFmpeg's muxer uses
    of_video = [start for start in starts if int.from_bytes(stream[start + 1 : start + 3]) & 0x1FFF == video]
    for start in of_video[:packets]:
        has_adaptation = stream[start + 3] & 0x20
        payload = slice(start + 4 + (1 + stream[start + 4] if has_adaptation else 0), start + 188)
        stream[payload] = bytes(byte ^ 0xA5 for byte in stream[payload])
        stream[start + 3] |= 0x80  # scrambled with the even key
    return bytes(stream)


def dolby_vision(profile: int, compatibility: int) -> bytes:
    """A configuration of Dolby Vision."""
    return bytes([1, 0, profile << 1, 0x0D, compatibility << 4]) + bytes(19)


def dolby_vision_mp4(
    profile: int | None, compatibility: int = 0, codec: str = "libx265", tag: bytes | None = None
) -> bytes:
    """A clip with a configuration of Dolby Vision, if there is a profile, and perhaps another tag of the codec."""
    entry = {"libx265": b"hev1", "libsvtav1": b"av01", "libx264": b"avc1"}[codec]
    clip = numbered_clip(10, codec=codec)
    if profile is not None:
        added = box(b"dvvC" if profile > 7 else b"dvcC", dolby_vision(profile, compatibility))
        clip = in_sample_entry(clip, added, entry)
    return clip.replace(entry, tag) if tag else clip


def with_track_element(clip: bytes, content: bytes) -> bytes:
    """The live Matroska file, whose segment has no size and whose first track may thus grow, with another element."""
    tracks, start, end = find_element(clip, "1654ae6b", clip.index(bytes.fromhex("1654ae6b")) + 4)  # past the index
    _, track, track_end = find_element(clip, "ae", start)
    track_entry = element("ae", clip[track:track_end] + content)
    return clip[:tracks] + element("1654ae6b", track_entry + clip[track_end:end]) + clip[end:]


def element(name: str, content: bytes) -> bytes:
    """An EBML element, with its size in eight bytes."""
    return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8) + content


def find_element(data: bytes, name: str, start: int) -> tuple[int, int, int]:
    """The offsets at which an EBML element begins, its content begins, and it ends."""
    begin = data.index(bytes.fromhex(name), start)
    at = begin + len(name) // 2
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length]) & ((1 << 7 * length) - 1)
    return begin, at + length, at + length + size


def sound() -> bytes:
    """A WAV file."""
    file = io.BytesIO()
    with wave.open(file, "w") as output:
        output.setparams((1, 2, 8000, 0, "NONE", ""))
        output.writeframes(bytes(8000))
    return file.getvalue()


def hls(clip: str) -> str:
    return f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{clip}\n#EXT-X-ENDLIST\n"


def dash(clip: str) -> str:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"'
        ' profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
        '<Representation id="1" bandwidth="1000" width="64" height="48" codecs="avc1.42c00a">'
        f"<BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )


def concat(clip: str) -> str:
    return f"ffconcat version 1.0\nfile '{clip}'\n"


def session(clip: str) -> str:
    return f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={clip}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


def assert_unsupported(data: bytes, *words: str) -> None:
    """Assert that a file is refused as unsupported, with an error text that contains ``words``."""
    error = refusal(data)

    assert isinstance(error, UnsupportedMedia)
    assert error.code == "unsupported_media"
    for word in words:
        assert word in str(error)


class TestPolicy:
    def test_the_lists_are_those_of_the_documentation(self) -> None:
        containers, codecs = re.findall(r"^\|---.*\n((?:\|.*\n)+)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)

        assert re.findall(r"^\| `(.+)` \| (.+) \|$", containers, re.MULTILINE) == list(DEMUXERS.items())
        assert re.findall(r"^\| `(.+)` \| `(.+)` \| (.+) \|$", codecs, re.MULTILINE) == [
            (name, codec.decoder, codec.reason) for name, codec in CODECS.items()
        ]

    def test_ffmpeg_has_every_listed_demuxer_and_decoder(self) -> None:
        for demuxer in DEMUXERS:
            assert all(av.ContainerFormat(name, "r").is_input for name in demuxer.split(","))
        for name, codec in CODECS.items():
            assert av.Codec(codec.decoder, "r").canonical_name == name


class TestRefusals:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"The quick brown fox jumps over the lazy dog.\n" * 100,
            b"<html><body>not found</body></html>",
            b"1\n00:00:00,000 --> 00:00:02,000\nA subtitle.\n\n" * 20,
            np.random.default_rng(1).bytes(50_000),
        ],
        ids=["empty", "one byte", "text", "html", "subtitles", "random"],
    )
    def test_a_file_that_is_not_a_video_is_unsupported(self, data: bytes) -> None:
        assert_unsupported(data)

    @pytest.mark.parametrize("playlist", [hls, dash, concat, session])
    @pytest.mark.parametrize("name", ["playlist.m3u8", "manifest.mpd", "list.ffconcat", "clip.mp4", "clip"])
    def test_a_playlist_is_unsupported_whatever_its_name_and_whatever_it_points_to(
        self, tmp_path: Path, playlist: Callable[[str], str], name: str
    ) -> None:
        clip = tmp_path / "segment.ts"
        clip.write_bytes(numbered_clip(50, container="mpegts"))
        for named in (clip.name, str(clip), clip.as_uri(), "http://127.0.0.1:9/segment.ts"):
            path = tmp_path / name
            path.write_text(playlist(named), encoding="utf-8")
            with path.open("rb") as file:  # PyAV tells FFmpeg the name of an open file
                for source in (path.read_bytes(), path, file):
                    with pytest.raises(UnsupportedMedia):
                        decode_clip(source)

    @pytest.mark.parametrize("frames", [1, 5])
    def test_an_avif_is_refused_as_an_image(self, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
        monkeypatch.setenv("SVT_LOG", "0")

        assert_unsupported(numbered_clip(frames, codec="libsvtav1", container="avif"), "image")

    def test_an_encrypted_mp4_is_unsupported(self) -> None:
        key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}

        assert_unsupported(numbered_clip(10, muxing=key), "encrypted")

    def test_an_encrypted_matroska_is_unsupported(self) -> None:
        assert_unsupported(encrypted_matroska(), "encrypted")

    @pytest.mark.parametrize(
        ("codec", "profile", "compatibility", "tag"),
        [
            ("libx265", 5, 0, b"dvhe"),
            ("libx265", 5, 0, b"dvh1"),
            ("libx265", 5, 0, None),
            ("libx265", 8, 0, None),
            ("libx265", None, 0, b"dvh1"),
            ("libx265", None, 0, b"dvhe"),
            ("libsvtav1", 10, 0, b"dav1"),
            ("libsvtav1", 10, 0, None),
            ("libsvtav1", None, 0, b"dav1"),
        ],
    )
    def test_dolby_vision_without_a_base_layer_is_unsupported(
        self, monkeypatch: pytest.MonkeyPatch, codec: str, profile: int | None, compatibility: int, tag: bytes | None
    ) -> None:
        monkeypatch.setenv("SVT_LOG", "0")

        assert_unsupported(dolby_vision_mp4(profile, compatibility, codec, tag), "Dolby Vision")

    @pytest.mark.parametrize(
        ("codec", "profile", "compatibility", "tag"),
        [
            ("libx265", 8, 1, None),
            ("libx265", 8, 4, b"hvc1"),
            ("libx265", 8, 1, b"dvhe"),
            ("libx265", 7, 0, None),
            ("libx264", 9, 2, None),
            ("libsvtav1", 10, 4, None),
        ],
    )
    def test_dolby_vision_with_a_base_layer_is_decoded(
        self, monkeypatch: pytest.MonkeyPatch, codec: str, profile: int, compatibility: int, tag: bytes | None
    ) -> None:
        monkeypatch.setenv("SVT_LOG", "0")

        assert decode_clip(dolby_vision_mp4(profile, compatibility, codec, tag)).facts.frames == 10

    @pytest.mark.parametrize(("profile", "compatibility", "plain"), [(5, 0, False), (8, 1, True)])
    def test_dolby_vision_in_matroska_is_decoded_if_it_has_a_base_layer(
        self, profile: int, compatibility: int, plain: bool
    ) -> None:
        mapping = element(
            "41e4",
            element("41f0", b"\4") + element("41e7", b"dvcC") + element("41ed", dolby_vision(profile, compatibility)),
        )
        clip = with_track_element(numbered_clip(10, codec="libx265", container="matroska", muxing=LIVE), mapping)

        if plain:
            assert decode_clip(clip).facts.frames == 10
        else:
            assert_unsupported(clip, "Dolby Vision")

    def test_a_track_of_configurations_of_dolby_vision_takes_little_memory(self) -> None:
        track = (b"dvcC" + dolby_vision(8, 1)[:5]) * 2**17
        tracemalloc.start()
        try:
            assert is_plain_track(track)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < len(track)

    @pytest.mark.parametrize(("profile", "compatibility", "plain"), [(5, 0, False), (8, 1, True)])
    def test_dolby_vision_in_a_transport_stream_is_decoded_if_it_has_a_base_layer(
        self, profile: int, compatibility: int, plain: bool
    ) -> None:
        descriptors = b"\x05\4DOVI\xb0\5" + dolby_vision(profile, compatibility)[:5]
        clip = with_stream_type(numbered_clip(10, codec="libx265", container="mpegts"), 0x24, descriptors)

        if plain:
            assert decode_clip(clip).facts.frames == 10
        else:
            assert_unsupported(clip, "Dolby Vision")

    @pytest.mark.parametrize("kind", ENCRYPTION_OBJECTS)
    def test_an_encrypted_asf_is_unsupported(self, kind: str) -> None:
        clip = numbered_clip(10, codec="wmv2", container="asf")
        content = b"".join(struct.pack("<I4s", 4, text) for text in (b"data", b"DRM", b"key", b"URL"))
        encryption = uuid.UUID(kind).bytes_le + struct.pack("<Q", 24 + len(content)) + content
        size, objects = struct.unpack_from("<QI", clip, 16)  # of the header, which begins the file
        header = clip[:16] + struct.pack("<QI", size + len(encryption), objects + 1) + clip[28:30]

        assert_unsupported(header + encryption + clip[30:], "encrypted")

    @pytest.mark.parametrize(("muxing", "packet_bytes"), [({}, 188), ({"mpegts_m2ts_mode": "1"}, 192)])
    def test_a_scrambled_transport_stream_is_unsupported(self, muxing: Mapping[str, str], packet_bytes: int) -> None:
        clip = numbered_clip(30, container="mpegts", muxing=muxing)

        assert decode_clip(clip).facts.frames == 30
        assert_unsupported(scrambled(clip, packet_bytes=packet_bytes), "encrypted")

    def test_a_transport_stream_half_of_which_is_scrambled_is_opened(self) -> None:
        clip = numbered_clip(31, container="mpegts")
        packets = sum(clip[start + 1 : start + 3] in {b"\x41\0", b"\1\0"} for start in range(0, len(clip), 188))
        assert packets % 2 == 0

        with open_video(io.BytesIO(scrambled(clip, packets=packets // 2)), DecodeLimits()) as (_, stream):
            assert stream.codec_context.name == "h264"

    def test_a_stream_of_unknown_codec_is_unsupported(self) -> None:
        assert_unsupported(numbered_clip(10).replace(b"avc1" + bytes(6), b"zzzz" + bytes(6)), "codec")

    def test_a_transport_stream_with_few_scrambled_packets_is_decoded(self) -> None:
        clip = numbered_clip(30, container="mpegts", options={"g": "5"})

        assert decode_clip(scrambled(clip, packets=3)).facts.frames > 20

    @pytest.mark.parametrize(("codec", "container"), [("utvideo", "avi"), ("snow", "avi")])
    def test_a_codec_that_is_not_listed_is_unsupported_and_named(self, codec: str, container: str) -> None:
        assert_unsupported(numbered_clip(5, codec=codec, container=container), codec)

    def test_a_codec_whose_tag_is_not_text_is_unsupported_and_named(self) -> None:
        clip = with_stream_type(numbered_clip(10, container="mpegts"), 0xD1)

        assert_unsupported(clip, "dirac")

    def test_a_codec_that_ffmpeg_does_not_know_is_unsupported(self) -> None:
        clip = numbered_clip(10, container="matroska").replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX")

        assert_unsupported(clip, "unknown")

    def test_metadata_that_is_not_utf_8_does_not_matter(self) -> None:
        clip = numbered_clip(10, container="avi", codec="mpeg4").replace(b"Lavf", b"\xff\xfe\xe4v")

        assert decode_clip(clip).facts.frames == 10

    @pytest.mark.parametrize("container", ["nut", "wtv"])
    def test_a_container_that_is_not_listed_is_unsupported(self, container: str) -> None:
        assert isinstance(refusal(numbered_clip(5, container=container)), UnsupportedMedia)

    def test_a_wav_file_is_unsupported(self) -> None:
        assert_unsupported(sound())

    @pytest.mark.parametrize("cover", [False, True])
    def test_an_mp4_with_sound_only_is_unsupported_even_with_a_cover(self, cover: bool) -> None:
        error = refusal(tone(cover=cover))

        assert isinstance(error, UnsupportedMedia)
        assert "no video" in str(error)


@pytest.mark.parametrize(
    ("codec", "render"),
    [("wmv3", partial(wmv3_clip, container="asf")), ("wmv3", partial(wmv3_clip, container="avi")), ("vc1", vc1_clip)],
)
def test_codecs_that_ffmpeg_does_not_encode_are_decoded(codec: str, render: Callable[[int], bytes]) -> None:
    clip = decode_clip(render(15))

    assert (clip.facts.codec, clip.facts.frames, clip.facts.damaged_frames) == (codec, 15, 0)
    assert indices(clip) == middle_frames(15)
    lighter = [bool(frame.mean() > previous.mean()) for previous, frame in pairwise(clip.frames)]
    assert lighter == [later > earlier for earlier, later in pairwise(middle_frames(15))]


class TestBestStream:
    def test_the_video_is_decoded_and_not_the_cover(self) -> None:
        facts = decode_clip(tone(cover=True, video=True)).facts

        assert (facts.codec, facts.frames) == ("h264", 10)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_the_largest_stream_is_decoded(self, order: Sequence[int]) -> None:
        streams = [("libx264", 64, 48), ("libx264", 128, 96)]

        assert decode_clip(two_videos(*(streams[place] for place in order))).facts.width == 128

    def test_a_smaller_stream_is_decoded_if_the_codec_of_the_larger_is_not_listed(self) -> None:
        facts = decode_clip(two_videos(("utvideo", 128, 96), ("libx264", 64, 48), container="avi")).facts

        assert (facts.codec, facts.width) == ("h264", 64)

    @pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts", "avi", "asf"])
    @pytest.mark.parametrize("first", [False, True])
    @pytest.mark.parametrize("default", [PLAIN, Disposition.default])
    def test_a_larger_still_picture_is_not_the_video(self, container: str, first: bool, default: Disposition) -> None:
        codec = "mpeg4" if container in {"avi", "asf"} else "libx264"
        streams = [Video(codec, 64, 48, 25), Video(codec, 128, 96, 1, default)]

        facts = decode_clip(videos(*(reversed(streams) if first else streams), container=container)).facts

        assert (facts.width, facts.frames) == (64, 25)

    def test_a_cover_without_its_disposition_is_not_the_video(self) -> None:
        clip = videos(Video("mjpeg", 128, 96, 1), Video("libx264", 64, 48, 25), container="matroska")

        assert decode_clip(clip).facts.codec == "h264"

    def test_of_streams_with_nearly_as_many_frames_the_default_is_decoded(self) -> None:
        streams = [Video("libx264", 128, 96, 25), Video("libx264", 64, 48, 23, Disposition.default)]

        assert decode_clip(videos(*streams, container="matroska")).facts.width == 64

    def test_a_still_picture_beside_a_video_that_cannot_be_decoded_is_no_clip(self) -> None:
        clip = videos(Video("utvideo", 64, 48, 25), Video("mjpeg", 128, 96, 1), container="avi")

        assert_unsupported(clip, "utvideo")


@pytest.mark.parametrize(
    ("codec", "container"), [("libsvtav1", "mp4"), ("libx264", "mp4"), ("libvpx-vp9", "webm"), ("ffv1", "matroska")]
)
def test_a_decoder_starts_no_thread(monkeypatch: pytest.MonkeyPatch, codec: str, container: str) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    data = numbered_clip(30, codec=codec, container=container)

    before = set(Path("/proc/self/task").iterdir())
    with open_video(io.BytesIO(data), DecodeLimits()) as (opened, stream):
        frames = sum(1 for _ in opened.decode(stream))
        started = set(Path("/proc/self/task").iterdir()) - before

    assert (frames, started) == (30, set())
