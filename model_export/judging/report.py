"""The report of an evaluation: ``report.md``, in the form of the paper's Tables 3 and 4, and ``report.json``."""

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model_export.data.examples import ClassSummary
from model_export.errors import ReportError
from model_export.judging.markdown import code, listing, markdown_table, plain
from model_export.judging.plots import plot_confusion
from model_export.judging.results import Figure, MeanOfSplits, Metric, Results, compare, mean_of_splits
from model_export.judging.tables import classes_csv, predictions_csv
from model_export.storing import file_name, store

ProtocolKind = Literal["grouped", "random", "official"]
COLUMNS: Mapping[Metric, str] = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "precision": "average precision",
    "recall": "average recall",
    "f1": "macro F1",
}

MEANING: Mapping[ProtocolKind, str] = {
    "grouped": "All clips cut from one source video are in one fold, so that each is tested by a network that was "
    "trained on nothing of its video.",
    "random": "Clips are dealt to folds one by one, so that clips cut from one video are both trained on and tested. "
    "These figures are too good; they are given because figures are often measured this way.",
    "official": "Training and test sides are those of the data set's authors.",
}
CHOOSING = (
    "The more recipes are compared on the same folds, the better the best one looks by chance. Choose a recipe on "
    "folds, then report it once on clips that no choice has seen, such as the test side of an official split "
    "(`--split`)."
)
CLASSES = (
    "These figures have no intervals: each rests on the few source videos of its class. The precision of a class that "
    "is never predicted is 0."
)
OF_SPLITS = (
    "Mean of the splits' figures ± their sample deviation. In brackets is the 95 % interval of the mean, by the rule "
    "of all intervals of this report: each source video is left out once, of every split that tests it."
)
PROTOCOLS = (
    "Figures of different protocols are not comparable. A method's gain from grouped to random folds comes from "
    "testing it on videos that it was trained on."
)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """How the figures were obtained.

    Attributes:
        command: Command line.
        started: Start, with time zone.
        seed: Seed of folds and weights.
        settings: Anything else that is needed to get the same figures, by name.
        versions: Versions of the libraries, by name.
        processor: Name of the processor.
    """

    command: str
    started: dt.datetime
    seed: int
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    processor: str


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The clips that were evaluated and those that were left out.

    Attributes:
        name: Name of the data set.
        clips: Number of clips that were trained on or tested.
        classes: Number of classes.
        groups: Number of source videos of ``clips``.
        unused: Clips that no split trains on or tests.
        missing: Clips that a split lists and that do not exist.
        extra: Clips that exist and that no split lists.
        undecodable: Clips that could not be decoded.
        left_out: Files and links that may have been meant as clips.
        selected: Summary of all clips that were selected, by class (see ``summarize``), to recognise them by.
    """

    name: str
    clips: int
    classes: int
    groups: int
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    selected: Mapping[str, ClassSummary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Results of several contenders on the same folds.

    Attributes:
        name: Name, such as ``4 grouped folds`` or ``split 1``.
        kind: How clips were dealt to folds.
        results: One result per contender; the first is compared with all others, and its confusions are shown.
    """

    name: str
    kind: ProtocolKind
    results: tuple[Results, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A further part of the report: Markdown lines under a title, and the same facts for JSON."""

    title: str
    lines: Sequence[str]
    facts: Mapping[str, Any]


def write_report(
    directory: Path, run: RunFacts, data: DataFacts, experiments: Sequence[Experiment], sections: Sequence[Section] = ()
) -> Path:
    """Write ``report.md``, ``report.json``, CSV files and a picture of each experiment's first contender's confusions.

    The first picture is ``confusion.png``, the n-th ``confusion-n.png``. Numbers that are not finite are null in JSON.
    The CSV files are in ``csv``: the classes of each experiment, and the predictions of each of its contenders.

    Returns:
        Path of ``report.md``.

    Raises:
        StorageError: The disk is full.
        OSError: The folder cannot be written for another reason.
    """
    pictures = [f"confusion-{i}.png" if i > 1 else "confusion.png" for i in range(1, len(experiments) + 1)]
    for experiment, picture in zip(experiments, pictures, strict=True):
        plot_confusion(experiment.results[0], directory / picture)
    write_tables(directory / "csv", experiments)
    facts = {
        "run": {**asdict(run), "started": run.started.isoformat()},
        "data": asdict(data),
        "experiments": [_experiment_facts(experiment) for experiment in experiments],
        "mean_of_splits": {
            method: {metric: asdict(figure) for metric, figure in figures.items()}
            for method, figures in means_of_splits(experiments).items()
        },
        "sections": {section.title: section.facts for section in sections},
    }
    store(directory / "report.json", json.dumps(_plain(facts), indent=1, allow_nan=False))
    lines = [
        *_head_lines(run, data),
        *_protocol_lines(experiments),
        *_split_lines(experiments),
        *(line for pair in zip(experiments, pictures, strict=True) for line in _experiment_lines(*pair)),
        *(line for section in sections for line in ("", f"## {section.title}", "", *section.lines)),
        *_recipe_lines(experiments),
    ]
    path = directory / "report.md"
    store(path, "\n".join(lines) + "\n")
    return path


def write_tables(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Write the classes of each experiment, and the predictions of each of its contenders, as CSV files.

    Raises:
        OSError: The folder cannot be written.
    """
    for experiment in experiments:
        tables = {file_name(experiment.name, "classes"): classes_csv(experiment.results)}
        for one in experiment.results:
            tables[file_name(experiment.name, one.contender)] = predictions_csv(one, {"fold": one.folds + 1})
        for name, table in tables.items():
            store(folder / f"{name}.csv", table)


def means_of_splits(experiments: Sequence[Experiment]) -> dict[str, dict[Metric, MeanOfSplits]]:
    """Average the figures of each contender over official splits, if there are several."""
    splits = [experiment.results for experiment in experiments if experiment.kind == "official"]
    if len(splits) < 2:
        return {}
    return {results[0].contender: mean_of_splits(results) for results in zip(*splits, strict=True)}


# --- JSON ---------------------------------------------------------------------------------------------------------


def _experiment_facts(experiment: Experiment) -> dict[str, Any]:
    first = experiment.results[0]
    return {
        "name": experiment.name,
        "kind": experiment.kind,
        "folds": first.per_fold.shape[1],
        "clips": len(first.names),
        "videos": len(set(first.groups)),
        "clips_with_video_in_training": int(first.leaked.sum()),
        "methods": [_result_facts(result) for result in experiment.results],
        "comparisons": [asdict(comparison) for comparison in compare(first, experiment.results[1:])],
    }


def _result_facts(result: Results) -> dict[str, Any]:
    return {
        "name": result.contender,
        "recipe": result.recipe,
        **{metric: asdict(figure) for metric, figure in result.figures().items()},
        "per_fold": dict(zip(result.metrics, result.per_fold, strict=True)),
        "per_class": [asdict(figures) for figures in result.per_class()],
        "labels": result.labels,
        "confusion": result.confusion,
        "confused_pairs": [asdict(pair) for pair in result.confused_pairs()],
    }


def _plain(value: Any) -> Any:
    """Convert a value for JSON: no NumPy types, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Markdown -----------------------------------------------------------------------------------------------------


def _head_lines(run: RunFacts, data: DataFacts) -> list[str]:
    left_out = {
        "unused": data.unused,
        "missing": data.missing,
        "extra": data.extra,
        "undecodable": data.undecodable,
        "left out": data.left_out,
    }
    return [
        f"# Evaluation on {plain(data.name)}",
        "",
        f"- Command: {code(run.command)}",
        f"- Started: {run.started:%Y-%m-%d %H:%M %Z}",
        f"- Seed: {run.seed}",
        *(f"- {name}: {value}" for name, value in run.settings.items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in run.versions.items())}",
        f"- processor: {run.processor}",
        "",
        *markdown_table(
            ("clips", "classes", "source videos", *left_out),
            [[str(n) for n in (data.clips, data.classes, data.groups, *map(len, left_out.values()))]],
        ),
        *(
            line
            for kind, names in left_out.items()
            if names
            for line in ("", f"{kind.capitalize()}: {listing(names, 'report.json')}.")
        ),
    ]


def _protocol_lines(experiments: Sequence[Experiment]) -> list[str]:
    """Compare accuracy under every protocol, if there are several."""
    if len(experiments) < 2:
        return []
    accuracies = [
        {result.contender: _value(result.figures()["accuracy"]) for result in experiment.results}
        for experiment in experiments
    ]
    methods = dict.fromkeys(method for column in accuracies for method in column)
    return [
        "",
        "## Accuracy by protocol, %",
        "",
        *markdown_table(
            ("method", *(experiment.name for experiment in experiments)),
            [[method, *(column.get(method, "–") for column in accuracies)] for method in methods],
        ),
        "",
        f"Over all clips, with the 95 % interval over source videos in brackets. {PROTOCOLS}",
    ]


def _split_lines(experiments: Sequence[Experiment]) -> list[str]:
    """Give the means over official splits, if there are several."""
    means = means_of_splits(experiments)
    if not means:
        return []
    metrics = next(iter(means.values()))
    number = sum(experiment.kind == "official" for experiment in experiments)
    return [
        "",
        f"## Mean of the {number} official splits, %",
        "",
        *markdown_table(
            ("method", *(COLUMNS[metric] for metric in metrics)),
            [
                [
                    method,
                    *(
                        f"{percent(m.mean)} ± {percent(m.deviation)} ({percent(m.low)}–{percent(m.high)})"
                        for m in figures.values()
                    ),
                ]
                for method, figures in means.items()
            ],
        ),
        "",
        OF_SPLITS,
    ]


def _experiment_lines(experiment: Experiment, picture: str) -> list[str]:
    first = experiment.results[0]
    leaked = f"{first.leaked.sum()} of {len(first.leaked)}"
    table = "Table 4" if experiment.kind == "official" else "Table 3"
    many = first.per_fold.shape[1] > 1
    columns = [COLUMNS[metric] for metric in first.metrics]
    return [
        "",
        f"## {experiment.name} (in the form of the paper's {table}), %",
        "",
        f"{MEANING[experiment.kind]} Clips tested after training on other clips of their video: {leaked}.",
        "",
        *markdown_table(
            ("method", *columns, *(f"{column}, folds" for column in columns if many)),
            [[result.contender, *_cells(result, many)] for result in experiment.results],
        ),
        "",
        _explanation(first),
        *(["", CHOOSING] if experiment.kind != "official" else []),
        *_comparison_lines(experiment),
        "",
        f"### {first.contender}: classes",
        "",
        *class_lines(first),
        "",
        f"### {first.contender}: most confused",
        "",
        *confused_lines(first),
        "",
        f"![Confusion matrix of {first.contender}]({picture})",
    ]


def class_lines(result: Results) -> list[str]:
    """Tabulate the figures of each class."""
    return [
        *markdown_table(
            ("class", "clips", "source videos", "precision", "recall", "F1"),
            [
                [c.label, str(c.clips), str(c.videos), *map(percent, (c.precision, c.recall, c.f1))]
                for c in result.per_class()
            ],
        ),
        "",
        CLASSES,
    ]


def confused_lines(result: Results) -> list[str]:
    """Tabulate the pairs of classes that are most often confused."""
    pairs = [[pair.truth, pair.predicted, str(pair.clips)] for pair in result.confused_pairs()]
    if not pairs:
        return ["No clip was predicted as another class."]
    return markdown_table(("class", "predicted as", "clips"), pairs)


def _explanation(result: Results) -> str:
    folds = " Under *folds*: their mean ± sample deviation." if result.per_fold.shape[1] > 1 else ""
    top = " Top-5 accuracy counts clips whose class is among the five most probable." * ("top5" in result.metrics)
    frequent = percent(result.confusion.sum(axis=1).max() / len(result.names))
    return (
        "Accuracy is correct / total; precision and recall are means over the classes (eqs 12, 13), and so is F1, "
        f"which is 2 · correct / (predicted + actual) of each class.{top} Each figure is over all clips at once; "
        f"naming the most frequent class every time would have an accuracy of {frequent}. In brackets is the figure's "
        "95 % interval, which rests on leaving out each of "
        f"{len(set(result.groups))} source videos once (jackknife; Student's t after adding one video at each end of "
        "the scale). It covers what other videos of these classes could change, not what another training could."
        f"{folds}"
    )


def _comparison_lines(experiment: Experiment) -> list[str]:
    first, *others = experiment.results
    if not others:
        return []
    number, videos = len(others), len(set(first.groups))
    basis = (
        f"Interval and p rest on {videos} source videos, by the same rule as above. Each interval is that of one "
        f"difference alone; p allows for {number} comparison{'s' * (number > 1)} (Holm's method)."
    )
    return [
        "",
        f"### {first.contender} against the others, on the same clips",
        "",
        *markdown_table(
            (
                "compared with",
                "accuracy, points",
                "95 % interval",
                f"only {first.contender} correct",
                "only the other correct",
                "p",
            ),
            [
                [
                    c.second,
                    f"{100 * c.difference:+.1f}",
                    f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
                    str(c.only_first),
                    str(c.only_second),
                    f"{c.p_holm:.3f}" if c.p_holm >= 0.001 else "< 0.001",
                ]
                for c in compare(first, others)
            ],
        ),
        "",
        basis,
    ]


def _recipe_lines(experiments: Sequence[Experiment]) -> list[str]:
    results = [result for experiment in experiments for result in experiment.results]
    recipes = dict.fromkeys(f"- {result.contender}: {result.recipe}" for result in results)
    return ["", "## Settings of the methods", "", *recipes]


def _cells(result: Results, many: bool) -> list[str]:
    """Return each figure with its interval and, if there are several folds, mean and deviation over them."""
    figures = result.figures().values()
    return [*map(_value, figures), *(_folds(figure) for figure in figures if many)]


def _value(figure: Figure) -> str:
    return f"{percent(figure.value)} ({percent(figure.low)}–{percent(figure.high)})"


def _folds(figure: Figure) -> str:
    deviation = f" ± {percent(figure.deviation_of_folds)}" if figure.deviation_of_folds is not None else ""
    return f"{percent(figure.mean_of_folds)}{deviation}"


def percent(share: float) -> str:
    """Format a share in percent, without the sign."""
    return f"{100 * share:.1f}"


# --- reading ------------------------------------------------------------------------------------------------------


def read_accuracy(
    directory: Path, recipe: str, labels: Sequence[str], selected: Mapping[str, ClassSummary]
) -> dict[str, Any]:
    """Read the accuracy that an evaluation found for a recipe and clips, by experiment.

    Random folds are left out: they test clips of videos that were trained on.

    Args:
        directory: Folder of the report.
        recipe: Every setting in one line, as ``describe`` returns it.
        labels: Names of the classes.
        selected: Summary of the clips by class. A split may have used a part of them only.

    Raises:
        ReportError: The report cannot be read, or has no head of this recipe and these classes, or only on random
            folds, or is about other clips.
    """
    report = directory / "report.json"
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        found = [
            (experiment, method["accuracy"])
            for experiment in content["experiments"]
            for method in experiment["methods"]
            if method["recipe"] == recipe and method["labels"] == list(labels)
        ]
        accuracy = {
            experiment["name"]: {
                "clips": experiment["clips"],
                "videos": experiment["videos"],
                **{name: None if value is None else round(value, 4) for name, value in figure.items()},
            }
            for experiment, figure in found
            if experiment["kind"] != "random"
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{report} cannot be read ({error}); make it with `limelight-model evaluate`") from error
    if not found:
        raise ReportError(
            f"{report} has no head of this recipe and these classes; run `limelight-model evaluate` with the same "
            "options"
        )
    if not accuracy:
        raise ReportError(
            f"{report} has only random folds, whose accuracy is too good to be stated as a head's; run "
            "`limelight-model evaluate` with `--folds grouped` or `--split`"
        )
    evaluated = content.get("data", {}).get("selected", {})
    if others := [
        f"{label} ({evaluated.get(label, {}).get('clips', 'unknown')} then, {now.clips} now)"
        for label, now in selected.items()
        if evaluated.get(label) != asdict(now)
    ]:
        raise ReportError(
            f"{report} is about other clips or groups of {', '.join(others[:3])}"
            f"{f' and {len(others) - 3} more classes' if len(others) > 3 else ''}; run `limelight-model evaluate` with "
            "the same options"
        )
    return accuracy
