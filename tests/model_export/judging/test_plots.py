"""Plots of results and of training."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.transforms import Bbox
from PIL import Image

from model_export.errors import ReportError
from model_export.judging.plots import drawable, plot_confusion, plot_history
from model_export.judging.results import Results
from tests.model_export.judging.eight_clips import results

# Matplotlib's second colour.
ORANGE = np.array([255, 127, 14])


def pixels(path: Path) -> npt.NDArray[np.int64]:
    """Red, green and blue, ``(height, width, 3)``."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def named(*labels: str) -> Results:
    truth = np.arange(len(labels))
    return replace(
        results("attention", [0] * 8),
        labels=labels,
        truth=truth,
        probabilities=np.eye(len(labels)),
        names=tuple(map(str, truth)),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """The pictures that are saved."""
    saved: list[Picture] = []
    save = Picture.savefig

    def record(self: Picture, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Picture, "savefig", record)
    return saved


NAMES = {
    "long": ("Playing the violin while walking up and down the stairs of a very tall building" * 2, "Diving"),
    "CJK": ("广播体操", "ラジオ体操", "라디오"),
    "emoji": ("surf 🏄🏽\u200d♀️", "dive"),
    "another font": ("\N{LATIN SMALL LETTER D WITH PALATAL HOOK}", "d"),
    "right to left": ("קפיצה", "السباحة"),
    "no text": ("a\nb", "tab\there", "\udc80", "\u202egnp"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_name_is_within_the_picture_and_no_character_is_a_box(
    tmp_path: Path, drawn: list[Picture], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A missing glyph is a warning of Matplotlib's, which fails any test."""
    path = tmp_path / "confusion.png"
    plot_confusion(named(*NAMES[kind]), path)
    assert not caplog.records, "fonts that cannot be found are logged"
    (picture,) = drawn
    (axes,) = picture.axes
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title, axes.xaxis.label, axes.yaxis.label]
    boxes = [text.get_window_extent(dpi=120) for text in texts]
    assert min(min(box.width, box.height) for box in boxes) > 5
    union = Bbox.union(boxes)
    found = pixels(path)
    assert found.shape[0] > union.height
    assert found.shape[1] > union.width
    edge = np.concatenate([found[:3].reshape(-1, 3), found[-3:].reshape(-1, 3), *found[:, [0, 1, -2, -1]]])
    assert (edge == 255).all(), "something was cut off"


def test_characters_are_drawn_in_a_font_that_has_them_and_else_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Matplotlib's own fonts, STIX has a letter that DejaVu does not have, and none has ideographs."""
    own = [font for font in fontManager.ttflist if "mpl-data" in Path(font.fname).parts]
    gone = FontEntry(fname=str(tmp_path / "gone.ttf"), name="Gone", style="normal", weight=400)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    damaged = FontEntry(fname=str(tmp_path / "damaged.ttf"), name="Damaged", style="normal", weight=400)
    monkeypatch.setattr(fontManager, "ttflist", [gone, damaged, *own])
    texts, fonts = drawable(["Diving", "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}d", "走る\n"])
    assert texts == ["Diving", "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}d", r"\u8d70\u308b\n"]
    assert fonts == ["DejaVu Sans", "STIXGeneral"]


@pytest.mark.parametrize("classes", [2, 13, 101])
def test_every_class_has_room_in_the_confusion_matrix(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "confusion.png"
    plot_confusion(named(*(f"Class of $ {i}" for i in range(classes))), path)
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
    formula = replace(results("x", [0, 0, 1, 0, 0, 1, 1, 1]), labels=("a $x$ b", "PullUps"))
    with rc_context({"svg.fonttype": "none"}):
        plot_confusion(formula, path)
    texts = [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a $x$ b") == texts.count("PullUps") == 2, "rows and columns"
    assert sorted(text for text in texts if text and text.isdigit()) == ["1", "1", "3", "3"]


LOG = (
    "epoch,learning_rate,loss,cross_entropy,accuracy,val_loss,val_accuracy\n"
    "1,0.1,9.5,2.5,0.1,2.4,0.2\n"
    "2,0.1,8.5,1.5,0.5,1.9,0.4\n"
)


def history(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "seed-0.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_held_out_curve_is_drawn_only_if_clips_were_held_out(tmp_path: Path) -> None:
    plot_history(history(tmp_path, LOG), tmp_path / "whole.png")
    plot_history(history(tmp_path, "epoch,cross_entropy,accuracy\n1,2.5,0.1\n2,1.5,0.5\n"), tmp_path / "bare.png")
    drawn, bare = (
        (np.abs(pixels(tmp_path / name) - ORANGE).sum(axis=-1) < 60).sum() for name in ("whole.png", "bare.png")
    )
    assert drawn > 100, "the second curve"
    assert bare == 0


@pytest.mark.parametrize(
    "text", ["", LOG[: LOG.index("1,")], "epoch,cross_entropy,accuracy\n1,high,0.5\n", "epoch,loss,accuracy\n1\n"]
)
def test_a_file_that_is_not_a_log_is_named(tmp_path: Path, text: str) -> None:
    path = history(tmp_path, text)
    with pytest.raises(ReportError, match=rf"^{path} is not the log of a training"):
        plot_history(path, tmp_path / "history.png")


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"gone\.csv is not the log"):
        plot_history(tmp_path / "gone.csv", tmp_path / "history.png")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """As in the log of an earlier version, whose losses cannot be compared."""
    with pytest.raises(ReportError, match="has no column cross_entropy;"):
        plot_history(history(tmp_path, "epoch,loss,accuracy\n1,2.5,0.1\n"), tmp_path / "history.png")
