"""Fitting a head: choosing the number of epochs on held-out groups, then training on all examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model_export.data.examples import Example
from model_export.data.folds import hold_out_groups
from model_export.errors import FoldError, TrainingError
from model_export.fitting.checkpoints import check_claim, claim
from model_export.fitting.log import LogLine
from model_export.fitting.member import accuracy_of
from model_export.fitting.member import train as train_member
from model_export.fitting.start import Start, Weights
from model_export.network.classifier import average_heads, build_head
from model_export.network.spec import HeadSpec
from model_export.processes import Run, run_here
from model_export.recipe import Recipe, settings
from model_export.reporter import Advance


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head fitted to all examples, and the accuracy of heads that were fitted without the held-out groups.

    Attributes:
        model: The head.
        epochs: Number of epochs of each member.
        holdout_accuracy: Accuracy on the held-out groups of the members' mean answer, each member at its best epoch;
            ``None`` if nothing was held out.
        holdout_clips: Number of clips held out.
        training_clips: Number of clips that ``model`` was fitted to.
    """

    model: keras.Model
    epochs: tuple[int, ...]
    holdout_accuracy: float | None
    holdout_clips: int
    training_clips: int


def fit_head(
    examples: Sequence[Example],
    classes: int,
    spec: HeadSpec,
    recipe: Recipe,
    *,
    start: Start | None = None,
    run: Path | None = None,
    tell: Callable[[str, LogLine], None] = lambda phase, line: None,
    progress: Callable[[Advance], None] = lambda advance: None,
    how: Run = run_here,
) -> FittedHead:
    """Find the number of epochs on held-out groups, then fit to all examples for that many.

    Args:
        examples: Examples of every class, with mirrored views if ``recipe.flip``.
        classes: Number of classes.
        spec: Which network; its ``channels`` are taken from the features.
        recipe: How to fit it.
        start: What to begin with; random weights if not given.
        run: Folder for logs (``<phase>.csv``) and checkpoints. An interrupted run continues after its last complete
            epoch and leads to the same head.
        tell: Called after each epoch with the phase (``seed-0``, ``seed-0-holdout``) and its log line.
        progress: Called after each step with the number of steps of the epoch that are done.
        how: How each training is run if there are several members; each that is run in this process keeps its
            network's memory.

    Raises:
        TrainingError: There are too few groups to hold some out, the loss or the head is not finite, or ``run`` holds
            damaged checkpoints or those of another network, another recipe or other clips.
        FeatureError: Features cannot be read or are damaged.
        OSError: ``run`` cannot be written.
    """
    one = _one_member(spec, examples)
    keep, hold = hold_out(examples, recipe)
    if run:
        claim(run, examples, _claimed(classes, spec, recipe, start))

    def hear(phase: str, told: LogLine | Advance) -> None:
        progress(told) if isinstance(told, Advance) else tell(phase, told)

    apart = how if spec.members > 1 else run_here
    epochs, answers, models = [], [], []
    for member in range(spec.members):
        seed = recipe.seed + member
        first = _first_weights(start, member, classes, one, seed) if start else None
        train = partial(train_member, classes=classes, spec=one, recipe=recipe, seed=seed, start=first, run=run)
        best = recipe.epochs
        if hold:
            held_out = apart(partial(train, keep, f"seed-{seed}-holdout", hold=hold, epochs=best), hear)
            best = 1 + int(np.argmin([line["val_loss"] for line in held_out.log]))
            answers.append(held_out.answers[best - 1])
        fitted = apart(partial(train, examples, f"seed-{seed}", epochs=best), hear)
        models.append(build_head(classes, one))
        models[-1].set_weights(fitted.weights)
        _check_answer(models[-1], examples[0])
        epochs.append(best)
    accuracy = accuracy_of(np.mean(answers, axis=0), hold) if hold else None
    return FittedHead(average_heads(models), tuple(epochs), accuracy, len(hold), len(examples))


def _first_weights(start: Start, member: int, classes: int, spec: HeadSpec, seed: int) -> Weights:
    keras.utils.set_random_seed(seed)
    return start.weights(member, build_head(classes, spec))


def training_sizes(examples: Sequence[Example], classes: int, spec: HeadSpec, recipe: Recipe) -> list[int]:
    """Return the number of weights of each training that ``fit_head`` runs."""
    weights = build_head(classes, _one_member(spec, examples)).count_params()
    return [weights] * spec.members * (2 if recipe.holdout else 1)


def _one_member(spec: HeadSpec, examples: Sequence[Example]) -> HeadSpec:
    return spec.model_copy(update={"members": 1, "channels": examples[0].load().shape[-1]})


def _check_answer(model: keras.Model, example: Example) -> None:
    """Check that a head answers with numbers: weights can be finite, and so large that their products are not."""
    answer = model(example.load()[np.newaxis], training=False)
    if not all(np.isfinite(values).all() for values in answer.values()):
        raise TrainingError("the trained head computes values that are not finite; lower --learning-rate")


def check_fit(
    examples: Sequence[Example], classes: int, spec: HeadSpec, recipe: Recipe, run: Path, start: Start | None = None
) -> None:
    """Check what ``fit_head`` would refuse, as far as that can be known without features.

    Raises:
        TrainingError: There are too few groups to hold some out, or ``run`` holds checkpoints of another network,
            another recipe, another number of classes or another head to begin with.
    """
    check_claim(run, _claimed(classes, spec, recipe, start))
    hold_out(examples, recipe)


def _claimed(classes: int, spec: HeadSpec, recipe: Recipe, start: Start | None) -> dict[str, Any]:
    began_with = {"head to begin with": start.origin["identity"]} if start else {}
    return {**settings(spec, recipe), "number of classes": classes, **began_with}


def hold_out(examples: Sequence[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Return the clips to train on, and those of the held-out groups, if any.

    Raises:
        TrainingError: There are too few groups to hold some out.
    """
    if not recipe.holdout:
        return list(examples), []
    try:
        return hold_out_groups(examples, recipe.holdout, recipe.seed)
    except FoldError as error:
        raise TrainingError(f"{error}; or hold nothing out with --holdout 0") from error
