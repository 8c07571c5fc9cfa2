"""Plots of results and of training, as PNG files."""

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Picture

from model_export.errors import ReportError
from model_export.judging.intervals import Floats
from model_export.judging.results import Results
from model_export.storing import store

# With more classes, a cell of the confusion matrix has no room for a number.
COUNTED_CLASSES = 30


def plot_confusion(result: Results, path: Path) -> None:
    """Draw the confusion matrix.

    Numbers are clips, left out if they do not fit. Shades are the square root of the share of the class's clips, so
    that rare confusions are visible.
    """
    classes = len(result.labels)
    counted = classes <= COUNTED_CLASSES
    side = 3 + classes * (0.4 if counted else 0.18)
    picture = Picture(figsize=(side, side), layout="constrained")
    axes = picture.add_subplot()
    shares = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    # A $ in a class name does not begin a formula.
    axes.set_xticks(range(classes), result.labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(classes), result.labels, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="class", title=f"{result.contender}: {len(result.names)} clips")
    if counted:
        for (row, column), clips in np.ndenumerate(result.confusion):
            if clips:
                shade = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, str(clips), ha="center", va="center", color=shade, fontsize=8)
    _store(picture, path)


def plot_history(log: Path, path: Path) -> None:
    """Draw loss and accuracy by epoch, of training and held-out clips.

    Args:
        log: CSV file that ``fit_head`` wrote; it has no ``val_`` columns if nothing was held out.
        path: Path of the picture.

    Raises:
        ReportError: ``log`` is missing or is not such a file.
    """
    history = _read_history(log)
    picture = Picture(figsize=(10, 4), layout="constrained")
    for axes, metric in zip(picture.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for column, name in ((metric, "training"), (f"val_{metric}", "held out")):
            if column in history:
                axes.plot(history["epoch"], history[column], label=name)
        axes.set(xlabel="epoch", title=metric)
        axes.legend()
    _store(picture, path)


def _store(picture: Picture, path: Path) -> None:
    content = io.BytesIO()
    picture.savefig(content, dpi=120)
    store(path, content.getvalue())


def _read_history(log: Path) -> dict[str, Floats]:
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise ReportError(f"{log} is not the log of a training ({error}); train again to get one") from error
    if missing := {"epoch", "loss", "accuracy"} - columns.keys():
        raise ReportError(f"{log} has no column {', '.join(sorted(missing))}; train again to get a complete log")
    return columns
