"""The report of an evaluation."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.errors import ReportError
from model_export.judging.report import DataFacts, Experiment, RunFacts, Section, read_accuracy, write_report
from model_export.judging.results import compare
from tests.model_export.judging.eight_clips import results

RUN = RunFacts(
    command="limelight-model evaluate videos --k-fold 2",
    started=dt.datetime(2026, 11, 22, 21, 5, tzinfo=dt.UTC),
    seed=7,
    settings={"encoder": "VGG19, ImageNet"},
)
DATA = DataFacts("UCF-101", clips=8, classes=2, groups=4)


# Accuracies 1 and 3/4 in the two folds; 1/2 and 1/2.
ATTENTION = results("attention", [0, 0, 1, 1, 0, 0, 1, 0])
BASELINE = results("plain LSTM", [0, 0, 0, 0, 0, 0, 0, 0])
GROUPED = Experiment("2 grouped folds", "grouped", (ATTENTION, BASELINE))


def write(folder: Path, *experiments: Experiment, data: DataFacts = DATA, sections: Sequence[Section] = ()) -> str:
    return write_report(folder, RUN, data, experiments, sections).read_text(encoding="utf-8")


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins so."""
    found = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert found, f"no row {first} in\n{text}"
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_folds_are_reported_in_the_form_of_table_3(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert "| method | accuracy | average precision | average recall |" in text
    accuracy, precision, recall = row(text, "attention")[1:]
    assert accuracy.startswith("87.5 ± 17.7 (")
    assert precision.startswith("91.7 ± 11.8 ("), "of (1 + 1) / 2 and (2/3 + 1) / 2"
    assert recall.startswith("87.5 ± 17.7 (")
    assert row(text, "plain LSTM")[2].startswith("25.0 ± 0.0 ("), "a class that is never named has precision 0"
    assert "the paper's Table 3" in text


def test_an_official_split_is_reported_in_the_form_of_table_4(tmp_path: Path) -> None:
    one_fold = results("attention", [0, 0, 1, 1, 0, 0, 1, 0], folds=[0] * 8)
    text = write(tmp_path, Experiment("split 1", "official", (one_fold,)))
    assert row(text, "attention")[1].startswith("87.5 (")
    assert "±" not in text
    assert "the paper's Table 4" in text


def test_accuracy_of_grouped_and_random_folds_is_compared(tmp_path: Path) -> None:
    leaking = replace(results("attention", [0, 0, 1, 1, 0, 0, 1, 1]), leaked=np.array([True] * 6 + [False] * 2))
    text = write(tmp_path, GROUPED, Experiment("2 random folds", "random", (leaking,)))
    assert row(text, "method")[1:] == ["2 grouped folds", "2 random folds"]
    assert row(text, "attention") == ["attention", "87.5", "100.0"]
    assert row(text, "plain LSTM") == ["plain LSTM", "50.0", "–"]
    assert "on other clips of their video: 0 of 8" in text
    assert "on other clips of their video: 6 of 8" in text
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "confusion-2.png").exists()


def test_the_first_method_is_compared_with_the_others(tmp_path: Path) -> None:
    against, difference, interval, only_first, only_second, p = row(
        write(tmp_path, GROUPED).split("against the others")[1], "plain LSTM"
    )
    assert (against, difference, only_first, only_second) == ("plain LSTM", "+37.5", "3", "0")
    assert p == "0.250", "two-sided: three of three"
    found = compare(ATTENTION, BASELINE)
    assert interval == f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def test_the_report_says_how_its_figures_were_obtained(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    for fact in (RUN.command, "2026-11-22 21:05 UTC", "Seed: 7", "encoder: VGG19, ImageNet", "attention's recipe"):
        assert fact in text


def test_classes_confusions_and_picture_are_those_of_the_first_method(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert row(text, "PullUps") == ["PullUps", "4", "80.0", "100.0"]
    assert r"| Surf\|ing | PullUps | 1 |" in text, "a bar in a name ends no cell"
    assert "![Confusion matrix of attention](confusion.png)" in text


def test_the_report_says_that_nothing_was_confused(tmp_path: Path) -> None:
    perfect = results("attention", [0, 0, 1, 1, 0, 0, 1, 1])
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (perfect,)))
    assert "No clip was predicted as another class." in text
    assert "predicted as |" not in text


def test_clips_that_were_left_out_are_counted_and_named(tmp_path: Path) -> None:
    extra = tuple(f"PullUps/extra-{i}.avi" for i in range(25))
    data = replace(
        DATA, unused=("PullUps/idle.avi",), missing=("PullUps/gone",), extra=extra, undecodable=("PullUps/broken.avi",)
    )
    text = write(tmp_path, GROUPED, data=data)
    assert row(text, "8") == ["8", "2", "4", "1", "1", "25", "1"]
    assert "Unused: `PullUps/idle.avi`." in text
    assert "Missing: `PullUps/gone`." in text
    assert "Undecodable: `PullUps/broken.avi`." in text
    assert "`PullUps/extra-19.avi` and 5 more, in `report.json`." in text
    assert strict(tmp_path / "report.json")["data"]["extra"] == list(extra)


def test_further_sections_are_included(tmp_path: Path) -> None:
    section = Section("Attention quality", ["Drop: 3 points."], {"drop": np.float32(0.5), "maps": np.ones((1, 2))})
    assert "## Attention quality\n\nDrop: 3 points.\n" in write(tmp_path, GROUPED, sections=[section])
    assert strict(tmp_path / "report.json")["sections"] == {"Attention quality": {"drop": 0.5, "maps": [[1, 1]]}}


def test_json_has_the_figures_of_the_report(tmp_path: Path) -> None:
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


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    write(
        tmp_path,
        GROUPED,
        sections=[Section("S", [], {"a": float("nan"), "b": [np.float64("inf")], "c": np.array([np.nan])})],
    )
    assert strict(tmp_path / "report.json")["sections"]["S"] == {"a": None, "b": [None], "c": [None]}


class TestReadAccuracy:
    @pytest.fixture
    def report(self, tmp_path: Path) -> Path:
        """The parts of ``report.json`` that are read: two recipes under two protocols."""

        def method(recipe: str, value: float, deviation: float | None) -> dict[str, object]:
            accuracy = {"value": value, "low": 0.5, "high": 1.0, "mean": value, "deviation": deviation}
            return {"name": "attention", "recipe": recipe, "labels": ["squats", "waving"], "accuracy": accuracy}

        experiments = [
            {"name": name, "clips": clips, "methods": [method("seed=0", value, deviation), method("seed=1", 0.1, 0.1)]}
            for name, clips, value, deviation in (("4 grouped folds", 24, 0.912345, 0.02), ("split 1", 8, 0.8, None))
        ]
        (tmp_path / "report.json").write_text(json.dumps({"experiments": experiments}), encoding="utf-8")
        return tmp_path

    def test_accuracy_of_the_recipe_is_read_by_protocol(self, report: Path) -> None:
        facts = read_accuracy(report, "seed=0", ("squats", "waving"))
        assert facts["4 grouped folds"] == {
            "clips": 24,
            "value": 0.9123,
            "low": 0.5,
            "high": 1.0,
            "mean": 0.9123,
            "deviation": 0.02,
        }
        assert facts["split 1"]["deviation"] is None

    @pytest.mark.parametrize(("recipe", "labels"), [("seed=2", ("squats", "waving")), ("seed=0", ("squats", "diving"))])
    def test_a_report_of_another_recipe_or_other_classes_is_refused(
        self, report: Path, recipe: str, labels: Sequence[str]
    ) -> None:
        with pytest.raises(ReportError, match="has no head of this recipe and these classes"):
            read_accuracy(report, recipe, labels)

    @pytest.mark.parametrize("text", [None, "[]", '{"experiments": ['])
    def test_a_missing_or_damaged_report_is_named(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(ReportError, match=rf"^{tmp_path}/report.json cannot be read .*`limelight-model evaluate`$"):
            read_accuracy(tmp_path, "seed=0", ("squats", "waving"))
