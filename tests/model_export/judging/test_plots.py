"""Plots of results and of training."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib import rc_context
from PIL import Image

from model_export.errors import ReportError
from model_export.judging.plots import plot_confusion, plot_history
from tests.model_export.judging.eight_clips import results

# Matplotlib's second colour.
ORANGE = np.array([255, 127, 14])


def pixels(path: Path) -> npt.NDArray[np.int64]:
    """Red, green and blue, ``(height, width, 3)``."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize("classes", [2, 13, 101])
def test_every_class_has_room_in_the_confusion_matrix(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "confusion.png"
    truth = np.arange(classes)
    many = replace(
        results("attention", [0] * 8),
        labels=tuple(f"Class of $ {i}" for i in range(classes)),
        truth=truth,
        probabilities=np.eye(classes),
        names=tuple(map(str, truth)),
    )
    plot_confusion(many, path)
    height, width = pixels(path).shape[:2]
    assert min(width, height) / classes > 20, "pixels, of which letters need ten"
    assert max(width, height) < 3000


def test_the_confusion_matrix_shows_predictions_in_columns(tmp_path: Path) -> None:
    """All clips of the second class are taken for the first: the lower left quarter is dark, the others are not."""
    path = tmp_path / "confusion.png"
    plot_confusion(results("x", [0] * 8), path)
    blue = (pixels(path)[..., 2] - pixels(path)[..., 0]) > 40
    rows, columns = np.nonzero(blue)
    assert columns.max() - columns.min() < 0.7 * (rows.max() - rows.min()), "a column two cells high"


def test_shades_are_shares_of_the_classs_own_clips(tmp_path: Path) -> None:
    """Half of each class is confused, of six clips and of two: all four cells have one shade."""
    path = tmp_path / "confusion.png"
    unequal = replace(results("x", [0, 0, 0, 1, 1, 1, 0, 1]), truth=np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    plot_confusion(unequal, path)
    found = pixels(path)
    shades, counts = np.unique(found[found.min(axis=2) < 250], axis=0, return_counts=True)
    rows, columns = np.nonzero((found == shades[counts.argmax()]).all(axis=2))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height - width) <= 2, "the shade is in both rows and in both columns"
    assert len(rows) > 0.9 * height * width, "of which it leaves only the numbers"


def test_cells_hold_their_numbers_and_names_are_no_formulas(tmp_path: Path) -> None:
    path = tmp_path / "confusion.svg"
    named = replace(results("x", [0, 0, 1, 0, 0, 1, 1, 1]), labels=("a $x$ b", "PullUps"))
    with rc_context({"svg.fonttype": "none"}):
        plot_confusion(named, path)
    texts = [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a $x$ b") == texts.count("PullUps") == 2, "rows and columns"
    assert sorted(text for text in texts if text and text.isdigit()) == ["1", "1", "3", "3"]


def history(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "seed-0.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_held_out_curve_is_drawn_only_if_clips_were_held_out(tmp_path: Path) -> None:
    whole = "epoch,learning_rate,loss,accuracy,val_loss,val_accuracy\n1,0.1,2.5,0.1,2.4,0.2\n2,0.1,1.5,0.5,1.9,0.4\n"
    plot_history(history(tmp_path, whole), tmp_path / "whole.png")
    plot_history(history(tmp_path, "epoch,loss,accuracy\n1,2.5,0.1\n2,1.5,0.5\n"), tmp_path / "bare.png")
    drawn, bare = (
        (np.abs(pixels(tmp_path / name) - ORANGE).sum(axis=-1) < 60).sum() for name in ("whole.png", "bare.png")
    )
    assert drawn > 100, "the second curve"
    assert bare == 0


@pytest.mark.parametrize(
    "text", ["", "epoch,loss,accuracy\n", "epoch,loss,accuracy\n1,high,0.5\n", "epoch,loss,accuracy\n1\n"]
)
def test_a_file_that_is_not_a_log_is_named(tmp_path: Path, text: str) -> None:
    path = history(tmp_path, text)
    with pytest.raises(ReportError, match=rf"^{path} is not the log of a training"):
        plot_history(path, tmp_path / "history.png")


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"gone\.csv is not the log"):
        plot_history(tmp_path / "gone.csv", tmp_path / "history.png")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="has no column accuracy;"):
        plot_history(history(tmp_path, "epoch,loss\n1,2.5\n"), tmp_path / "history.png")
