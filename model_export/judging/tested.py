"""What the command ``test`` found, and its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_export.judging.markdown import code, listing, markdown_table, plain
from model_export.judging.plots import plot_confusion
from model_export.judging.report import COLUMNS, class_lines, confused_lines, percent
from model_export.judging.results import Results
from model_export.judging.tables import classes_csv, predictions_csv
from model_export.reporter import SILENT, Reporter
from model_export.storing import store

FILES = ("test.md", "test.json", "predictions.csv", "classes.csv", "confusion.png")
INTERVALS = (
    "Over all clips at once; precision, recall and F1 are means over the classes that have clips. Intervals come from "
    "leaving out each source video once (jackknife), as those of an evaluation."
)


@dataclass(frozen=True, slots=True)
class Tested:
    """What a test found.

    Attributes:
        results: What was predicted. ``leaked`` marks clips that were trained on, as far as that is known.
        model: What was tested, for people: name, version and what computed the answers.
        data: Name of the folder of clips.
        undecodable: Clips that could not be decoded, with the reason.
        left_out: What may have been meant as a clip, with the reason (see ``find_left_out``).
        unknown: Classes of the folder that the model does not know, whose clips were left out.
        absent: Classes of the model that have no clips.
        trained_on_is_known: Whether it is known which clips were trained on.
    """

    results: Results
    model: str
    data: str
    undecodable: Mapping[str, str]
    left_out: Mapping[str, str]
    unknown: tuple[str, ...]
    absent: tuple[str, ...]
    trained_on_is_known: bool


def write_tested(output: Path, found: Tested, command: str, reporter: Reporter = SILENT) -> None:
    """Write ``test.md``, ``test.json``, ``predictions.csv``, ``classes.csv`` and ``confusion.png``.

    Raises:
        OSError: The folder cannot be written.
    """
    results = found.results
    if results.leaked.any():
        reporter.say(f"warning: {_leak(found)}")
    # The column is empty if that is not known.
    trained_on = results.leaked if found.trained_on_is_known else [""] * len(results.names)
    store(output / "predictions.csv", predictions_csv(results, {"trained on": trained_on}))
    store(output / "classes.csv", classes_csv([results]))
    plot_confusion(_named_or_present(results), output / "confusion.png")
    store(output / "test.json", json.dumps(_facts(found, command), indent=1, allow_nan=False))
    store(output / "test.md", "\n".join(_lines(found, command)) + "\n")


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
        "left_out": dict(found.left_out),
        "unknown_classes": found.unknown,
        "classes_without_clips": found.absent,
        "figures": {
            metric: {"value": one.value, "low": one.low, "high": one.high} for metric, one in results.figures().items()
        },
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
    results = found.results
    return [
        f"# Test on {plain(found.data)}",
        "",
        f"- Command: {code(command)}",
        f"- Model: {plain(found.model)}",
        f"- Clips: {len(results.names)} of {len(set(results.groups))} source videos",
        f"- Trained on: {_trained_on(found)}",
        *(f"- {title}: {listing(names, 'test.json')}" for title, names in _not_tested(found).items() if names),
        "",
        *markdown_table(
            ("figure", "%", "95 % interval"),
            [
                (COLUMNS[metric], percent(one.value), f"{percent(one.low)}–{percent(one.high)}")
                for metric, one in results.figures().items()
            ],
        ),
        "",
        INTERVALS,
        "",
        "## Classes, %",
        "",
        *class_lines(results),
        "",
        "## Most confused",
        "",
        *confused_lines(results),
        "",
        "![Confusion matrix](confusion.png)",
    ]


def _trained_on(found: Tested) -> str:
    if not found.trained_on_is_known:
        return "it is not known which clips"
    return _leak(found) if found.results.leaked.any() else "no clip of the same content"


def _not_tested(found: Tested) -> dict[str, Sequence[str]]:
    return {
        "Undecodable": list(found.undecodable),
        "Left out": list(found.left_out),
        "Classes that the model does not know, left out": found.unknown,
        "Classes of the model without clips": found.absent,
    }
