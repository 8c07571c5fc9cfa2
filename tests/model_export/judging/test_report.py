"""The report of an evaluation."""

import csv
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.examples import ClassSummary
from model_export.errors import ReportError
from model_export.judging.report import DataFacts, Experiment, RunFacts, Section, read_accuracy, write_report
from model_export.judging.results import Results, compare
from tests.model_export.judging.eight_clips import results

RUN = RunFacts(
    command="limelight-model evaluate videos --k-fold 2",
    started=dt.datetime(2026, 11, 22, 21, 5, tzinfo=dt.UTC),
    seed=7,
    settings={"encoder": "VGG19, ImageNet"},
    versions={"limelight": "1.2", "keras": "3.99"},
    processor="some processor (with VNNI)",
)
DATA = DataFacts("UCF-101", clips=8, classes=2, groups=4)
SELECTED = {"squats": ClassSummary(12, "a"), "waving": ClassSummary(12, "b")}


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
    columns = ("accuracy", "average precision", "average recall", "macro F1")
    assert row(text, "method")[1:] == [*columns, *(f"{column}, folds" for column in columns)]
    assert row(text, "attention")[5:8] == ["87.5 ± 17.7", "91.7 ± 11.8", "87.5 ± 17.7"], "(1 + 1) / 2 and (2/3 + 1) / 2"
    assert row(text, "plain LSTM")[6] == "25.0 ± 0.0", "a class that is never named has precision 0"
    assert "the paper's Table 3" in text


def test_the_interval_stands_with_the_figure_that_it_belongs_to(tmp_path: Path) -> None:
    """The mean over folds of unequal size is another figure: here 5 of 6 and 0 of 2, but 5 of 8 over all clips."""
    unequal = results("attention", [0, 0, 1, 1, 0, 1, 0, 0], folds=[0] * 6 + [1] * 2)
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (unequal,)))
    accuracy = unequal.figures()["accuracy"]
    assert row(text, "attention")[1] == f"62.5 ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})"
    assert row(text, "attention")[5] == "41.7 ± 58.9"
    found = strict(tmp_path / "report.json")["experiments"][0]["methods"][0]["accuracy"]
    assert found["value"] == 0.625
    assert found["mean_of_folds"] == pytest.approx(5 / 12)
    assert set(found) == {"value", "low", "high", "mean_of_folds", "deviation_of_folds"}


def test_the_report_says_what_its_intervals_rest_on_and_warns_of_choosing(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert "rests on leaving out each of 4 source videos once" in text
    assert "naming the most frequent class every time would have an accuracy of 50.0." in text
    assert "These figures have no intervals: each rests on the few source videos of its class." in text
    assert "Interval and p rest on 4 source videos" in text
    assert "p allows for 1 comparison (Holm's method)." in text
    assert "Choose a recipe on folds, then report it once on clips that no choice has seen" in text
    assert strict(tmp_path / "report.json")["experiments"][0]["videos"] == 4


def test_an_official_split_is_reported_in_the_form_of_table_4(tmp_path: Path) -> None:
    one_fold = results("attention", [0, 0, 1, 1, 0, 0, 1, 0], folds=[0] * 8)
    text = write(tmp_path, Experiment("split 1", "official", (one_fold,)))
    assert row(text, "attention")[1].startswith("87.5 (")
    assert "±" not in text
    assert "the paper's Table 4" in text


def test_the_mean_over_official_splits_is_given_if_there_are_several(tmp_path: Path) -> None:
    def split(number: int, *predicted: int) -> Experiment:
        methods = (results("attention", predicted, folds=[0] * 8), results("plain LSTM", [0] * 8, folds=[0] * 8))
        return Experiment(f"split {number}", "official", methods)

    splits = split(1, 0, 0, 1, 1, 0, 0, 1, 1), split(2, 0, 0, 1, 1, 0, 0, 0, 0), split(3, 0, 0, 1, 1, 0, 0, 1, 0)
    text = write(tmp_path, *splits).split("## Mean of the 3 official splits")[1]
    assert row(text, "method")[1:] == ["accuracy", "average precision", "average recall", "macro F1"]
    assert row(text, "attention")[1].startswith("87.5 ± 12.5 ("), "of 1, 3/4 and 7/8"
    assert row(text, "plain LSTM")[1].startswith("50.0 ± 0.0 (")
    found = strict(tmp_path / "report.json")["mean_of_splits"]
    assert set(found) == {"attention", "plain LSTM"}
    assert found["attention"]["accuracy"]["mean"] == 0.875
    assert found["attention"]["accuracy"]["deviation"] == 0.125
    assert "Mean of the" not in write(tmp_path, GROUPED, splits[0])
    assert strict(tmp_path / "report.json")["mean_of_splits"] == {}


def test_top_5_accuracy_is_given_of_more_than_five_classes(tmp_path: Path) -> None:
    six = replace(ATTENTION, labels=tuple("abcdef"), probabilities=np.eye(6)[[0, 0, 1, 1, 0, 0, 5, 0]])
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (six,)))
    assert row(text, "method")[1:4] == ["accuracy", "top-5 accuracy", "average precision"]
    assert row(text, "attention")[2].startswith("100.0 ("), "of those with probability 0, the first come first"
    assert "Top-5 accuracy counts" in text
    write(tmp_path, GROUPED)
    assert "top5" not in strict(tmp_path / "report.json")["experiments"][0]["methods"][0]


def test_csv_files_have_classes_and_predictions_whatever_the_names_are(tmp_path: Path) -> None:
    labels = ('Say, "hi"\nto all', "=1+1")
    probabilities = np.random.default_rng(0).dirichlet([1, 1], 8)
    named = replace(ATTENTION, labels=labels, probabilities=probabilities, names=tuple(f"a,{i}\r\n" for i in range(8)))
    named = replace(named, contender="attention (content), without motion")
    other = replace(named, contender="plain LSTM")
    write(tmp_path, Experiment("2 grouped folds", "grouped", (named, other)))

    def read(name: str) -> list[dict[str, str]]:
        with (tmp_path / "csv" / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    rows = read("2-grouped-folds.attention-content-without-motion.csv")
    assert [found["clip"] for found in rows] == list(named.names)
    assert [found["group"] for found in rows] == list(named.groups)
    assert [int(found["fold"]) for found in rows] == [1] * 4 + [2] * 4
    assert [found["label"] for found in rows] == [labels[i] for i in named.truth]
    assert [found["predicted"] for found in rows] == [labels[i] for i in named.predicted]
    found = np.array([[row[f"probability of {label}"] for label in labels] for row in rows], np.float32)
    np.testing.assert_array_equal(found, probabilities.astype(np.float32))
    of_classes = read("2-grouped-folds.classes.csv")
    assert [(row["method"], row["class"]) for row in of_classes] == [
        (method.contender, label) for method in (named, other) for label in method.labels
    ]
    first = named.per_class()[0]
    assert [float(of_classes[0][key]) for key in ("clips", "source videos", "precision", "recall", "F1")] == [
        first.clips,
        first.videos,
        first.precision,
        first.recall,
        first.f1,
    ]
    assert len(list((tmp_path / "csv").iterdir())) == 3


def test_accuracy_of_grouped_and_random_folds_is_compared(tmp_path: Path) -> None:
    leaking = replace(results("attention", [0, 0, 1, 1, 0, 0, 1, 1]), leaked=np.array([True] * 6 + [False] * 2))
    text = write(tmp_path, GROUPED, Experiment("2 random folds", "random", (leaking,)))
    assert row(text, "method")[1:] == ["2 grouped folds", "2 random folds"]
    accuracies = [
        (value, *interval.split("–")) for value, interval in (cell.split(" (") for cell in row(text, "attention")[1:])
    ]
    assert [value for value, *_ in accuracies] == ["87.5", "100.0"]
    assert all(float(low) < float(value) <= float(high.strip(")")) for value, low, high in accuracies)
    assert row(text, "plain LSTM")[1].startswith("50.0 (")
    assert row(text, "plain LSTM")[2] == "–"
    assert "on other clips of their video: 0 of 8" in text
    assert "on other clips of their video: 6 of 8" in text
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "confusion-2.png").exists()


def test_the_first_method_is_compared_with_the_others(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED).split("### attention against the others")[1]
    assert row(text, "compared with")[3:] == ["only attention correct", "only the other correct", "p"]
    against, difference, interval, only_first, only_second, p = row(text, "plain LSTM")
    assert (against, difference, only_first, only_second) == ("plain LSTM", "+37.5", "3", "0")
    (found,) = compare(ATTENTION, [BASELINE])
    assert interval == f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    assert p == f"{found.p:.3f}"


def test_p_values_are_adjusted_and_small_ones_are_only_bounded(tmp_path: Path) -> None:
    """A hundred videos, of which the first method names all; the others none, and all but eight."""

    def of_a_hundred(name: str, wrong: int) -> Results:
        names = tuple(map(str, range(100)))
        return replace(
            results(name, [0] * 8),
            names=names,
            groups=names,
            truth=np.zeros(100, np.int64),
            probabilities=np.eye(2)[[1] * wrong + [0] * (100 - wrong)],
            folds=np.zeros(100, np.int64),
            leaked=np.zeros(100, bool),
        )

    methods = (of_a_hundred("all", 0), of_a_hundred("none", 100), of_a_hundred("most", 5), of_a_hundred("many", 6))
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", methods)).split("### all against the others")[1]
    assert row(text, "none")[-1] == "< 0.001"
    most, many = (compare(methods[0], [other])[0].p for other in methods[2:])
    assert 0.01 < many < most < 0.1
    assert row(text, "many")[-1] == f"{2 * many:.3f}", "the second smallest of three is doubled"
    assert row(text, "most")[-1] == f"{max(2 * many, most):.3f}", "and none gets below a smaller one"
    assert "p allows for 3 comparisons" in text


def test_the_report_says_how_its_figures_were_obtained(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    facts = [RUN.command, "2026-11-22 21:05 UTC", "Seed: 7", "encoder: VGG19, ImageNet", "attention's recipe"]
    for fact in (*facts, "keras 3.99", RUN.processor):
        assert fact in text


def test_classes_confusions_and_picture_are_those_of_the_first_method(tmp_path: Path) -> None:
    text = write(tmp_path, GROUPED)
    assert row(text, "PullUps") == ["PullUps", "4", "2", "80.0", "100.0", "88.9"]
    assert r"| Surf\|ing | PullUps | 1 |" in text, "a bar in a name ends no cell"
    assert "![Confusion matrix of attention](confusion.png)" in text


def test_a_line_break_in_a_name_ends_no_row(tmp_path: Path) -> None:
    broken = replace(ATTENTION, labels=("Pull\nUps", "Surf\r\ning"))
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (broken,)))
    assert row(text, r"Pull\nUps")[1:] == ["4", "2", "80.0", "100.0", "88.9"]
    assert r"| Surf\ning | Pull\nUps | 1 |" in text


def test_the_report_says_that_nothing_was_confused(tmp_path: Path) -> None:
    perfect = results("attention", [0, 0, 1, 1, 0, 0, 1, 1])
    text = write(tmp_path, Experiment("2 grouped folds", "grouped", (perfect,)))
    assert "No clip was predicted as another class." in text
    assert "predicted as |" not in text


def test_clips_that_were_left_out_are_counted_and_named(tmp_path: Path) -> None:
    extra = tuple(f"PullUps/extra-{i}.avi" for i in range(25))
    data = replace(
        DATA,
        unused=("PullUps/idle.avi",),
        missing=("PullUps/gone",),
        extra=extra,
        undecodable=("PullUps/broken.avi",),
        left_out=("PullUps/link.avi", "loose\n\n# file.avi"),
    )
    text = write(tmp_path, GROUPED, data=data)
    assert row(text, "8") == ["8", "2", "4", "1", "1", "25", "1", "2"]
    assert "Unused: `PullUps/idle.avi`." in text
    assert "Missing: `PullUps/gone`." in text
    assert "Undecodable: `PullUps/broken.avi`." in text
    assert r"Left out: `PullUps/link.avi`, `loose\n\n# file.avi`." in text, "a line break ends no paragraph"
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
        "versions": {"limelight": "1.2", "keras": "3.99"},
        "processor": "some processor (with VNNI)",
    }
    experiment = found["experiments"][0]
    assert (experiment["folds"], experiment["clips"], experiment["clips_with_video_in_training"]) == (2, 8, 0)
    attention = experiment["methods"][0]
    assert attention["accuracy"]["value"] == 0.875
    assert attention["per_fold"]["accuracy"] == [1, 0.75]
    assert attention["confusion"] == [[4, 0], [1, 3]]
    assert attention["confused_pairs"] == [{"truth": "Surf|ing", "predicted": "PullUps", "clips": 1}]
    comparison = experiment["comparisons"][0]
    assert comparison["only_first"] == 3
    assert comparison["p"] == comparison["p_holm"] == pytest.approx(compare(ATTENTION, [BASELINE])[0].p)


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
            accuracy = {
                "value": value,
                "low": 0.5,
                "high": 1.0,
                "mean_of_folds": value + 0.01,
                "deviation_of_folds": deviation,
            }
            return {"name": "attention", "recipe": recipe, "labels": ["squats", "waving"], "accuracy": accuracy}

        experiments = [
            {
                "name": name,
                "kind": kind,
                "clips": clips,
                "videos": 8,
                "methods": [method("seed=0", value, deviation), method("seed=1", 0.1, 0.1)],
            }
            for name, kind, clips, value, deviation in (
                ("4 grouped folds", "grouped", 24, 0.912345, 0.02),
                ("4 random folds", "random", 24, 0.99, 0.01),
                ("split 1", "official", 8, 0.8, None),
            )
        ]
        data = {"selected": {label: asdict(summary) for label, summary in SELECTED.items()}}
        text = json.dumps({"data": data, "experiments": experiments})
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
        return tmp_path

    def test_accuracy_of_the_recipe_is_read_by_protocol(self, report: Path) -> None:
        facts = read_accuracy(report, "seed=0", ("squats", "waving"), SELECTED)
        assert facts["4 grouped folds"] == {
            "clips": 24,
            "videos": 8,
            "value": 0.9123,
            "low": 0.5,
            "high": 1.0,
            "mean_of_folds": 0.9223,
            "deviation_of_folds": 0.02,
        }
        assert facts["split 1"]["deviation_of_folds"] is None

    def test_random_folds_are_not_stated_as_a_heads_accuracy(self, report: Path) -> None:
        assert list(read_accuracy(report, "seed=0", ("squats", "waving"), SELECTED)) == ["4 grouped folds", "split 1"]
        path = report / "report.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({"experiments": [found["experiments"][1]]}), encoding="utf-8")
        with pytest.raises(
            ReportError, match=r"has only random folds, .* run `limelight-model evaluate` with `--folds"
        ):
            read_accuracy(report, "seed=0", ("squats", "waving"), SELECTED)

    @pytest.mark.parametrize(("recipe", "labels"), [("seed=2", ("squats", "waving")), ("seed=0", ("squats", "diving"))])
    def test_a_report_of_another_recipe_or_other_classes_is_refused(
        self, report: Path, recipe: str, labels: Sequence[str]
    ) -> None:
        with pytest.raises(ReportError, match="has no head of this recipe and these classes"):
            read_accuracy(report, recipe, labels, SELECTED)

    @pytest.mark.parametrize(
        ("now", "others"),
        [
            ({"squats": ClassSummary(12, "a"), "waving": ClassSummary(14, "c")}, r"waving \(12 then, 14 now\); run"),
            ({"squats": ClassSummary(12, "a"), "waving": ClassSummary(12, "c")}, r"waving \(12 then, 12 now\); run"),
        ],
        ids=["more clips", "as many others"],
    )
    def test_a_report_on_other_clips_is_refused(self, report: Path, now: dict[str, ClassSummary], others: str) -> None:
        with pytest.raises(ReportError, match=rf"^{report}/report.json is about other clips or groups of {others}"):
            read_accuracy(report, "seed=0", ("squats", "waving"), now)

    @pytest.mark.parametrize("text", [None, "[]", '{"experiments": ['])
    def test_a_missing_or_damaged_report_is_named(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(ReportError, match=rf"^{tmp_path}/report.json cannot be read .*`limelight-model evaluate`$"):
            read_accuracy(tmp_path, "seed=0", ("squats", "waving"), SELECTED)
