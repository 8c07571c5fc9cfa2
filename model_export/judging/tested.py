"""What the command ``test`` found, and its report."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_export.judging.intervals import Estimate, jackknife_mean
from model_export.judging.markdown import markdown_table
from model_export.judging.plots import plot_confusion
from model_export.judging.report import CLASSES
from model_export.judging.results import Results
from model_export.reporter import SILENT, Reporter
from service.files import write_atomically

TOP = 5
# Number of clips and classes that are named in Markdown; JSON names all.
LISTED = 20
INTERVALS = (
    "Over all clips at once; precision and recall are means over the classes that have clips. Intervals come from "
    "leaving out each source video once (jackknife), as those of an evaluation."
)
NOTHING_CONFUSED = "No clip was predicted as another class."


@dataclass(frozen=True, slots=True)
class Tested:
    """What a test found.

    Attributes:
        results: What was predicted. ``leaked`` marks clips that were trained on, as far as that is known.
        model: What was tested, for people: name, version and what computed the answers.
        data: Name of the folder of clips.
        undecodable: Clips that could not be decoded, with the reason.
        unknown: Classes of the folder that the model does not know, whose clips were left out.
        absent: Classes of the model that have no clips.
        trained_on_is_known: Whether it is known which clips were trained on.
    """

    results: Results
    model: str
    data: str
    undecodable: Mapping[str, str]
    unknown: tuple[str, ...]
    absent: tuple[str, ...]
    trained_on_is_known: bool

    def figures(self) -> dict[str, Estimate]:
        """Compute accuracy, top-5 accuracy, macro precision and macro recall, each with its 95 % interval."""
        found: dict[str, Estimate] = {
            name: Estimate(one.value, one.low, one.high) for name, one in self.results.figures().items()
        }
        if len(self.results.labels) > TOP:
            found[f"top-{TOP} accuracy"] = top_accuracy(self.results, TOP)
        return found


def top_accuracy(results: Results, count: int) -> Estimate:
    """Compute the share of clips whose class is among the ``count`` most probable ones, as accuracy is computed."""
    best = np.argsort(-results.probabilities, axis=1, kind="stable")[:, :count]
    found = jackknife_mean((best == results.truth[:, np.newaxis]).any(axis=1), results.groups, 0, 1)
    low, high = np.clip(found.interval(), 0, 1).tolist()
    return Estimate(float(found.value), low, high)


def write_tested(output: Path, found: Tested, command: str, reporter: Reporter = SILENT) -> None:
    """Write ``test.md``, ``test.json``, ``predictions.csv``, ``classes.csv`` and ``confusion.png``.

    Raises:
        OSError: The folder cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    results = found.results
    reporter.table(("skipped clip", "reason"), found.undecodable.items())
    if results.leaked.any():
        reporter.say(f"warning: {_leak(found)}")
    plot_confusion(_named_or_present(results), output / "confusion.png")
    _write_csv(output / "predictions.csv", _prediction_rows(found))
    _write_csv(output / "classes.csv", (asdict(figures) for figures in results.per_class()))
    text = json.dumps(_facts(found, command), indent=1, allow_nan=False)
    write_atomically(output / "test.json", lambda part: part.write_text(text, encoding="utf-8"))
    page = "\n".join(_lines(found, command)) + "\n"
    write_atomically(output / "test.md", lambda part: part.write_text(page, encoding="utf-8"))


def _write_csv(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            first = next(rows)
            writer = csv.DictWriter(file, first.keys())
            writer.writeheader()
            writer.writerows([first, *rows])

    write_atomically(path, write)


def _prediction_rows(found: Tested) -> Iterator[dict[str, Any]]:
    """Describe each clip; ``trained_on`` is empty if that is not known."""
    results = found.results
    for i, name in enumerate(results.names):
        yield {
            "clip": name,
            "group": results.groups[i],
            "label": results.labels[results.truth[i]],
            "predicted": results.labels[results.predicted[i]],
            "trained_on": bool(results.leaked[i]) if found.trained_on_is_known else "",
            **{f"P({label})": float(p) for label, p in zip(results.labels, results.probabilities[i], strict=True)},
        }


def _named_or_present(results: Results) -> Results:
    """Return the results for the classes that have clips or were predicted alone, for a picture that is no larger."""
    kept = np.union1d(results.truth, results.predicted)
    return Results(
        results.contender,
        results.recipe,
        tuple(results.labels[i] for i in kept),
        results.names,
        results.groups,
        np.searchsorted(kept, results.truth),
        results.probabilities[:, kept],
        results.folds,
        results.leaked,
    )


def _facts(found: Tested, command: str) -> dict[str, Any]:
    results = found.results
    return {
        "command": command,
        "model": found.model,
        "data": found.data,
        "clips": len(results.names),
        "videos": len(set(results.groups)),
        "clips_trained_on": int(results.leaked.sum()) if found.trained_on_is_known else None,
        "undecodable": dict(found.undecodable),
        "unknown_classes": found.unknown,
        "classes_without_clips": found.absent,
        "figures": {name: asdict(figure) for name, figure in found.figures().items()},
        "per_class": [asdict(figures) for figures in results.per_class()],
        "labels": results.labels,
        "confusion": results.confusion.tolist(),
        "confused_pairs": [asdict(pair) for pair in results.confused_pairs()],
    }


def _leak(found: Tested) -> str:
    seen = found.results.leaked
    return (
        f"{seen.sum()} of {len(seen)} clips were trained on, so that these figures are too good; predictions.csv says "
        "which"
    )


def _lines(found: Tested, command: str) -> list[str]:
    results, figures = found.results, found.figures()
    pairs = [[pair.truth, pair.predicted, str(pair.clips)] for pair in results.confused_pairs()]
    confused = markdown_table(("class", "predicted as", "clips"), pairs) if pairs else [NOTHING_CONFUSED]
    return [
        f"# Test on {found.data}",
        "",
        f"- Command: `{command}`",
        f"- Model: {found.model}",
        f"- Clips: {len(results.names)} of {len(set(results.groups))} source videos",
        f"- Trained on: {_trained_on(found)}",
        *(f"- {title}: {_listing(names)}" for title, names in _left_out(found).items() if names),
        "",
        *markdown_table(
            ("figure", "%", "95 % interval"),
            [(name, _percent(one.mean), f"{_percent(one.low)}–{_percent(one.high)}") for name, one in figures.items()],
        ),
        "",
        INTERVALS,
        "",
        "## Classes, %",
        "",
        *markdown_table(
            ("class", "clips", "source videos", "precision", "recall"),
            [
                (c.label, str(c.clips), str(c.videos), _percent(c.precision), _percent(c.recall))
                for c in results.per_class()
            ],
        ),
        "",
        CLASSES,
        "",
        "## Most confused",
        "",
        *confused,
        "",
        "![Confusion matrix](confusion.png)",
    ]


def _trained_on(found: Tested) -> str:
    if not found.trained_on_is_known:
        return "it is not known which clips"
    return _leak(found) if found.results.leaked.any() else "no clip of the same content"


def _left_out(found: Tested) -> dict[str, Sequence[str]]:
    return {
        "Undecodable": list(found.undecodable),
        "Classes that the model does not know, left out": found.unknown,
        "Classes of the model without clips": found.absent,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _listing(names: Sequence[str]) -> str:
    rest = f" and {len(names) - LISTED} more, in `test.json`" if len(names) > LISTED else ""
    return f"{', '.join(f'`{name}`' for name in names[:LISTED])}{rest}"
