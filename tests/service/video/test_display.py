"""How a clip is shown: at what size, and which way is up."""

import io
import re
from collections.abc import Container
from fractions import Fraction

import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image as PillowImage

from service.video.decoder import DecodedClip, decode_clip
from service.video.display import MAX_PIXEL_ASPECT, displayed_size
from tests.service.video.boxes import DISPLAY_HEIGHT, DISPLAY_UNIT, DISPLAY_WIDTH, in_video_track, number
from tests.service.video.clips import Change, encode, numbered, with_content

# -- size --------------------------------------------------------------------------------------------------------------


class TestSize:
    @pytest.mark.parametrize(
        ("coded", "pixel_aspect", "rotation", "displayed"),
        [
            ((320, 240), None, 0, (320, 240)),
            ((320, 240), Fraction(1), 90, (240, 320)),
            ((720, 480), Fraction(8, 9), 0, (720, 540)),  # DVD, 4:3
            ((720, 480), Fraction(32, 27), 0, (853, 480)),  # DVD, 16:9
            ((720, 576), Fraction(64, 45), 270, (576, 1024)),
            ((1440, 1080), Fraction(4, 3), 180, (1920, 1080)),  # HDV
            ((64, 48), Fraction(MAX_PIXEL_ASPECT), 0, (64 * MAX_PIXEL_ASPECT, 48)),
            ((64, 48), Fraction(1, MAX_PIXEL_ASPECT), 0, (64, 48 * MAX_PIXEL_ASPECT)),
            ((64, 48), MAX_PIXEL_ASPECT + Fraction(1, 100), 0, (64, 48)),
            ((64, 48), 1 / (MAX_PIXEL_ASPECT + Fraction(1, 100)), 90, (48, 64)),
            ((64, 48), Fraction(0), 0, (64, 48)),
            ((64, 48), Fraction(-2), 0, (64, 48)),
            ((64, 48), Fraction(2**31 - 1, 1), 0, (64, 48)),
        ],
    )
    def test_a_picture_is_enlarged_in_one_direction_as_its_pixels_say_and_then_rotated(
        self, coded: tuple[int, int], pixel_aspect: Fraction | None, rotation: int, displayed: tuple[int, int]
    ) -> None:
        assert displayed_size(*coded, pixel_aspect, rotation) == displayed

    @pytest.mark.parametrize(
        ("codec", "container"),
        [
            ("libx264", "mp4"),
            ("libx264", "mov"),
            ("libx264", "matroska"),
            ("libx264", "mpegts"),
            ("libx264", "flv"),
            ("libx265", "mp4"),
            ("mpeg4", "avi"),
            ("mpeg2video", "mpegts"),
        ],
    )
    def test_the_shape_of_pixels_comes_from_the_container_or_the_stream(self, codec: str, container: str) -> None:
        def squeeze(stream: VideoStream) -> None:
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

        data = encode([numbered(7, 96, 72)] * 10, codec=codec, container=container, prepare=squeeze)

        clip = decode_clip(data)

        assert (clip.facts.width, clip.facts.height) == (128, 72)
        assert (clip.facts.coded_width, clip.facts.coded_height) == (96, 72)
        plain = decode_clip(encode([numbered(7, 96, 72)] * 10, codec=codec, container=container))
        np.testing.assert_array_equal(clip.frames, plain.frames)

    @pytest.mark.parametrize("container", ["mp4", "matroska"])
    def test_the_container_wins_over_the_stream(self, container: str) -> None:
        def squeeze(stream: VideoStream) -> None:
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

        muxing = {"live": "1"} if container == "matroska" else {}
        data = encode([numbered(7, 96, 72)] * 10, container=container, prepare=squeeze, muxing=muxing)
        if container == "matroska":
            data = in_video_track(data, number(DISPLAY_WIDTH, 192) + number(DISPLAY_HEIGHT, 72), [DISPLAY_UNIT])
        else:
            place = data.index(b"pasp") + 4
            assert data[place : place + 8] == bytes([0, 0, 0, 4, 0, 0, 0, 3])
            data = data[:place] + bytes([0, 0, 0, 2, 0, 0, 0, 1]) + data[place + 8 :]

        facts = decode_clip(data).facts

        assert (facts.width, facts.height) == (192, 72)


# -- orientation -------------------------------------------------------------------------------------------------------

# Corners of a picture, and how they are shown.
CORNERS = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 24, 0), 48, 1)
PICTURES = [np.stack([CORNERS] * 3, -1)] * 10
AS_CODED, QUARTER_TURN_BACK, HALF_TURN = [0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0]

# SEI messages "display orientation" (ITU-T H.264, D.1.27; H.265, D.2.17): 90° counter-clockwise.
MESSAGES = {"libx264": bytes.fromhex("00000001062f0308001480"), "libx265": bytes.fromhex("000000014e012f0308000880")}
SLICES = {"libx264": re.compile(b"\0?\0\0\1[\x01\x41\x61\x65]"), "libx265": re.compile(b"\0?\0\0\1[\0-\x2a]\1")}


def corners(clip: DecodedClip) -> list[int]:
    """The corners of a clip's last sampled frame, which must be those of every frame."""
    first, *others = (clip.frames[:, 56::112, 56::112, 0] / 80).round().astype(int).reshape(40, 4).tolist()
    assert all(shown == first for shown in others)
    return list(first)


def with_messages(codec: str, turned: Container[int]) -> Change:
    """Return a change that adds an SEI message to some packets."""

    def change(place: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
        if place not in turned:
            return packet
        content = bytes(packet)
        first_slice = SLICES[codec].search(content)
        assert first_slice
        changed = with_content(
            packet, content[: first_slice.start()] + MESSAGES[codec] + content[first_slice.start() :]
        )
        changed.is_keyframe = packet.is_keyframe
        return changed

    return change


def photo(orientation: int) -> bytes:
    """A JPEG file whose Exif data names an orientation."""
    exif, file = PillowImage.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    PillowImage.fromarray(PICTURES[0]).save(file, "jpeg", exif=exif)
    return file.getvalue()


def half_turn(stream: VideoStream) -> None:
    stream.set_display_rotation(180)


class TestOrientation:
    @pytest.mark.parametrize(
        ("turned", "rotation", "shown"),
        [
            (range(10), 270, QUARTER_TURN_BACK),
            (range(0, 10, 5), 270, QUARTER_TURN_BACK),
            ([0], 270, QUARTER_TURN_BACK),
            (range(1, 10), 0, AS_CODED),
            ([9], 0, AS_CODED),
        ],
        ids=["all", "one in five", "the first", "all but the first", "the last"],
    )
    @pytest.mark.parametrize(("codec", "container"), [("libx264", "mpegts"), ("libx264", "mp4"), ("libx265", "mpegts")])
    def test_the_message_of_the_first_frame_holds_for_all(
        self, codec: str, container: str, turned: Container[int], rotation: int, shown: list[int]
    ) -> None:
        options = {"bf": "0", "g": "5"} if codec == "libx264" else {"x265-params": "log-level=none:bframes=0:keyint=5"}
        change = with_messages(codec, turned)

        clip = decode_clip(encode(PICTURES, codec=codec, container=container, options=options, change=change))

        assert (clip.facts.rotation, corners(clip)) == (rotation, shown)
        assert (clip.facts.width, clip.facts.height) == ((48, 96) if rotation else (96, 48))

    @pytest.mark.parametrize("turned", [range(10), [0], range(1, 10)], ids=["all", "the first", "all but the first"])
    @pytest.mark.parametrize("codec", ["libx264", "libx265"])
    @pytest.mark.parametrize("container", ["mp4", "matroska"])
    def test_the_container_wins_over_messages(self, container: str, codec: str, turned: Container[int]) -> None:
        change = with_messages(codec, turned)

        clip = decode_clip(encode(PICTURES, codec=codec, container=container, prepare=half_turn, change=change))

        assert (clip.facts.rotation, corners(clip)) == (180, HALF_TURN)

    @pytest.mark.parametrize(
        ("turned", "rotation", "shown"),
        [(range(10), 90, [2, 0, 3, 1]), ([0], 90, [2, 0, 3, 1]), (range(1, 10), 0, AS_CODED)],
        ids=["all", "the first", "all but the first"],
    )
    @pytest.mark.parametrize("container", ["avi", "mov"])
    def test_the_exif_data_of_the_first_photo_holds_for_all(
        self, container: str, turned: Container[int], rotation: int, shown: list[int]
    ) -> None:
        def change(place: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            return with_content(packet, photo(6)) if place in turned else packet

        clip = decode_clip(encode(PICTURES, codec="mjpeg", container=container, change=change))

        assert (clip.facts.rotation, corners(clip)) == (rotation, shown)

    @pytest.mark.parametrize(("orientation", "shown"), [(2, [1, 0, 3, 2]), (4, [2, 3, 0, 1]), (5, [0, 2, 1, 3])])
    def test_mirrored_photos_are_mirrored(self, orientation: int, shown: list[int]) -> None:
        def change(place: int, packet: "Packet[VideoStream]") -> "Packet[VideoStream]":
            return with_content(packet, photo(orientation)) if place < 5 else packet

        assert corners(decode_clip(encode(PICTURES, codec="mjpeg", container="avi", change=change))) == shown

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_container_wins_over_exif_data(self, orientation: int) -> None:
        clip = decode_clip(
            encode(
                PICTURES,
                codec="mjpeg",
                container="mov",
                prepare=half_turn,
                change=lambda place, packet: with_content(packet, photo(orientation)),
            )
        )

        assert (clip.facts.rotation, corners(clip)) == (180, HALF_TURN)
