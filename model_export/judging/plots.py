"""Plots of results and of training, as PNG files."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Picture
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

from model_export.errors import ReportError
from model_export.judging.intervals import Floats
from model_export.judging.results import Results
from model_export.storing import store

# With more classes, a cell of the confusion matrix has no room for a number.
COUNTED_CLASSES = 30
# Matplotlib brings it along.
FONT = "DejaVu Sans"


def plot_confusion(result: Results, path: Path) -> None:
    """Draw the confusion matrix.

    Numbers are clips, left out if they do not fit. Shades are the square root of the share of the class's clips, so
    that rare confusions are visible. Characters that no font of this machine has are drawn as escapes.
    """
    classes = len(result.labels)
    counted = classes <= COUNTED_CLASSES
    side = classes * (0.4 if counted else 0.18)
    picture = Picture(figsize=(side, side))
    axes = picture.add_axes((0, 0, 1, 1))
    shares = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    labels, fonts = drawable(result.labels)
    # A $ in a class name does not begin a formula.
    axes.set_xticks(range(classes), labels, rotation=90, fontsize=8, fontfamily=fonts, parse_math=False)
    axes.set_yticks(range(classes), labels, fontsize=8, fontfamily=fonts, parse_math=False)
    axes.set(xlabel="predicted", ylabel="class", title=f"{result.contender}: {len(result.names)} clips")
    if counted:
        for (row, column), clips in np.ndenumerate(result.confusion):
            if clips:
                shade = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, str(clips), ha="center", va="center", color=shade, fontsize=8)
    # The matrix has a fixed size, and the picture becomes as large as its texts need, however long they are.
    _store(picture, path, bbox_inches="tight")


def drawable(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return texts with escapes for characters that no font of this machine has, and the fonts to draw them with."""
    texts = list(texts)
    missing = {character for text in texts for character in text if character.isprintable()}
    fonts = []
    regular = {font.name: font.fname for font in fontManager.ttflist if (font.style, font.weight) == ("normal", 400)}
    for name in sorted(regular, key=lambda name: (name != FONT, name)):
        # The last resort has a box for everything.
        if missing and not name.startswith("Last Resort") and (found := missing & _characters(regular[name])):
            missing -= found
            fonts.append(name)

    def escaped(character: str) -> str:
        known = character.isprintable() and character not in missing
        return character if known else character.encode("unicode_escape").decode()

    return ["".join(map(escaped, text)) for text in texts], fonts or [FONT]


def _characters(font: str) -> set[str]:
    """Return the characters of a font file; none if it is gone or damaged since Matplotlib listed it."""
    try:
        return set(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):
        return set()


def plot_history(log: Path, path: Path) -> None:
    """Draw cross-entropy and accuracy by epoch, of training and held-out clips.

    Both cross-entropies are plain: the loss that is minimised has label smoothing and penalties as well. Dropout, and
    that weights change during an epoch, still distinguish the training's curves from the others.

    Args:
        log: CSV file that ``fit_head`` wrote; it has no ``val_`` columns if nothing was held out.
        path: Path of the picture.

    Raises:
        ReportError: ``log`` is missing or is not such a file.
    """
    history = _read_history(log)
    picture = Picture(figsize=(10, 4), layout="constrained")
    plots = {"cross-entropy": ("cross_entropy", "val_loss"), "accuracy": ("accuracy", "val_accuracy")}
    curves = ("training, with dropout, during the epoch", "held out, after it")
    for axes, (title, columns) in zip(picture.subplots(1, 2), plots.items(), strict=True):
        for column, name in zip(columns, curves, strict=True):
            if column in history:
                axes.plot(history["epoch"], history[column], label=name)
        axes.set(xlabel="epoch", title=title)
        axes.legend()
    _store(picture, path)


def _store(picture: Picture, path: Path, **options: Any) -> None:
    content = io.BytesIO()
    picture.savefig(content, format=path.suffix[1:], dpi=120, **options)
    store(path, content.getvalue())


def _read_history(log: Path) -> dict[str, Floats]:
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise ReportError(f"{log} is not the log of a training ({error}); train again to get one") from error
    if missing := {"epoch", "cross_entropy", "accuracy"} - columns.keys():
        raise ReportError(f"{log} has no column {', '.join(sorted(missing))}; train again to get a complete log")
    return columns
