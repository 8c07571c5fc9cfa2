"""Draws where the network looked: its attention in colour over the sampled frames, as PNG, GIF or MP4."""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from service.errors import CommandError
from service.files import write_atomically

Frames = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]

# Ten stops of the colour map "inferno" (S. van der Walt and N. Smith, CC0). Its lightness rises evenly, so that it can
# be read with any kind of colour blindness and in grey.
INFERNO = np.array(
    [
        (0x00, 0x00, 0x04),
        (0x1B, 0x0C, 0x41),
        (0x4A, 0x0C, 0x6B),
        (0x78, 0x1C, 0x6D),
        (0xA5, 0x2C, 0x60),
        (0xCF, 0x44, 0x46),
        (0xED, 0x69, 0x25),
        (0xFB, 0x9B, 0x06),
        (0xF7, 0xD1, 0x3D),
        (0xFC, 0xFF, 0xA4),
    ],
    np.float32,
)
PAPER, INK, FAINT = (22, 22, 26), (236, 236, 232), (164, 164, 160)
MARGIN = 12
COLUMNS, THUMBNAIL = 8, 160
# Pixels on each side of a picture in an animation: large enough to read, small enough to mail a GIF of 40 of them.
PICTURE = 360
LEGEND = "share of the attention in one cell · one scale for the whole clip"


def check_overlay_path(path: Path) -> None:
    """Check that an overlay can be written to a path, so that a mistyped one fails before the clip is classified.

    Raises:
        CommandError: The path has another suffix than .png, .gif or .mp4, is a folder, or lies in a missing folder.
    """
    if path.suffix.lower() not in ENCODERS:
        raise CommandError(f"{path}: an overlay's name must end in one of {', '.join(ENCODERS)}")
    if path.is_dir():
        raise CommandError(f"{path} is a folder; give the overlay a file name")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist; create it first")


def write_overlay(path: Path, frames: Frames, maps: Maps | None, *, times_s: Sequence[float], caption: str) -> None:
    """Write a contact sheet (.png) or an animation as long as the clip (.gif, .mp4).

    The file is written completely or not at all.

    Args:
        path: The file to write; its suffix decides the format.
        frames: uint8 ``(n, height, width, 3)``, RGB.
        maps: Attention ``(n, rows, columns)``, each map summing to 1. ``None`` for a network without attention; the
            frames are then drawn without maps.
        times_s: The n frames' times in seconds.
        caption: Text below the pictures. Items are separated by two spaces, and lines are broken only between items.

    Raises:
        CommandError: The path is not usable (see ``check_overlay_path``).
        ValueError: The arrays differ in length.
        OSError: The file cannot be written.
    """
    check_overlay_path(path)
    count = len(frames)
    if count == 0 or len(times_s) != count or (maps is not None and len(maps) != count):
        given = f"{count} frames, {len(times_s)} times and {None if maps is None else len(maps)} maps"
        raise ValueError(f"each frame needs one time and one map, but there are {given}")
    scale = None if maps is None else _scale(maps)
    if maps is None or scale is None:
        pictures = [Image.fromarray(frame) for frame in frames]
    else:
        pictures = [_blend(frame, heat, scale) for frame, heat in zip(frames, maps, strict=True)]
    data = ENCODERS[path.suffix.lower()](_Overlay(pictures, tuple(times_s), caption, scale))
    write_atomically(path, data)


@dataclass(frozen=True, slots=True)
class _Scale:
    """The colours' scale.

    Attributes:
        hottest: Share of a map's attention that gets the last colour.
        even: Share of each cell if the attention is spread evenly.
    """

    hottest: float
    even: float


@dataclass(frozen=True, slots=True)
class _Overlay:
    """Everything that is drawn: n pictures, their times, the caption, and the scale (``None`` without attention)."""

    pictures: list[Image.Image]
    times_s: tuple[float, ...]
    caption: str
    scale: _Scale | None

    def period_s(self) -> float:
        """Return the seconds for which each picture is shown. The sampled instants are evenly spaced."""
        count = len(self.times_s)
        span = self.times_s[-1] - self.times_s[0]
        # 20 ms is the shortest time that GIF viewers respect. A clip of one frame has no span.
        return max(0.02, span / (count - 1)) if count > 1 else 1.0


def _scale(maps: Maps) -> _Scale:
    """Return one scale for all maps of a clip.

    Every map sums to 1, so maps can be compared. If each frame had its own scale, an even map would glow like a sharp
    one. For the same reason the scale reaches at least four times the even share. It ends at the 99th percentile, so
    that one sharp frame does not leave the others dark.
    """
    even = 1 / math.prod(maps.shape[1:])
    return _Scale(hottest=max(float(np.percentile(maps, 99)), 4 * even), even=even)


# -- painting ----------------------------------------------------------------------------------------------------------


def _colours(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the colour of each value from 0 to 1: float32 ``(..., 3)``, RGB, from 0 to 255."""
    place = heat.clip(0, 1) * (len(INFERNO) - 1)
    before = np.minimum(place.astype(np.intp), len(INFERNO) - 2)
    share = (place - before)[..., None]
    return np.asarray(INFERNO[before] * (1 - share) + INFERNO[before + 1] * share, np.float32)


def _blend(frame: Frames, heat: Maps, scale: _Scale) -> Image.Image:
    """Draw a map over its frame: dark where the network did not look, glowing where it did."""
    grid = Image.fromarray(np.asarray(heat / scale.hottest, np.float32))
    smooth = np.asarray(grid.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BICUBIC)).clip(0, 1)
    opacity = (0.30 + 0.30 * smooth)[..., None]
    mixed = frame * (1 - opacity) + _colours(smooth) * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _wrap(text: str, width: int, size: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels: between items (two spaces), or else at single spaces."""
    font, lines = _font(size), [""]
    gap = "  " if "  " in text else " "
    for item in filter(None, map(str.strip, text.split(gap))):
        longer = f"{lines[-1]}{gap}{item}" if lines[-1] else item
        if lines[-1] and font.getlength(longer) > width:
            lines.append(item)
        else:
            lines[-1] = longer
    return lines


def _legend(width: int, scale: _Scale | None) -> Image.Image:
    """Draw the legend: a colour bar with its numbers, and a note."""
    if scale is None:
        legend = Image.new("RGB", (width, 18), PAPER)
        ImageDraw.Draw(legend).text((0, 2), "this network has no attention maps", FAINT, _font(12))
        return legend
    note = _wrap(LEGEND, width, 12)
    legend = Image.new("RGB", (width, 34 + 16 * len(note)), PAPER)
    draw, bar = ImageDraw.Draw(legend), min(width, 336)
    steps = np.linspace(0, 1, bar, dtype=np.float32)
    legend.paste(Image.fromarray(np.broadcast_to(_colours(steps), (12, bar, 3)).astype(np.uint8)), (0, 0))
    even = round(bar * scale.even / scale.hottest)
    draw.line((even, 0, even, 15), INK)
    draw.text((0, 16), "0", FAINT, _font(12))
    draw.text((max(even, 44), 16), f"{scale.even:.1%} even", FAINT, _font(12), anchor="ma")
    draw.text((bar, 16), f"{scale.hottest:.1%} or more", FAINT, _font(12), anchor="ra")
    for number, line in enumerate(note):
        draw.text((0, 33 + 16 * number), line, FAINT, _font(12))
    return legend


def _captioned(body: Image.Image, overlay: _Overlay, size: int) -> Image.Image:
    """Put the caption and the legend below a picture. Width and height are even, as video encoders need."""
    lines = _wrap(overlay.caption, body.width, size)
    legend = _legend(body.width, overlay.scale)
    step = round(size * 1.35)
    height = body.height + step * len(lines) + legend.height + 4 * MARGIN
    page = Image.new("RGB", (body.width + 2 * MARGIN, height + height % 2), PAPER)
    page.paste(body, (MARGIN, MARGIN))
    draw, top = ImageDraw.Draw(page), body.height + 2 * MARGIN
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + step * number), line, INK, _font(size))
    page.paste(legend, (MARGIN, top + step * len(lines) + MARGIN))
    return page


def _cards(overlay: _Overlay) -> list[Image.Image]:
    """Draw the pages of an animation: each has a picture, its number and time, the caption and the legend."""
    cards = []
    for number, (picture, time) in enumerate(zip(overlay.pictures, overlay.times_s, strict=True), 1):
        body = Image.new("RGB", (PICTURE, PICTURE + 18), PAPER)
        body.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), (0, 0))
        label = f"{time:.2f} s  ·  {number} of {len(overlay.pictures)}"
        ImageDraw.Draw(body).text((0, PICTURE + 4), label, FAINT, _font(12))
        cards.append(_captioned(body, overlay, 15))
    return cards


# -- files -------------------------------------------------------------------------------------------------------------


def _contact_sheet(overlay: _Overlay) -> bytes:
    """Draw all pictures in rows of eight with their times, as PNG."""
    gap, label = 6, 18
    rows = math.ceil(len(overlay.pictures) / COLUMNS)
    body = Image.new("RGB", (COLUMNS * (THUMBNAIL + gap) - gap, rows * (THUMBNAIL + label + gap) - gap), PAPER)
    draw = ImageDraw.Draw(body)
    for number, (picture, time) in enumerate(zip(overlay.pictures, overlay.times_s, strict=True)):
        row, column = divmod(number, COLUMNS)
        x, y = column * (THUMBNAIL + gap), row * (THUMBNAIL + label + gap)
        body.paste(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + THUMBNAIL // 2, y + THUMBNAIL + 2), f"{time:.2f} s", FAINT, _font(12), anchor="ma")
    file = io.BytesIO()
    _captioned(body, overlay, 22).save(file, "PNG")
    return file.getvalue()


def _gif(overlay: _Overlay) -> bytes:
    cards = _cards(overlay)
    # GIF counts in units of 10 ms. Rounding the instants, not the durations, keeps the animation as long as the clip.
    ticks = [round(100 * overlay.period_s() * number) for number in range(len(cards) + 1)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(ticks)]
    # One palette for all, because palettes that change from card to card flicker; dithered, because the glow would
    # otherwise break into rings.
    palette = _colour_strip(cards).quantize(256, Image.Quantize.MEDIANCUT)
    cards = [card.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for card in cards]
    file = io.BytesIO()
    cards[0].save(file, "GIF", save_all=True, append_images=cards[1:], duration=durations, loop=0)
    return file.getvalue()


def _colour_strip(cards: list[Image.Image]) -> Image.Image:
    """Put some eight of the cards side by side, as a sample of all colours."""
    chosen = cards[:: max(1, len(cards) // 8)]
    width, height = cards[0].size
    strip = Image.new("RGB", (width * len(chosen), height))
    for number, card in enumerate(chosen):
        strip.paste(card, (width * number, 0))
    return strip


def _mp4(overlay: _Overlay) -> bytes:
    cards = _cards(overlay)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        rate = Fraction(1000, round(1000 * overlay.period_s()))
        stream = output.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height = cards[0].size
        stream.pix_fmt = "yuv420p"
        for card in cards:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(card), format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


ENCODERS: dict[str, Callable[[_Overlay], bytes]] = {".png": _contact_sheet, ".gif": _gif, ".mp4": _mp4}
