"""Fitting a head to cached VGG19 features: RMSProp and cross-entropy (paper, section V.C), VGG19 frozen."""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.data.examples import Example
from model_export.data.folds import hold_out_groups
from model_export.errors import FeatureError, FoldError, TrainingError
from model_export.network.arrays import Probabilities, predictor
from model_export.network.attention import DoublyStochastic
from model_export.network.classifier import average_heads, build_head
from model_export.network.spec import HeadSpec
from model_export.processes import Run, run_here
from model_export.recipe import Recipe, settings
from service.files import write_atomically

LogLine = dict[str, float]
"""One epoch: ``epoch``, ``learning_rate``, ``loss``, ``accuracy`` and, with clips held out, ``val_loss`` and
``val_accuracy``."""


def epoch_line(name: str, line: LogLine) -> str:
    """Format one epoch for people."""
    figures = ", ".join(f"{key} {line[key]:.4g}" for key in line if key != "epoch")
    return f"{name}, epoch {line['epoch']:.0f}: {figures}"


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
    run: Path | None = None,
    tell: Callable[[str, LogLine], None] = lambda phase, line: None,
    how: Run = run_here,
) -> FittedHead:
    """Find the number of epochs on held-out groups, then fit to all examples for that many.

    Args:
        examples: Examples of every class, with mirrored views if ``recipe.flip``.
        classes: Number of classes.
        spec: Which network; its ``channels`` are taken from the features.
        recipe: How to fit it.
        run: Folder for logs (``<phase>.csv``) and checkpoints. An interrupted run continues after its last complete
            epoch and leads to the same head.
        tell: Called after each epoch with the phase (``seed-0``, ``seed-0-holdout``) and its log line.
        how: How each training is run if there are several members; each that is run in this process keeps its
            network's memory.

    Raises:
        TrainingError: There are too few groups to hold some out, the loss or the head is not finite, or ``run`` holds
            damaged checkpoints or those of another network, another recipe or other clips.
        FeatureError: Features cannot be read or are damaged.
        OSError: ``run`` cannot be written.
    """
    one = spec.model_copy(update={"members": 1, "channels": examples[0].load().shape[-1]})
    keep, hold = _hold_out(examples, recipe)
    if run:
        _claim(run, examples, {**settings(spec, recipe), "number of classes": classes})
    apart = how if spec.members > 1 else run_here
    epochs, answers, models = [], [], []
    for seed in range(recipe.seed, recipe.seed + spec.members):
        train = partial(_train, classes=classes, spec=one, recipe=recipe, seed=seed, run=run)
        best = recipe.epochs
        if hold:
            held_out = apart(partial(train, keep, f"seed-{seed}-holdout", hold=hold, epochs=best), tell)
            best = 1 + int(np.argmin([line["val_loss"] for line in held_out.log]))
            answers.append(held_out.answers[best - 1])
        fitted = apart(partial(train, examples, f"seed-{seed}", epochs=best), tell)
        models.append(build_head(classes, one))
        models[-1].set_weights(fitted.weights)
        _check_answer(models[-1], examples[0])
        epochs.append(best)
    accuracy = _accuracy(np.mean(answers, axis=0), hold) if hold else None
    return FittedHead(average_heads(models), tuple(epochs), accuracy, len(hold), len(examples))


def _check_answer(model: keras.Model, example: Example) -> None:
    """Check that a head answers with numbers: weights can be finite, and so large that their products are not."""
    answer = model(example.load()[np.newaxis], training=False)
    if not all(np.isfinite(values).all() for values in answer.values()):
        raise TrainingError("the trained head computes values that are not finite; lower --learning-rate")


def _hold_out(examples: Sequence[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Return the clips to train on, and those of the held-out groups, if any."""
    if not recipe.holdout:
        return list(examples), []
    try:
        return hold_out_groups(examples, recipe.holdout, recipe.seed)
    except FoldError as error:
        raise TrainingError(f"{error}; or hold nothing out with --holdout 0") from error


def _accuracy(answers: Probabilities, examples: Sequence[Example]) -> float:
    return float((answers.argmax(axis=1) == [example.label for example in examples]).mean())


def _claim(run: Path, examples: Sequence[Example], recipe: dict[str, Any]) -> None:
    """Check that the folder's checkpoints are of this recipe and these examples; mark a new folder with them."""
    file = run / "recipe.json"
    clips = [(example.name, example.label, example.group, example.features.name) for example in examples]
    mine = {**recipe, "set of features": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}
    run.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(mine, indent=1), encoding="utf-8")
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{file} is damaged; remove {run}, or choose another --output") from error
    if other := sorted(key for key in mine.keys() | found.keys() if found.get(key) != mine.get(key)):
        raise TrainingError(
            f"the checkpoints in {run} belong to another {', '.join(other)}; "
            "remove the folder, or choose another --output"
        )


def predict_probabilities(model: keras.Model, examples: Sequence[Example], batch_size: int = 16) -> Probabilities:
    """Predict the classes of examples by their plain views, reading features a batch at a time.

    Returns:
        Probabilities, float64 ``(clips, classes)``.
    """
    predict = predictor(model)
    found = []
    for start in range(0, len(examples), batch_size):
        batch = [example.read() for example in examples[start : start + batch_size]]
        # Filled up to a fixed shape, so that the network is compiled once.
        whole = np.stack(batch + batch[:1] * (batch_size - len(batch)), dtype=np.float32)
        found.append(predict(whole).probabilities[: len(batch)].astype(np.float64))
    return np.concatenate(found)


class _Batches(keras.utils.PyDataset):
    """One epoch: the examples in batches of one size, in an order and mirroring drawn by seed and epoch.

    The last batch is filled up from the first, so that the network is compiled for one shape only. ``error`` is why a
    batch could not be read, which TensorFlow reports as an error of its own.
    """

    def __init__(self, examples: Sequence[Example], classes: int, recipe: Recipe, seed: int, epoch: int) -> None:
        super().__init__(workers=2, max_queue_size=4)
        self.examples, self.classes, self.recipe = examples, classes, recipe
        self.error: FeatureError | None = None
        random = np.random.default_rng([seed, epoch])
        self.order = random.permutation(len(examples))
        self.flipped = (random.random(len(examples)) < 0.5) & recipe.flip

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.recipe.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        first = index * self.recipe.batch_size
        chosen = np.take(self.order, range(first, first + self.recipe.batch_size), mode="wrap")
        try:
            stored = [self.examples[i].read(flipped=bool(self.flipped[i])) for i in chosen]
        except FeatureError as error:
            self.error = error
            raise
        features = np.stack(stored, dtype=np.float32)  # stacks and converts in one pass
        targets = np.eye(self.classes, dtype=np.float32)[[self.examples[i].label for i in chosen]]
        return features, targets


@dataclass(frozen=True, slots=True)
class _Trained:
    """A trained member.

    Attributes:
        weights: Its weights after the last epoch.
        log: Its epochs.
        answers: Probabilities of the held-out clips after each epoch; empty if nothing was held out.
    """

    weights: list[npt.NDArray[np.float32]]
    log: list[LogLine]
    answers: list[Probabilities]


def _train(
    examples: Sequence[Example],
    phase: str,
    tell: Callable[[str, LogLine], None],
    *,
    classes: int,
    spec: HeadSpec,
    recipe: Recipe,
    seed: int,
    run: Path | None,
    epochs: int,
    hold: Sequence[Example] = (),
) -> _Trained:
    """Train for ``epochs``, or until the loss on ``hold`` has not improved for ``patience`` epochs."""
    return _Fit(examples, classes, spec, recipe, seed, phase, run, hold).complete(epochs, tell)


class _Fit:
    """The fitting of one member, epoch by epoch; saved in ``run`` after each epoch and resumed from there."""

    def __init__(
        self,
        examples: Sequence[Example],
        classes: int,
        spec: HeadSpec,
        recipe: Recipe,
        seed: int,
        phase: str,
        run: Path | None,
        hold: Sequence[Example],
    ) -> None:
        keras.utils.set_random_seed(seed)
        self.examples, self.classes, self.recipe, self.seed, self.phase = examples, classes, recipe, seed, phase
        self.hold = hold
        self.steps = math.ceil(len(examples) / recipe.batch_size)
        self.log: list[LogLine] = []
        self.answers: list[Probabilities] = []
        kept = ("weights.h5", "csv", *(["answers.npy"] if hold else []))
        self.files = [run / f"{phase}.{suffix}" for suffix in kept] if run else []
        self.model = build_head(classes, spec, feature_dropout=recipe.feature_dropout)
        # The same layers with one output: the attention maps have no target, only a penalty.
        answer = self.model.output["probabilities"]
        if spec.variant == "attention":
            answer = DoublyStochastic(recipe.doubly_stochastic)(answer, self.model.output["attention"])
        self.trainer = keras.Model(self.model.input, answer)
        self.trainer.compile(
            optimizer=keras.optimizers.RMSprop(
                self._learning_rate(), clipnorm=1.0, weight_decay=recipe.weight_decay or None
            ),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
            # An object, because a metric given by name creates its variables in the first trace, and TensorFlow then
            # traces the training step a second time.
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        )
        self.trainer.optimizer.build(self.trainer.trainable_variables)

    def _learning_rate(self) -> float | keras.optimizers.schedules.LearningRateSchedule:
        if self.recipe.schedule == "constant":
            return self.recipe.learning_rate
        return keras.optimizers.schedules.CosineDecay(self.recipe.learning_rate, self.recipe.epochs * self.steps)

    def complete(self, epochs: int, tell: Callable[[str, LogLine], None]) -> _Trained:
        self._resume()
        while len(self.log) < epochs and not self._stale():
            self.log.append(self._epoch())
            self._save()
            tell(self.phase, self.log[-1])
        return _Trained(self.model.get_weights(), self.log, self.answers)

    def _stale(self) -> bool:
        losses = [line["val_loss"] for line in self.log if "val_loss" in line]
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.recipe.patience

    def _epoch(self) -> LogLine:
        epoch = len(self.log)
        line: LogLine = {"epoch": epoch + 1, "learning_rate": float(self.trainer.optimizer.learning_rate)}
        self._seed_dropout(epoch)
        batches = _Batches(self.examples, self.classes, self.recipe, self.seed, epoch)
        try:
            history = self.trainer.fit(batches, shuffle=False, verbose=0)
        except tf.errors.OpError:
            if batches.error:
                raise batches.error from None
            raise
        line |= {key: float(history.history[key][0]) for key in ("loss", "accuracy")}
        if not math.isfinite(line["loss"]):
            raise TrainingError(f"the loss is {line['loss']} after epoch {epoch + 1}; lower --learning-rate")
        # The loss is that of the weights before the last step.
        if not self._finite():
            raise TrainingError(f"the weights are not finite after epoch {epoch + 1}; lower --learning-rate")
        if self.hold:
            found = predict_probabilities(self.model, self.hold)
            of_class = found[np.arange(len(found)), [example.label for example in self.hold]]
            line["val_loss"] = float(-np.log(np.maximum(of_class, 1e-7)).mean())
            line["val_accuracy"] = _accuracy(found, self.hold)
            self.answers.append(found)
        return line

    def _finite(self) -> bool:
        return all(np.isfinite(weights).all() for weights in self.trainer.get_weights())

    def _seed_dropout(self, epoch: int) -> None:
        """Seed an epoch's dropout, so that it is the same after a resume: Keras saves weights without its state."""
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for number, state in enumerate(states):
            state.assign(np.random.default_rng([self.seed, epoch, number]).integers(2**31, size=2))

    def _resume(self) -> None:
        """Load the last complete epoch that was saved, if there is one."""
        if not (self.files and all(file.exists() for file in self.files)):
            return
        weights, log, *answers = self.files
        try:
            with log.open(newline="", encoding="utf-8") as file:
                self.log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            self.answers = [answer for file in answers for answer in np.load(file).astype(np.float64)]
            self.trainer.load_weights(weights)
            epochs = int(self.trainer.optimizer.iterations) // self.steps
            if epochs > len(self.log) or (answers and epochs > len(self.answers)):
                raise ValueError(f"it has fewer epochs than {weights}")
        except (EOFError, KeyError, TypeError, ValueError, OSError) as error:
            names = ", ".join(file.name for file in self.files[1:])
            raise TrainingError(f"{weights}, or {names} beside it, is damaged; remove them, and run again") from error
        if not self._finite():
            raise TrainingError(f"{weights} holds weights that are not finite; remove it, and lower --learning-rate")
        del self.log[epochs:], self.answers[epochs:]

    def _save(self) -> None:
        if not self.files:
            return
        weights, log, *answers = self.files
        write_atomically(log, self._write_log)
        for file in answers:
            write_atomically(file, lambda part: np.save(part, np.array(self.answers, np.float32)))
        # Last: an epoch that is in the other files but not in the weights is trained again.
        write_atomically(weights, self.trainer.save_weights)

    def _write_log(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.log[0].keys())
            writer.writeheader()
            writer.writerows(self.log)
