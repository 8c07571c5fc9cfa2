import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model_export.evaluation import Results, compare
from model_export.report import (
    DataFacts,
    Experiment,
    ReportError,
    Run,
    Section,
    plot_confusion,
    plot_history,
    write_report,
)

# Matplotlib's second colour.
ORANGE = np.array([255, 127, 14])
RUN = Run(
    command="limelight-model evaluate videos --k-fold 2",
    started=dt.datetime(2026, 11, 22, 21, 5, tzinfo=dt.UTC),
    seed=7,
    settings={"encoder": "VGG19, ImageNet"},
)
DATA = DataFacts("UCF-101", clips=8, classes=2, groups=4)


def results(contender: str, predicted: Sequence[int], *, folds: Sequence[int] = (0, 0, 0, 0, 1, 1, 1, 1)) -> Results:
    """Eight clips of four videos, four of each class."""
    return Results(
        contender=contender,
        recipe=f"{contender}'s recipe",
        labels=("PullUps", "Surf|ing"),
        names=tuple(f"clip-{i}" for i in range(8)),
        groups=("a", "a", "b", "b", "c", "c", "d", "d"),
        truth=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        probabilities=np.eye(2)[list(predicted)],
        folds=np.array(folds),
        leaked=np.zeros(8, bool),
    )


# Accuracies 1 and 3/4 in the two folds; 1/2 and 1/2.
ATTENTION = results("attention", [0, 0, 1, 1, 0, 0, 1, 0])
BASELINE = results("plain LSTM", [0, 0, 0, 0, 0, 0, 0, 0])
GROUPED = Experiment("2 grouped folds", "grouped", (ATTENTION, BASELINE))


def write(folder: Path, *experiments: Experiment, data: DataFacts = DATA, sections: Sequence[Section] = ()) -> str:
    return write_report(folder, RUN, data, experiments, sections).read_text()


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def pixels(path: Path) -> npt.NDArray[np.int64]:
    """Red, green and blue, ``(height, width, 3)``."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins so."""
    found = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert found, f"no row {first} in\n{text}"
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_folds_are_told_in_the_form_of_table_3(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert "| method | accuracy | average precision | average recall |" in text
    accuracy, precision, recall = row(text, "attention")[1:]
    assert accuracy.startswith("87.5 ± 17.7 (")
    assert precision.startswith("91.7 ± 11.8 ("), "of (1 + 1) / 2 and (2/3 + 1) / 2"
    assert recall.startswith("87.5 ± 17.7 (")
    assert row(text, "plain LSTM")[2].startswith("25.0 ± 0.0 ("), "a class that is never named has precision 0"
    assert "the paper's Table 3" in text


def test_an_official_split_is_told_in_the_form_of_table_4(tmp_path: Path) -> None:
    one_fold = results("attention", [0, 0, 1, 1, 0, 0, 1, 0], folds=[0] * 8)
    text = write(tmp_path, Experiment("split 1", "official", (one_fold,)))
    assert row(text, "attention")[1].startswith("87.5 (")
    assert "±" not in text
    assert "the paper's Table 4" in text


def test_grouped_and_random_folds_stand_side_by_side(tmp_path: Path) -> None:
    leaking = replace(results("attention", [0, 0, 1, 1, 0, 0, 1, 1]), leaked=np.array([True] * 6 + [False] * 2))
    text = write(tmp_path, GROUPED, Experiment("2 random folds", "random", (leaking,)))
    assert row(text, "method")[1:] == ["2 grouped folds", "2 random folds"]
    assert row(text, "attention") == ["attention", "87.5", "100.0"]
    assert row(text, "plain LSTM") == ["plain LSTM", "50.0", "–"]
    assert "on others of their video: 0 of 8" in text
    assert "on others of their video: 6 of 8" in text
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "confusion-2.png").exists()


def test_the_first_is_compared_with_the_others(tmp_path: Path) -> None:
    against, difference, interval, only_first, only_second, p = row(
        write(tmp_path, GROUPED).split("against the others")[1], "plain LSTM"
    )
    assert (against, difference, only_first, only_second) == ("plain LSTM", "+37.5", "3", "0")
    assert p == "0.250", "two-sided: three of three"
    found = compare(ATTENTION, BASELINE)
    assert interval == f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def test_every_figure_says_how_it_came_about(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    for fact in (RUN.command, "2026-11-22 21:05 UTC", "Seed: 7", "encoder: VGG19, ImageNet", "attention's recipe"):
        assert fact in text


def test_classes_confusions_and_picture_are_those_of_the_first(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert row(text, "PullUps") == ["PullUps", "4", "80.0", "100.0"]
    assert r"| Surf\|ing | PullUps | 1 |" in text, "a bar in a name ends no cell"
    assert "![Confusion matrix of attention](confusion.png)" in text


def test_where_nothing_was_confused_it_says_so(tmp_path: Path) -> None:
    perfect = results("attention", [0, 0, 1, 1, 0, 0, 1, 1])
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (perfect,)))
    assert "No clip was taken for another class." in text
    assert "taken for |" not in text


def test_clips_that_were_left_out_are_counted_and_named(tmp_path: Path) -> None:
    extra = tuple(f"PullUps/extra-{i}.avi" for i in range(25))
    data = replace(DATA, missing=("PullUps/gone",), extra=extra, undecodable=("PullUps/broken.avi",))
    text = write(tmp_path, GROUPED, data=data)
    assert row(text, "8") == ["8", "2", "4", "1", "25", "1"]
    assert "Missing: `PullUps/gone`." in text
    assert "Undecodable: `PullUps/broken.avi`." in text
    assert "`PullUps/extra-19.avi` and 5 more, in `report.json`." in text
    assert strict(tmp_path / "report.json")["data"]["extra"] == list(extra)


def test_sections_of_others_are_taken_in(tmp_path: Path) -> None:
    section = Section("Attention quality", ["Drop: 3 points."], {"drop": np.float32(0.5), "maps": np.ones((1, 2))})
    assert "## Attention quality\n\nDrop: 3 points.\n" in write(tmp_path, GROUPED, sections=[section])
    assert strict(tmp_path / "report.json")["sections"] == {"Attention quality": {"drop": 0.5, "maps": [[1, 1]]}}


def test_json_holds_the_same_and_more(tmp_path: Path) -> None:
    write(tmp_path, GROUPED)
    found = strict(tmp_path / "report.json")
    assert found["run"] == {
        "command": RUN.command,
        "started": "2026-11-22T21:05:00+00:00",
        "seed": 7,
        "settings": {"encoder": "VGG19, ImageNet"},
    }
    experiment = found["experiments"][0]
    assert (experiment["folds"], experiment["clips"], experiment["clips_with_video_in_training"]) == (2, 8, 0)
    attention = experiment["methods"][0]
    assert attention["accuracy"]["value"] == 0.875
    assert attention["per_fold"]["accuracy"] == [1, 0.75]
    assert attention["confusion"] == [[4, 0], [1, 3]]
    assert attention["confused_pairs"] == [{"truth": "Surf|ing", "predicted": "PullUps", "clips": 1}]
    assert experiment["comparisons"][0]["only_first"] == 3


def test_json_has_null_for_what_is_not_a_number(tmp_path: Path) -> None:
    write(
        tmp_path,
        GROUPED,
        sections=[Section("S", [], {"a": float("nan"), "b": [np.float64("inf")], "c": np.array([np.nan])})],
    )
    assert strict(tmp_path / "report.json")["sections"]["S"] == {"a": None, "b": [None], "c": [None]}


class TestPictures:
    @pytest.mark.parametrize("classes", [2, 13, 101])
    def test_every_class_has_room_in_the_confusion_matrix(self, tmp_path: Path, classes: int) -> None:
        path = tmp_path / "confusion.png"
        truth = np.arange(classes)
        many = replace(
            ATTENTION,
            labels=tuple(f"Class of $ {i}" for i in range(classes)),
            truth=truth,
            probabilities=np.eye(classes),
            names=tuple(map(str, truth)),
        )
        plot_confusion(many, path)
        height, width = pixels(path).shape[:2]
        assert min(width, height) / classes > 20, "pixels, of which letters need ten"
        assert max(width, height) < 3000

    def test_is_drawn_where_the_clips_are(self, tmp_path: Path) -> None:
        """All clips of the second class are taken for the first: the lower left quarter is dark, the others are not."""
        path = tmp_path / "confusion.png"
        plot_confusion(results("x", [0] * 8), path)
        blue = (pixels(path)[..., 2] - pixels(path)[..., 0]) > 40
        rows, columns = np.nonzero(blue)
        assert columns.max() - columns.min() < 0.7 * (rows.max() - rows.min()), "a column two cells high"

    def history(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "seed-0.csv"
        path.write_text(text)
        return path

    def test_history_with_and_without_held_out_clips(self, tmp_path: Path) -> None:
        whole = (
            "epoch,learning_rate,loss,accuracy,val_loss,val_accuracy\n1,0.1,2.5,0.1,2.4,0.2\n2,0.1,1.5,0.5,1.9,0.4\n"
        )
        plot_history(self.history(tmp_path, whole), tmp_path / "whole.png")
        plot_history(self.history(tmp_path, "epoch,loss,accuracy\n1,2.5,0.1\n2,1.5,0.5\n"), tmp_path / "bare.png")
        drawn, bare = (
            (np.abs(pixels(tmp_path / name) - ORANGE).sum(axis=-1) < 60).sum() for name in ("whole.png", "bare.png")
        )
        assert drawn > 100, "the second curve"
        assert bare == 0

    @pytest.mark.parametrize(
        "text", ["", "epoch,loss,accuracy\n", "epoch,loss,accuracy\n1,high,0.5\n", "epoch,loss,accuracy\n1\n"]
    )
    def test_what_is_no_log_is_named(self, tmp_path: Path, text: str) -> None:
        path = self.history(tmp_path, text)
        with pytest.raises(ReportError, match=rf"^{path} is not the CSV log of a training"):
            plot_history(path, tmp_path / "history.png")

    def test_a_missing_log_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ReportError, match=r"gone\.csv is not the CSV log"):
            plot_history(tmp_path / "gone.csv", tmp_path / "history.png")

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ReportError, match="has no column accuracy;"):
            plot_history(self.history(tmp_path, "epoch,loss\n1,2.5\n"), tmp_path / "history.png")
