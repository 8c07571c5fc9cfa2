"""Trains a head on cached VGG19 features: RMSProp and cross-entropy (paper, section V.C), VGG19 frozen."""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import numpy.typing as npt

from model_export.evaluation import EvaluationError, hold_out_groups
from model_export.examples import Example
from model_export.network.attention import AttentionScores, DoublyStochastic
from model_export.network.classifier import Readout, Variant, average_heads, build_head
from model_export.network.scaling import FeatureScaling

Schedule = Literal["cosine", "constant"]
# One line of the log: epoch, loss, accuracy, learning_rate and, with clips held out, val_loss and val_accuracy.
LogLine = dict[str, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a head is trained.

    Attributes:
        variant, attention_scores, readout, feature_scaling, motion: the network (see ``build_head``).
        epochs: the most; the schedule spans them, whether they are all used or not.
        patience: training stops so many epochs after the held-out loss was last best (accuracy on a few dozen clips
            jumps too much to choose by).
        holdout: share of each class's groups that is held out to find the best epoch and the accuracy that is
            reported; the head that is kept is then trained on all clips for as many. 0: all clips, all epochs.
        schedule: ``cosine`` lets the learning rate fall to nought along half a cosine; ``constant`` leaves it.
        feature_dropout: share of VGG19's channels that each clip is shown without.
        doubly_stochastic: weight of the penalty that keeps the attention from leaving parts of a clip out (see
            ``DoublyStochastic``); ``base`` has no attention to keep.
        weight_decay: share of each weight that is taken away a step, times the learning rate.
        label_smoothing: share of each target that is spread over all classes.
        flip: show each clip mirrored half of the time.
        members: heads trained from different seeds, whose answers are averaged in one.
        seed: of weights, dropout, order, mirroring and the groups held out.
    """

    variant: Variant = "attention"
    attention_scores: AttentionScores = "content"
    readout: Readout = "mean"
    feature_scaling: FeatureScaling = "root"
    motion: bool = True
    epochs: int = 16
    patience: int = 4
    batch_size: int = 16
    learning_rate: float = 5e-4
    schedule: Schedule = "cosine"
    feature_dropout: float = 0.5
    doubly_stochastic: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.1
    holdout: float = 0.25
    flip: bool = False
    members: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A head trained on every example, and what heads trained without the held-out groups scored on them.

    ``holdout_accuracy`` is ``None`` where nothing was held out. ``epochs`` is one number a member.
    """

    model: keras.Model
    epochs: tuple[int, ...]
    holdout_accuracy: float | None
    holdout_clips: int
    training_clips: int


class TrainingError(Exception):
    """Training cannot begin or go on. One sentence with the remedy."""


def train(
    examples: Sequence[Example],
    classes: int,
    recipe: Recipe,
    *,
    run: Path | None = None,
    tell: Callable[[str, LogLine], None] = lambda phase, line: None,
) -> TrainingResult:
    """Finds the number of epochs on held-out groups, then trains on all examples for as many.

    Args:
        examples: of every class, with mirrored views where ``recipe.flip``.
        classes: number of classes.
        recipe: how.
        run: folder for logs (``<phase>.csv``) and checkpoints. A run that was interrupted goes on after its last whole
            epoch, and comes to the same head.
        tell: called after each epoch with the phase (``seed-0``, ``seed-0-holdout``) and its log line.

    Raises:
        TrainingError: there are too few groups to hold some out, the loss is no longer finite, or ``run`` holds the
            checkpoints of another recipe or other clips.
        OSError: ``run`` cannot be written.
    """
    keep, hold = _hold_out(examples, recipe)
    if run:
        _claim(run, examples, recipe)
    epochs, held_out, models = [], [], []
    for seed in range(recipe.seed, recipe.seed + recipe.members):
        best = recipe.epochs
        if hold:
            log = _Fit(keep, classes, recipe, seed, f"seed-{seed}-holdout", run).to_the_end(tell, hold)[1]
            best = 1 + int(np.argmin([line["val_loss"] for line in log]))
            held_out.append(log[best - 1]["val_accuracy"])
        fitted, _ = _Fit(examples, classes, recipe, seed, f"seed-{seed}", run).to_the_end(tell, epochs=best)
        models.append(fitted)
        epochs.append(best)
    accuracy = float(np.mean(held_out)) if held_out else None
    return TrainingResult(average_heads(models), tuple(epochs), accuracy, len(hold), len(examples))


def _hold_out(examples: Sequence[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Clips to train on and those of the groups that are held out, if any are."""
    if not recipe.holdout:
        return list(examples), []
    try:
        return hold_out_groups(examples, recipe.holdout, recipe.seed)
    except EvaluationError as error:
        raise TrainingError(f"{error}; --holdout 0 holds none out") from error


def _claim(run: Path, examples: Sequence[Example], recipe: Recipe) -> None:
    """Makes the folder this run's, or finds that it is already."""
    file = run / "recipe.json"
    clips = [(example.name, example.label, example.group, example.features.name) for example in examples]
    mine = {**asdict(recipe), "set of features": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}
    run.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(mine, indent=1))
    try:
        found = dict(json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{file} is damaged; remove {run}, or choose another --output") from error
    if other := sorted(key for key in mine.keys() | found.keys() if found.get(key) != mine.get(key)):
        raise TrainingError(
            f"{file}: its checkpoints are of another {', '.join(other)}; remove {run}, or choose another --output"
        )


def predict(model: keras.Model, examples: Sequence[Example], batch_size: int = 16) -> npt.NDArray[np.float64]:
    """Probabilities, float64 ``(clips, classes)``, of plain views; features are read a batch at a time."""
    found = []
    for start in range(0, len(examples), batch_size):
        batch = [example.read() for example in examples[start : start + batch_size]]
        # Filled up to one shape, for which the network is compiled once.
        whole = np.stack(batch + batch[:1] * (batch_size - len(batch)), dtype=np.float32)
        found.append(np.asarray(model.predict_on_batch(whole)["probabilities"], np.float64)[: len(batch)])
    return np.concatenate(found)


class _Batches(keras.utils.PyDataset):
    """One epoch: the examples in the order and mirroring that seed and epoch give, in batches of one size.

    The last batch is filled up from the first, so that the network is compiled for one shape only.
    """

    def __init__(self, examples: Sequence[Example], classes: int, recipe: Recipe, seed: int, epoch: int) -> None:
        super().__init__(workers=2, max_queue_size=4)
        self.examples, self.classes, self.recipe = examples, classes, recipe
        random = np.random.default_rng([seed, epoch])
        self.order = random.permutation(len(examples))
        self.flipped = (random.random(len(examples)) < 0.5) & recipe.flip

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.recipe.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        first = index * self.recipe.batch_size
        chosen = np.take(self.order, range(first, first + self.recipe.batch_size), mode="wrap")
        stored = [self.examples[i].read(flipped=bool(self.flipped[i])) for i in chosen]
        features = np.stack(stored, dtype=np.float32)  # stacks and converts in one pass
        targets = np.eye(self.classes, dtype=np.float32)[[self.examples[i].label for i in chosen]]
        return features, targets


class _Fit:
    """One head's training on some examples, epoch by epoch; kept in ``run`` after each, and taken up from there."""

    def __init__(
        self, examples: Sequence[Example], classes: int, recipe: Recipe, seed: int, phase: str, run: Path | None
    ) -> None:
        keras.utils.set_random_seed(seed)
        self.examples, self.classes, self.recipe, self.seed, self.phase = examples, classes, recipe, seed, phase
        self.steps = math.ceil(len(examples) / recipe.batch_size)
        self.log: list[LogLine] = []
        self.files = (run / f"{phase}.weights.h5", run / f"{phase}.csv") if run else None
        self.model = build_head(
            classes,
            recipe.variant,
            recipe.attention_scores,
            recipe.readout,
            recipe.feature_scaling,
            recipe.motion,
            feature_dropout=recipe.feature_dropout,
            channels=examples[0].load().shape[-1],
        )
        # The same layers with one output: there is no target for the attention maps, only their penalty.
        answer = self.model.output["probabilities"]
        if recipe.variant == "attention":
            answer = DoublyStochastic(recipe.doubly_stochastic)(answer, self.model.output["attention"])
        self.trainer = keras.Model(self.model.input, answer)
        self.trainer.compile(
            optimizer=keras.optimizers.RMSprop(
                self._learning_rate(), clipnorm=1.0, weight_decay=recipe.weight_decay or None
            ),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
            # As an object, since a metric given by name makes its variables in the first trace, and TensorFlow then
            # traces the training step a second time.
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        )
        self.trainer.optimizer.build(self.trainer.trainable_variables)

    def _learning_rate(self) -> float | keras.optimizers.schedules.LearningRateSchedule:
        if self.recipe.schedule == "constant":
            return self.recipe.learning_rate
        return keras.optimizers.schedules.CosineDecay(self.recipe.learning_rate, self.recipe.epochs * self.steps)

    def to_the_end(
        self,
        tell: Callable[[str, LogLine], None],
        hold: Sequence[Example] = (),
        epochs: int | None = None,
    ) -> tuple[keras.Model, list[LogLine]]:
        """Trains for ``epochs``, or until the loss on ``hold`` has not been better for ``patience`` epochs."""
        self._take_up()
        while len(self.log) < (epochs or self.recipe.epochs) and not self._stale():
            self.log.append(self._epoch(hold))
            self._keep()
            tell(self.phase, self.log[-1])
        return self.model, self.log

    def _stale(self) -> bool:
        losses = [line["val_loss"] for line in self.log if "val_loss" in line]
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.recipe.patience

    def _epoch(self, hold: Sequence[Example]) -> LogLine:
        epoch = len(self.log)
        line: LogLine = {"epoch": epoch + 1, "learning_rate": float(self.trainer.optimizer.learning_rate)}
        self._seed_dropout(epoch)
        batches = _Batches(self.examples, self.classes, self.recipe, self.seed, epoch)
        history = self.trainer.fit(batches, shuffle=False, verbose=0)
        line |= {key: float(history.history[key][0]) for key in ("loss", "accuracy")}
        if not math.isfinite(line["loss"]):
            raise TrainingError(f"the loss is {line['loss']} after epoch {epoch + 1}; take a smaller --learning-rate")
        if hold:
            named = predict(self.model, hold)
            labels = np.array([example.label for example in hold])
            right = named[np.arange(len(labels)), labels]
            line["val_loss"] = float(-np.log(np.maximum(right, 1e-7)).mean())
            line["val_accuracy"] = float((named.argmax(axis=1) == labels).mean())
        return line

    def _seed_dropout(self, epoch: int) -> None:
        """Makes an epoch's dropout depend on nothing before it: Keras does not keep its state with the weights."""
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for number, state in enumerate(states):
            state.assign(np.random.default_rng([self.seed, epoch, number]).integers(2**31, size=2))

    def _take_up(self) -> None:
        """Goes back to the last whole epoch that was kept, if one was."""
        if self.files and all(file.exists() for file in self.files):
            weights, log = self.files
            with log.open(newline="") as file:
                self.log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            self.trainer.load_weights(weights)
            del self.log[int(self.trainer.optimizer.iterations) // self.steps :]

    def _keep(self) -> None:
        if not self.files:
            return
        weights, log = self.files
        part = log.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.log[0].keys())
            writer.writeheader()
            writer.writerows(self.log)
        part.replace(log)
        # After the log: an epoch whose line is there and whose weights are not is done again.
        part = weights.with_name(f"part-{weights.name}")
        self.trainer.save_weights(part)
        part.replace(weights)
