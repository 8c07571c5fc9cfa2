"""Results as CSV files, for analyses of one's own."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from model_export.judging.results import Results


def file_name(*names: str) -> str:
    """Return names as the name of a file: lower case, and a hyphen for anything but letters and digits."""
    return ".".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)


def predictions_csv(result: Results) -> str:
    """Return what a contender predicted: a row for each clip, with a column of probabilities for each class.

    Folds are numbered from 1. Probabilities have nine significant digits, which is all of float32.
    """
    header = ["clip", "group", "fold", "label", "predicted", *(f"probability of {label}" for label in result.labels)]
    clips = zip(result.names, result.groups, result.folds, result.truth, result.predicted, strict=True)
    return _csv(
        header,
        (
            [name, group, fold + 1, result.labels[truth], result.labels[predicted], *(f"{p:.9g}" for p in row)]
            for (name, group, fold, truth, predicted), row in zip(clips, result.probabilities, strict=True)
        ),
    )


def classes_csv(results: Sequence[Results]) -> str:
    """Return the figures of each class, as fractions: a row for each contender and class."""
    return _csv(
        ["method", "class", "clips", "source videos", "precision", "recall", "F1"],
        (
            [result.contender, c.label, c.clips, c.videos, c.precision, c.recall, c.f1]
            for result in results
            for c in result.per_class()
        ),
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()
