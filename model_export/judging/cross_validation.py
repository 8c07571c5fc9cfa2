"""Training and testing contenders on folds.

Nothing here depends on how a contender is trained: it is a function from training and test clips to probabilities.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.data.examples import Example, fingerprint, npy_bytes
from model_export.data.folds import Fold
from model_export.errors import EvaluationError
from model_export.judging.results import Results
from model_export.network.arrays import Probabilities
from model_export.reporter import SILENT, Reporter
from model_export.storing import file_name, store

Fit = Callable[[Sequence[Example], Sequence[Example]], Probabilities]
"""Trains on the first clips and returns probabilities ``(clips, classes)`` of the second."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A method that can be trained and judged.

    Attributes:
        name: Name for reports.
        fit: Trains and predicts; must depend on nothing but its arguments and the settings in ``recipe``.
        recipe: Every setting that the probabilities depend on. Predictions kept from an interrupted run are reused only
            under the same recipe.
    """

    name: str
    fit: Fit
    recipe: str


def cross_validate(
    examples: Sequence[Example],
    folds: Sequence[Fold],
    contenders: Sequence[Contender],
    labels: Sequence[str],
    *,
    kept: Path | None = None,
    reporter: Reporter = SILENT,
) -> list[Results]:
    """Train and test every contender on every fold.

    Args:
        examples: Clips of all classes.
        folds: The folds; an official split is a single one.
        contenders: The methods; all get the same folds.
        labels: Names of the classes, in index order.
        kept: Folder to keep predictions in, one file per contender and fold, so that an interrupted run continues where
            it stopped. Predictions are reused only for the same contender, recipe, number of classes and clips with
            feature files of the same names, which identify encoder and frames as well (see ``FeatureCache``).
        reporter: Receives the beginning and end of each training.

    Returns:
        The results of each contender, in order, with clips in the order in which the folds test them.

    Raises:
        EvaluationError: A contender's probabilities are not finite, or a kept file is damaged.
        ValueError: A contender's probabilities are not of shape ``(clips, classes)``.
    """
    tested = [examples[i] for fold in folds for i in fold.test]
    numbers = [number for number, fold in enumerate(folds) for _ in fold.test]
    trained_on = [{examples[i].group for i in fold.train} for fold in folds]

    def judge(contender: Contender) -> Results:
        found = []
        for number, fold in enumerate(folds, 1):
            train, test = [examples[i] for i in fold.train], [examples[i] for i in fold.test]
            file = kept / _file_name(contender, len(labels), train, test) if kept else None

            def say(event: str, number: int = number) -> None:
                reporter.say(f"{contender.name}, fold {number}: {event}")

            found.append(_predict(contender, train, test, len(labels), file, say))
        return Results(
            contender=contender.name,
            recipe=contender.recipe,
            labels=tuple(labels),
            names=tuple(example.name for example in tested),
            groups=tuple(example.group for example in tested),
            truth=np.array([example.label for example in tested]),
            probabilities=np.concatenate(found),
            folds=np.array(numbers),
            leaked=np.array([example.group in trained_on[i] for example, i in zip(tested, numbers, strict=True)]),
        )

    return [judge(contender) for contender in contenders]


def _predict(
    contender: Contender,
    train: Sequence[Example],
    test: Sequence[Example],
    classes: int,
    file: Path | None,
    say: Callable[[str], None],
) -> Probabilities:
    """Return the probabilities of one fold from ``file``; if it is missing, compute and keep them."""
    if file and file.exists():
        say("reused")
        return _read(file, (len(test), classes))
    say("started")
    found = contender.fit(train, test)
    if found.shape != (len(test), classes):
        raise ValueError(f"{contender.name} returned {found.shape} for {len(test)} clips and {classes} classes")
    if not np.isfinite(found).all():
        raise EvaluationError(f"the training of {contender.name} diverged; lower its learning rate")
    if file:
        store(file, npy_bytes(found))
    say("finished")
    return found


def _file_name(contender: Contender, classes: int, train: Sequence[Example], test: Sequence[Example]) -> str:
    """Return a file name that is unique to the contender, its recipe, the classes, and the clips and their features."""
    facts = json.dumps([contender.name, contender.recipe, classes, fingerprint(train), fingerprint(test)])
    return f"{file_name(contender.name)}.{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npy"


def _read(file: Path, shape: tuple[int, int]) -> Probabilities:
    try:
        found: Probabilities = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(f"{file} cannot be read ({error}); remove it") from error
    if found.shape != shape:
        raise EvaluationError(f"{file} holds predictions of shape {found.shape} instead of {shape}; remove it")
    if not np.isfinite(found).all():
        raise EvaluationError(f"{file} holds predictions that are not finite numbers; remove it")
    return found
