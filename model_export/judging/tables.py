"""Results as CSV files, for analyses of one's own."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from model_export.judging.results import Results


def predictions_csv(result: Results, facts: Mapping[str, Iterable[object]]) -> str:
    """Return what a contender predicted: a row for each clip, with a column of probabilities for each class.

    Probabilities have nine significant digits, which is all of float32.

    Args:
        result: The predictions.
        facts: What else is known of each clip, by column.
    """
    probabilities = (f"probability of {label}" for label in result.labels)
    truth, predicted = ([result.labels[i] for i in one] for one in (result.truth, result.predicted))
    clips = zip(result.names, result.groups, truth, predicted, *facts.values(), strict=True)
    return _csv(
        ["clip", "group", "label", "predicted", *facts, *probabilities],
        ([*clip, *(f"{p:.9g}" for p in row)] for clip, row in zip(clips, result.probabilities, strict=True)),
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
