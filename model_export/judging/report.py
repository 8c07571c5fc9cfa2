"""Writes down what an evaluation found, in the form of the paper's Tables 3 and 4, and how each figure came about."""

import csv
import datetime as dt
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Picture

from model_export.evaluation import METRICS, RESAMPLES, Comparison, Figure, Results, compare

FoldKind = Literal["grouped", "random", "official"]
# More classes than this leave no room for a count in each cell of the picture.
COUNTED_CLASSES = 30
# Of missing, extra and undecodable clips, so many are named in Markdown.
LISTED = 20

MEANING: Mapping[FoldKind, str] = {
    "grouped": "All clips cut from one source video are in one fold, so that each is tested by a network that saw "
    "nothing of its video.",
    "random": "Clips are dealt to the folds one by one, so that cuts of one video are trained on and tested. These "
    "figures flatter; they are here because figures are often measured so.",
    "official": "Training and test side are those of the data set's authors.",
}
PROTOCOLS = (
    "Figures of different protocols are not comparable. What a method gains by random folds over grouped ones it owes "
    "to videos that it was trained on other cuts of."
)


class ReportError(Exception):
    """A report or plot cannot be made. One sentence that names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """How the figures came about.

    Attributes:
        command: as it was typed.
        started: with time zone.
        seed: of folds, weights and resamples.
        settings: anything else that a reader needs to get the same figures, by name.
    """

    command: str
    started: dt.datetime
    seed: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The clips that were evaluated and those that were left out.

    Attributes:
        name: of the data set.
        clips, classes, groups: how many were used.
        missing: clips that a split lists and that are not there.
        extra: clips that are there and that the split does not list.
        undecodable: clips that could not be decoded.
    """

    name: str
    clips: int
    classes: int
    groups: int
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Experiment:
    """Contenders on the same folds.

    Attributes:
        name: such as ``4 grouped folds`` or ``split 1``.
        kind: how clips came to their folds.
        results: one a contender; the first is compared with all others, and its confusions are shown.
    """

    name: str
    kind: FoldKind
    results: tuple[Results, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A further part of the report: Markdown lines under a title, and the same facts for JSON."""

    title: str
    lines: Sequence[str]
    facts: Mapping[str, Any]


def write_report(
    directory: Path, run: Run, data: DataFacts, experiments: Sequence[Experiment], sections: Sequence[Section] = ()
) -> Path:
    """Writes ``report.md``, ``report.json`` and a picture of the confusions of each experiment's first contender.

    The first picture is ``confusion.png``, the n-th ``confusion-n.png``. What is not a finite number is null in JSON.

    Returns:
        Path of ``report.md``.

    Raises:
        OSError: the folder cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pictures = [f"confusion-{i}.png" if i > 1 else "confusion.png" for i in range(1, len(experiments) + 1)]
    for experiment, picture in zip(experiments, pictures, strict=True):
        plot_confusion(experiment.results[0], directory / picture)
    facts = {
        "run": {**asdict(run), "started": run.started.isoformat()},
        "data": asdict(data),
        "experiments": [_experiment_facts(experiment) for experiment in experiments],
        "sections": {section.title: section.facts for section in sections},
    }
    (directory / "report.json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False), encoding="utf-8")
    lines = [
        *_head_lines(run, data),
        *_protocol_lines(experiments),
        *(line for pair in zip(experiments, pictures, strict=True) for line in _experiment_lines(*pair)),
        *(line for section in sections for line in ("", f"## {section.title}", "", *section.lines)),
        *_recipe_lines(experiments),
    ]
    path = directory / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- JSON ---------------------------------------------------------------------------------------------------------


def _experiment_facts(experiment: Experiment) -> dict[str, Any]:
    first = experiment.results[0]
    return {
        "name": experiment.name,
        "kind": experiment.kind,
        "folds": first.per_fold.shape[1],
        "clips": len(first.names),
        "clips_with_video_in_training": int(first.leaked.sum()),
        "methods": [_result_facts(result) for result in experiment.results],
        "comparisons": [asdict(comparison) for comparison in _comparisons(experiment)],
    }


def _result_facts(result: Results) -> dict[str, Any]:
    return {
        "name": result.contender,
        "recipe": result.recipe,
        **{metric: asdict(figure) for metric, figure in result.figures().items()},
        "per_fold": dict(zip(METRICS, result.per_fold, strict=True)),
        "per_class": [asdict(figures) for figures in result.per_class()],
        "labels": result.labels,
        "confusion": result.confusion,
        "confused_pairs": [asdict(pair) for pair in result.confused_pairs()],
    }


def _plain(value: Any) -> Any:
    """The value as JSON knows it: no NumPy, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Markdown -----------------------------------------------------------------------------------------------------


def _head_lines(run: Run, data: DataFacts) -> list[str]:
    left_out = {"missing": data.missing, "extra": data.extra, "undecodable": data.undecodable}
    return [
        f"# Evaluation on {data.name}",
        "",
        f"- Command: `{run.command}`",
        f"- Started: {run.started:%Y-%m-%d %H:%M %Z}",
        f"- Seed: {run.seed}",
        *(f"- {name}: {value}" for name, value in run.settings.items()),
        "",
        *_table(
            ("clips", "classes", "source videos", *left_out),
            [[str(n) for n in (data.clips, data.classes, data.groups, *map(len, left_out.values()))]],
        ),
        *(line for kind, names in left_out.items() if names for line in ("", _listing(kind, names))),
    ]


def _listing(kind: str, names: Sequence[str]) -> str:
    rest = f" and {len(names) - LISTED} more, in `report.json`" if len(names) > LISTED else ""
    return f"{kind.capitalize()}: {', '.join(f'`{name}`' for name in names[:LISTED])}{rest}."


def _protocol_lines(experiments: Sequence[Experiment]) -> list[str]:
    """Accuracy under every protocol, side by side, where there is more than one."""
    if len(experiments) < 2:
        return []
    accuracies = [
        {result.contender: result.figures()["accuracy"].mean for result in experiment.results}
        for experiment in experiments
    ]
    methods = dict.fromkeys(method for column in accuracies for method in column)
    return [
        "",
        "## Accuracy by protocol, %",
        "",
        *_table(
            ("method", *(experiment.name for experiment in experiments)),
            [
                [method, *(_percent(column[method]) if method in column else "–" for column in accuracies)]
                for method in methods
            ],
        ),
        "",
        PROTOCOLS,
    ]


def _experiment_lines(experiment: Experiment, picture: str) -> list[str]:
    first = experiment.results[0]
    leaked = f"{first.leaked.sum()} of {len(first.leaked)}"
    table = "Table 4" if experiment.kind == "official" else "Table 3"
    return [
        "",
        f"## {experiment.name} (in the form of the paper's {table}), %",
        "",
        f"{MEANING[experiment.kind]} Clips tested after training on others of their video: {leaked}.",
        "",
        *_table(
            ("method", "accuracy", "average precision", "average recall"),
            [[result.contender, *map(_cell, result.figures().values())] for result in experiment.results],
        ),
        "",
        _explanation(first),
        *_comparison_lines(experiment),
        "",
        f"### {first.contender}: classes",
        "",
        *_table(
            ("class", "clips", "precision", "recall"),
            [[c.label, str(c.clips), _percent(c.precision), _percent(c.recall)] for c in first.per_class()],
        ),
        "",
        f"### {first.contender}: most confused",
        "",
        *(_confused_lines(first) or ["No clip was taken for another class."]),
        "",
        f"![Confusion matrix of {first.contender}]({picture})",
    ]


def _confused_lines(result: Results) -> list[str]:
    pairs = [[pair.truth, pair.predicted, str(pair.clips)] for pair in result.confused_pairs()]
    return _table(("class", "taken for", "clips"), pairs) if pairs else []


def _explanation(result: Results) -> str:
    many = result.per_fold.shape[1] > 1
    return (
        "Accuracy is correct / total; precision and recall are means over the classes (eqs 12, 13). "
        + ("Mean ± sample deviation over the folds; in brackets, over all clips at once, " if many else "In brackets ")
        + f"the 95 % interval by bootstrap over source videos ({RESAMPLES:,} resamples), which tells what other videos "
        "of these classes could change, not what another training could."
    )


def _comparison_lines(experiment: Experiment) -> list[str]:
    comparisons = _comparisons(experiment)
    if not comparisons:
        return []
    first = experiment.results[0].contender
    return [
        "",
        f"### {first} against the others, on the same clips",
        "",
        *_table(
            (
                "against",
                "accuracy, points",
                "95 % interval",
                f"only {first} right",
                "only the other right",
                "McNemar p",
            ),
            [
                [
                    c.second,
                    f"{100 * c.difference:+.1f}",
                    f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
                    str(c.only_first),
                    str(c.only_second),
                    f"{c.p:.3f}" if c.p >= 0.001 else "< 0.001",
                ]
                for c in comparisons
            ],
        ),
        "",
        "McNemar's test takes clips for independent, which those of one video are not; the interval does not.",
    ]


def _recipe_lines(experiments: Sequence[Experiment]) -> list[str]:
    results = [result for experiment in experiments for result in experiment.results]
    recipes = dict.fromkeys(f"- {result.contender}: {result.recipe}" for result in results)
    return ["", "## Settings of the methods", "", *recipes]


def _comparisons(experiment: Experiment) -> list[Comparison]:
    first, *others = experiment.results
    return [compare(first, other) for other in others]


def _cell(figure: Figure) -> str:
    mean = _percent(figure.mean) + (f" ± {_percent(figure.deviation)}" if figure.deviation is not None else "")
    return f"{mean} ({_percent(figure.low)}–{_percent(figure.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; its first column is text, the others are numbers."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]


# --- pictures -----------------------------------------------------------------------------------------------------


def plot_confusion(result: Results, path: Path) -> None:
    """Draws the confusion matrix as a PNG file.

    Numbers are clips, left out where they would not fit; shades are the root of the share of the class's clips, so that
    rare confusions are seen.
    """
    classes = len(result.labels)
    counted = classes <= COUNTED_CLASSES
    side = 3 + classes * (0.4 if counted else 0.18)
    picture = Picture(figsize=(side, side), layout="constrained")
    axes = picture.add_subplot()
    shares = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    # Class names are text as it stands: a $ in one is no formula.
    axes.set_xticks(range(classes), result.labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(classes), result.labels, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="class", title=f"{result.contender}: {len(result.names)} clips")
    if counted:
        for (row, column), clips in np.ndenumerate(result.confusion):
            if clips:
                shade = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, str(clips), ha="center", va="center", color=shade, fontsize=8)
    picture.savefig(path, dpi=120)


def plot_history(log: Path, path: Path) -> None:
    """Draws loss and accuracy by epoch, of training and held-out clips, as a PNG file.

    Args:
        log: CSV file that `train` wrote; without the ``val_`` columns where nothing was held out.
        path: of the picture.

    Raises:
        ReportError: ``log`` is missing or not such a file.
    """
    history = _read_history(log)
    picture = Picture(figsize=(10, 4), layout="constrained")
    for axes, metric in zip(picture.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for column, name in ((metric, "training"), (f"val_{metric}", "held out")):
            if column in history:
                axes.plot(history["epoch"], history[column], label=name)
        axes.set(xlabel="epoch", title=metric)
        axes.legend()
    picture.savefig(path, dpi=120)


def _read_history(log: Path) -> dict[str, npt.NDArray[np.float64]]:
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise ReportError(f"{log} is not the CSV log of a training ({error}); train again to get one") from error
    if missing := {"epoch", "loss", "accuracy"} - columns.keys():
        raise ReportError(f"{log} has no column {', '.join(sorted(missing))}; train again to get a whole log")
    return columns
