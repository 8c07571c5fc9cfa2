"""The overlay shows where the network looked, in each format, and is written completely or not at all."""

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageChops

from service.cli.overlay import check_overlay_path, write_overlay
from service.errors import CommandError
from tests.full_disk import no_file_longer_than

FORMATS = ("png", "gif", "mp4")
GREY = np.full((40, 224, 224, 3), 90, np.uint8)
EVEN = np.full((40, 7, 7), 1 / 49, np.float32)
# A clip of 4 s: forty instants, each in the middle of its tenth of a second.
TIMES = tuple(0.05 + 0.1 * k for k in range(40))
CAPTION = "JumpingJack 93.1 %  JumpRope 4.2 %"


def looking_at(row: int, column: int) -> npt.NDArray[np.float32]:
    maps = np.full((40, 7, 7), 0.2 / 48, np.float32)
    maps[:, row, column] = 0.8
    return maps


def read(path: Path) -> list[Image.Image]:
    """Return the pictures in a file of any of the formats."""
    if path.suffix.lower() == ".mp4":
        with av.open(str(path), "r") as clip:
            return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]
    with Image.open(path) as file:
        pages = []
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            pages.append(file.convert("RGB"))
        return pages


def brightness(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture.convert("L"), np.float64)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 5), (3, 3), (6, 2)])
@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_the_picture_is_brightest_where_the_attention_is(tmp_path: Path, suffix: str, row: int, column: int) -> None:
    path = tmp_path / f"overlay.{suffix}"

    write_overlay(path, GREY, looking_at(row, column), times_s=TIMES, caption=CAPTION)

    page = read(path)[20]
    side = page.width - 24
    picture = brightness(page.crop((12, 12, 12 + side, 12 + side)).resize((70, 70), Image.Resampling.BOX))
    cells = picture.reshape(7, 10, 7, 10).mean(axis=(1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)
    assert cells.max() > np.median(cells) + 30


def test_each_picture_of_the_contact_sheet_has_its_own_map(tmp_path: Path) -> None:
    maps = np.full((40, 7, 7), 0.2 / 48, np.float32)
    for k in range(40):
        maps[k, k % 7, (2 * k) % 7] = 0.8
    path = tmp_path / "sheet.png"

    write_overlay(path, GREY, maps, times_s=TIMES, caption=CAPTION)

    (sheet,) = read(path)
    for k in range(40):
        left, top = 12 + 166 * (k % 8), 12 + 184 * (k // 8)
        picture = sheet.crop((left, top, left + 160, top + 160)).resize((70, 70), Image.Resampling.BOX)
        cells = brightness(picture).reshape(7, 10, 7, 10).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), cells.shape) == (k % 7, (2 * k) % 7)


def test_a_contact_sheet_shows_the_sampled_frames(tmp_path: Path) -> None:
    frames = GREY.copy()
    frames[9, :, 112:] = (0, 220, 0)
    path = tmp_path / "sheet.png"

    write_overlay(path, frames, None, times_s=TIMES, caption=CAPTION)

    sheet = read(path)[0]
    left, top = 12 + 166, 12 + 184
    assert sheet.getpixel((left + 40, top + 80)) == (90, 90, 90)
    assert sheet.getpixel((left + 120, top + 80)) == (0, 220, 0)


def test_evenly_spread_attention_does_not_glow(tmp_path: Path) -> None:
    sharp, even = tmp_path / "sharp.png", tmp_path / "even.png"

    write_overlay(sharp, GREY, looking_at(3, 3), times_s=TIMES, caption=CAPTION)
    write_overlay(even, GREY, EVEN, times_s=TIMES, caption=CAPTION)

    thumbnail = (12, 12, 172, 172)
    assert brightness(read(sharp)[0].crop(thumbnail)).max() > 120
    assert brightness(read(even)[0].crop(thumbnail)).max() < 90


@pytest.mark.parametrize("suffix", ["gif", "mp4", "GIF", "Mp4"])
def test_an_animation_lasts_as_long_as_its_clip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"overlay.{suffix}"
    times = tuple(0.082 + 0.164 * k for k in range(40))

    write_overlay(path, GREY, looking_at(2, 2), times_s=times, caption=CAPTION)

    assert len(read(path)) == 40
    if suffix.lower() == "gif":
        with Image.open(path) as file:
            milliseconds = 0
            for number in range(40):
                file.seek(number)
                milliseconds += file.info["duration"]
        assert milliseconds / 1000 == pytest.approx(6.56, abs=0.01)
    else:
        with av.open(str(path), "r") as clip:
            assert clip.streams.video[0].codec_context.name == "h264"
            assert clip.duration is not None
            assert clip.duration / av.time_base == pytest.approx(6.56, abs=0.05)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_clip_of_one_frame_can_be_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still.{suffix}"

    write_overlay(path, GREY, looking_at(2, 2), times_s=(0.0,) * 40, caption=CAPTION)

    assert len(read(path)) == (1 if suffix == "png" else 40)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_network_without_attention_shows_plain_frames_and_says_so(tmp_path: Path, suffix: str) -> None:
    path, attended = tmp_path / f"base.{suffix}", tmp_path / f"attended.{suffix}"

    write_overlay(path, GREY, None, times_s=TIMES, caption=CAPTION)
    write_overlay(attended, GREY, looking_at(2, 2), times_s=TIMES, caption=CAPTION)

    plain, coloured = (np.asarray(read(file)[0], int) for file in (path, attended))
    # No pixel is coloured, but there is text in place of the legend.
    assert np.ptp(plain, axis=-1).max() < 12
    assert np.ptp(coloured, axis=-1).max() > 100
    assert plain[-32:-8].max() > 100


def test_the_caption_is_drawn(tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"

    write_overlay(one, GREY, EVEN, times_s=TIMES, caption="Basketball 98.0 %")
    write_overlay(other, GREY, EVEN, times_s=TIMES, caption="Surfing 41.5 %")

    changed = ImageChops.difference(read(one)[0], read(other)[0]).getbbox()
    assert changed is not None
    pictures_end = 12 + 5 * 184
    assert changed[1] > pictures_end - 12


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_long_caption_takes_more_lines_instead_of_more_width(tmp_path: Path, suffix: str) -> None:
    short, long = tmp_path / f"short.{suffix}", tmp_path / f"long.{suffix}"

    write_overlay(short, GREY, EVEN, times_s=TIMES, caption="Swing 50 %")
    write_overlay(long, GREY, EVEN, times_s=TIMES, caption="WalkingWithDog 12.5 %  " * 12)

    before, after = read(short)[0], read(long)[0]
    assert after.width == before.width
    assert after.height > before.height


def test_lines_of_the_caption_break_only_between_items(tmp_path: Path) -> None:
    # Each of the three items takes more than half a line of an animation. Broken at every space they would fill two.
    items, words = tmp_path / "items.gif", tmp_path / "words.gif"
    caption = "  ".join(["WalkingWithDog with 12.5 %"] * 3)

    write_overlay(items, GREY, EVEN, times_s=TIMES, caption=caption)
    write_overlay(words, GREY, EVEN, times_s=TIMES, caption=caption.replace("  ", " "))

    assert read(items)[0].height > read(words)[0].height


@pytest.mark.parametrize("name", ["overlay.jpeg", "overlay", "overlay.png.txt", "overlay.avi"])
def test_the_error_for_another_suffix_lists_the_allowed_ones(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    with pytest.raises(CommandError, match=r"\.png, \.gif, \.mp4"):
        check_overlay_path(path)
    with pytest.raises(CommandError, match=r"\.png, \.gif, \.mp4"):
        write_overlay(path, GREY, EVEN, times_s=TIMES, caption=CAPTION)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_folder_or_lies_in_a_missing_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()

    with pytest.raises(CommandError, match="is a folder"):
        check_overlay_path(tmp_path / "taken.png")
    with pytest.raises(CommandError, match="absent does not exist"):
        check_overlay_path(tmp_path / "absent" / "overlay.png")
    check_overlay_path(tmp_path / "overlay.PNG")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 frames, 40 times and 39 maps"):
        write_overlay(tmp_path / "overlay.png", GREY, EVEN[1:], times_s=TIMES, caption=CAPTION)
    with pytest.raises(ValueError, match="40 frames, 3 times and None maps"):
        write_overlay(tmp_path / "overlay.png", GREY, None, times_s=TIMES[:3], caption=CAPTION)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_the_existing_file_and_no_other(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"overlay.{suffix}"
    path.write_bytes(b"the former picture")

    with no_file_longer_than(1000), pytest.raises(OSError, match="too large"):
        write_overlay(path, GREY, looking_at(1, 1), times_s=TIMES, caption=CAPTION)

    assert path.read_bytes() == b"the former picture"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "overlay.png"
    path.write_bytes(b"the former picture")

    write_overlay(path, GREY, EVEN, times_s=TIMES, caption=CAPTION)

    assert Image.open(io.BytesIO(path.read_bytes())).format == "PNG"
    assert list(tmp_path.iterdir()) == [path]
