"""Draws the places of rendered clips: a gym, a living room and a garden."""

from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Image32 = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

FABRICS = ((196, 44, 40), (236, 96, 60), (44, 92, 168), (36, 132, 150), (230, 230, 226), (40, 42, 50), (112, 60, 130))
COMPLEXIONS = ((236, 196, 170), (222, 176, 144), (196, 146, 112), (150, 104, 76), (104, 70, 52))


def noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Image32:
    """Return smooth noise from 0 to 1 of ``shape`` (rows, columns), with about ``cells`` bumps down and across."""
    coarse = Image.fromarray(rng.random((cells[0] + 1, cells[1] + 1), dtype=np.float32))
    smooth = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)
    return smooth.clip(0, 1)


def _texture(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Image32:
    """Return noise from 0 to 1 that adds up four scales, each half as strong as the next coarser one."""
    total = np.zeros(shape, np.float32)
    for octave in range(4):
        total += noise(shape, (cells[0] << octave, cells[1] << octave), rng) * np.float32(0.5**octave / 1.875)
    return total


def scenery(drawn: tuple[int, int], rng: np.random.Generator) -> Image32:
    """Draw a random place.

    Args:
        drawn: Width and height in pixels.
        rng: Selects the place, its colours and its furniture.

    Returns:
        float32 ``(height, width, 3)``, from 0 to 255.
    """
    places = (_gym, _room, _garden)
    # Drawn at twice the size, so that shrinking it smooths the edges of Pillow's shapes.
    double = Image.new("RGB", (2 * drawn[0], 2 * drawn[1]))
    picture = places[rng.integers(len(places))](double, rng)
    small = picture.filter(ImageFilter.GaussianBlur(drawn[1] / 200)).resize(drawn, Image.Resampling.BOX)
    x = np.linspace(-1, 1, drawn[0], dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, drawn[1], dtype=np.float32)[:, None]
    vignette = 1.04 - 0.14 * (x**2 + y**2)
    grain = rng.normal(0, 2.5, (drawn[1], drawn[0], 1)).astype(np.float32)
    return np.clip(np.asarray(small, np.float32) * vignette[..., None] + grain, 0, 255)


class _Brush:
    """Draws Pillow's shapes at coordinates that are fractions of the picture's size."""

    def __init__(self, picture: Image.Image) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._size = picture.size

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, edge: Colour | None = None) -> None:
        line = max(2, self._size[1] // 90)
        self._draw.rectangle(self._pixels((x0, y0), (x1, y1)), fill=colour, outline=edge, width=line)

    def polygon(self, *points: tuple[float, float], colour: Colour) -> None:
        self._draw.polygon(self._pixels(*points), fill=colour)

    def ball(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a lit ball. The radius is a fraction of the height."""
        for step in range(8):
            grow = radius * (1 - step / 9)
            glow = 0.62 + 0.07 * step
            wide = grow * self._size[1] / self._size[0]
            at_x, at_y = x - 0.25 * (radius - grow), y - 0.4 * (radius - grow)
            lit = cast(Colour, tuple(min(255, int(glow * channel)) for channel in colour))
            self._draw.ellipse(self._pixels((at_x - wide, at_y - grow), (at_x + wide, at_y + grow)), fill=lit)

    def _pixels(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * self._size[0], y * self._size[1]) for x, y in points]


def _shaded(picture: Image.Image, texture: Image32, top: float, bottom: float) -> Image.Image:
    """Multiply the rows between two heights, fractions from the top, by a texture with values around 1."""
    pixels = np.asarray(picture).astype(np.float32)
    first, last = int(top * picture.height), int(bottom * picture.height)
    pixels[first:last] *= texture[first:last, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _tint(colour: Colour, rng: np.random.Generator) -> Colour:
    return cast(Colour, tuple(int(np.clip(channel + rng.uniform(-14, 14), 0, 255)) for channel in colour))


def _pick(palette: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return _tint(palette[rng.integers(len(palette))], rng)


def _gym(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a pale wall with posters and a window, a rack of balls, weights, and a shiny dark rubber floor."""
    brush, shape = _Brush(picture), (picture.height, picture.width)
    floor = rng.uniform(0.66, 0.74)
    brush.box(0, 0, 1, floor, _pick(((206, 204, 196), (190, 200, 206), (214, 206, 190)), rng))
    brush.box(0, floor, 1, 1, _pick(((72, 76, 80), (64, 72, 92), (96, 90, 84)), rng))
    brush.box(0, floor - 0.025, 1, floor, (66, 64, 62))
    left = rng.uniform(0.02, 0.12)
    for pane in range(2):
        x = left + pane * 0.13
        brush.box(x, 0.08, x + 0.12, 0.36, (228, 236, 240), (120, 118, 112))
    for poster in range(2):
        x, y = 0.56 + 0.22 * poster + rng.uniform(0, 0.06), rng.uniform(0.06, 0.18)
        brush.box(x, y, x + 0.1, y + 0.2, _pick(FABRICS, rng), (240, 240, 236))
        brush.box(x + 0.02, y + 0.05, x + 0.08, y + 0.11, _pick(COMPLEXIONS, rng))
    shelf = rng.uniform(0.68, 0.74)
    for level in range(2):
        y = floor - 0.02 - 0.14 * level
        brush.box(shelf, y - 0.012, 1, y, (52, 52, 56))
        for ball in range(4):
            brush.ball(shelf + 0.045 + 0.085 * ball, y - 0.064, 0.052, _pick(FABRICS, rng))
    for weight in range(5):
        x = 0.03 + 0.055 * weight
        brush.box(x, floor - 0.075, x + 0.045, floor - 0.01, (40, 40, 44), (82, 82, 86))
    sheen = 0.9 + 0.2 * _texture(shape, (3, 4), rng) + 0.25 * noise(shape, (2, 3), rng)
    wall = 0.94 + 0.12 * _texture(shape, (3, 4), rng)
    return _shaded(_shaded(picture, wall, 0, floor), sheen, floor, 1)


def _room(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a painted wall with a picture and a curtained window, a sofa and a wooden floor."""
    brush, shape = _Brush(picture), (picture.height, picture.width)
    floor = rng.uniform(0.68, 0.76)
    brush.box(0, 0, 1, floor, _pick(((200, 180, 150), (186, 190, 176), (208, 200, 188), (176, 160, 150)), rng))
    wood = _pick(((140, 96, 60), (168, 128, 88), (112, 78, 54)), rng)
    brush.box(0, floor, 1, 1, wood)
    for plank in range(17):
        far = plank / 16
        near = 0.5 + (far - 0.5) * 2.4
        shade = rng.uniform(0.86, 1.1)
        tone = cast(Colour, tuple(min(255, int(channel * shade)) for channel in wood))
        brush.polygon((far, floor), (far + 1 / 16, floor), (near + 0.15, 1), (near, 1), colour=tone)
    brush.box(0, floor - 0.035, 1, floor, (226, 220, 208))
    window = rng.uniform(0.04, 0.14)
    brush.box(window, 0.08, window + 0.2, 0.46, (224, 232, 238), (240, 238, 232))
    brush.box(window + 0.097, 0.08, window + 0.103, 0.46, (240, 238, 232))
    curtain = _pick(FABRICS, rng)
    brush.box(window - 0.04, 0.04, window + 0.02, 0.56, curtain)
    brush.box(window + 0.18, 0.04, window + 0.24, 0.56, curtain)
    frame = rng.uniform(0.62, 0.74)
    meadow = _pick(((96, 120, 104), (150, 130, 96), (88, 104, 140)), rng)
    brush.box(frame, 0.1, frame + 0.18, 0.34, meadow, (74, 54, 38))
    brush.polygon((frame + 0.02, 0.31), (frame + 0.09, 0.18), (frame + 0.16, 0.31), colour=(206, 196, 168))
    sofa = _pick(((96, 84, 78), (122, 60, 54), (74, 88, 108), (150, 140, 124)), rng)
    seat = cast(Colour, tuple(int(channel * 0.82) for channel in sofa))
    brush.box(0.66, floor - 0.24, 1, floor + 0.03, sofa)
    brush.box(0.64, floor - 0.1, 1, floor + 0.06, seat)
    brush.box(0.62, floor - 0.16, 0.68, floor + 0.06, sofa)
    wall = 0.92 + 0.16 * _texture(shape, (3, 4), rng)
    grain = 0.85 + 0.3 * _texture(shape, (40, 6), rng)
    return _shaded(_shaded(picture, wall, 0, floor), grain, floor, 1)


def _garden(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw the sky, a line of trees and a lawn, sometimes with a path."""
    shape = (picture.height, picture.width)
    horizon = rng.uniform(0.58, 0.68)
    brush = _Brush(picture)
    brush.box(0, horizon, 1, 1, _pick(((104, 138, 62), (122, 142, 74), (84, 122, 58)), rng))
    if rng.random() < 0.5:
        near = rng.uniform(0.1, 0.4)
        brush.polygon((0.45, horizon), (0.55, horizon), (near + 0.6, 1), (near, 1), colour=(186, 176, 158))
    pixels = np.asarray(picture).astype(np.float32)
    row = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    cloud = _texture(shape, (4, 4), rng)[..., None]
    sky = np.array([96, 152, 214], np.float32) + np.array([90, 64, 30], np.float32) * (0.9 * row + 0.7 * cloud)
    leaf = np.array(_pick(((66, 96, 42), (56, 84, 48), (88, 104, 52)), rng), np.float32)
    leaves = _texture(shape, (18, 26), rng)[..., None]
    crowns = noise(shape, (3, 9), rng)[..., None]
    foliage = leaf * np.clip(0.95 + 2.2 * (leaves - 0.5) + 0.9 * (crowns - 0.5), 0.4, 1.9)
    top = rng.uniform(0.1, 0.3) + 0.3 * (_texture((1, shape[1]), (1, 5), rng)[..., None] - 0.5)
    trees = row + 0.16 * (leaves - 0.5) > top
    above = row < horizon
    pixels = np.where(above & trees, foliage, np.where(above, sky, pixels))
    # Blades of grass look shorter towards the horizon, hence the fine, flat noise.
    lawn = 0.7 + 0.6 * _texture(shape, (60, 40), rng)
    shade = 0.75 + 0.4 * noise(shape, (6, 4), rng)
    return _shaded(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), lawn * shade, horizon, 1)
