"""Pictures of where the network looked: its attention in colours over the frames that it saw."""

import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Frames = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]

# Ten stops of "inferno" (S. van der Walt and N. Smith, CC0): its lightness rises evenly and steadily,
# so it reads the same with any kind of colour blindness, and in grey.
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
# Large enough to read, small enough for a GIF of 40 pictures to be mailed.
PICTURE = 360


def check_overlay_path(path: Path) -> None:
    """Raise ValueError, naming what is allowed, unless an overlay can be written as `path`.

    Meant for before the clip is analysed, so that a mistyped name costs no waiting.
    """
    if path.suffix.lower() not in ENCODERS:
        raise ValueError(f"{path}: an overlay is written as one of {', '.join(ENCODERS)}; give a name that ends so")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the overlay a file name")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")


def write_overlay(path: Path, frames: Frames, maps: Maps | None, *, times_s: Sequence[float], caption: str) -> None:
    """Write the attention over the frames as a contact sheet (.png) or an animation as long as the clip (.gif, .mp4).

    `frames` are (n, height, width, 3) uint8 RGB; `maps` (n, rows, columns), each summing to 1, or None for a network
    without attention, whose frames are shown plain; `times_s` the n times in seconds. The caption says what was found;
    two spaces part its items, which are never broken over lines. The file appears whole or not at all.

    Raises ValueError for a path that check_overlay_path refuses or for arrays that do not fit each other, and OSError
    where the file cannot be written.
    """
    check_overlay_path(path)
    count = len(frames)
    if count == 0 or len(times_s) != count or (maps is not None and len(maps) != count):
        raise ValueError(f"{count} frames, {len(times_s)} times and {None if maps is None else len(maps)} maps")
    scale = None if maps is None else _scale(maps)
    if maps is None or scale is None:
        pictures = [Image.fromarray(frame) for frame in frames]
    else:
        pictures = [_blend(frame, heat, scale) for frame, heat in zip(frames, maps, strict=True)]
    _write_whole(path, ENCODERS[path.suffix.lower()](_Overlay(pictures, tuple(times_s), caption, scale)))


@dataclass(frozen=True, slots=True)
class _Scale:
    """What the colours mean: `hottest` is the share of attention of the last colour, `even` that of no preference."""

    hottest: float
    even: float

    def note(self) -> str:
        return "share of the attention in one cell · one scale for the whole clip"


@dataclass(frozen=True, slots=True)
class _Overlay:
    """All that is shown: n pictures with their times, what was found, and the scale, None without attention."""

    pictures: list[Image.Image]
    times_s: tuple[float, ...]
    caption: str
    scale: _Scale | None

    def period_s(self) -> float:
        """The time each picture is shown: the sampled instants lie evenly, each in the middle of its share."""
        count = len(self.times_s)
        span = self.times_s[-1] - self.times_s[0]
        # 20 ms is the shortest time that viewers of GIFs keep to; a clip of one still has no span at all.
        return max(0.02, span / (count - 1)) if count > 1 else 1.0


def _scale(maps: Maps) -> _Scale:
    """One scale for the whole clip.

    Every map sums to 1, so that their values compare: scaled frame by frame, a map without any preference would glow
    like a sharp one. For the same reason the scale reaches at least four times the even share; and it ends at the
    99th percentile, lest one sharp frame leave the others dark.
    """
    even = 1 / math.prod(maps.shape[1:])
    return _Scale(hottest=max(float(np.percentile(maps, 99)), 4 * even), even=even)


# -- painting ----------------------------------------------------------------------------------------------------------


def _colours(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The colour of each value in 0..1, of shape (..., 3), in 0..255."""
    place = heat.clip(0, 1) * (len(INFERNO) - 1)
    before = np.minimum(place.astype(np.intp), len(INFERNO) - 2)
    share = (place - before)[..., None]
    return np.asarray(INFERNO[before] * (1 - share) + INFERNO[before + 1] * share, np.float32)


def _blend(frame: Frames, heat: Maps, scale: _Scale) -> Image.Image:
    """The frame under its attention: dimmed where the network did not look, glowing where it did."""
    grid = Image.fromarray(np.asarray(heat / scale.hottest, np.float32))
    smooth = np.asarray(grid.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BICUBIC)).clip(0, 1)
    opacity = (0.30 + 0.30 * smooth)[..., None]
    mixed = frame * (1 - opacity) + _colours(smooth) * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _wrap(text: str, width: int, size: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between items (two spaces) or, without any, at spaces."""
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
    """A strip that says what the colours mean: the bar with its numbers, and a note."""
    if scale is None:
        legend = Image.new("RGB", (width, 18), PAPER)
        ImageDraw.Draw(legend).text((0, 2), "no attention maps: this variant of the network has none", FAINT, _font(12))
        return legend
    note = _wrap(scale.note(), width, 12)
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
    """The body with the caption under it and the legend last, on even sides as video needs them."""
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
    """The pages of an animation: a picture with its number and time, the caption and the legend."""
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
    """All pictures in rows of eight with their times, as PNG."""
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
    # GIF counts in 10 ms: rounding the instants, not the lengths, keeps the whole as long as the clip.
    ticks = [round(100 * overlay.period_s() * number) for number in range(len(cards) + 1)]
    lengths = [10 * (after - before) for before, after in itertools.pairwise(ticks)]
    # One palette, dithered: 256 colours chosen card by card flicker, and without dithering the glow falls into rings.
    palette = _colour_strip(cards).quantize(256, Image.Quantize.MEDIANCUT)
    cards = [card.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for card in cards]
    file = io.BytesIO()
    cards[0].save(file, "GIF", save_all=True, append_images=cards[1:], duration=lengths, loop=0)
    return file.getvalue()


def _colour_strip(cards: list[Image.Image]) -> Image.Image:
    """Eight of the cards side by side: their colours stand for all."""
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


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside the target first: a full disk leaves what was there before, and no litter."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
