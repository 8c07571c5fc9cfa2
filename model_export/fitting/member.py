"""The training of one member of a head: RMSProp and cross-entropy (paper, section V.C), VGG19 frozen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_class_weight

from model_export.data.examples import Example
from model_export.errors import TrainingError
from model_export.fitting.batches import Batches, predict_probabilities
from model_export.fitting.checkpoints import Checkpoint
from model_export.fitting.events import Events
from model_export.fitting.log import LogLine
from model_export.network.arrays import Probabilities
from model_export.network.attention import DoublyStochastic
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.processes import Tell
from model_export.recipe import Recipe
from model_export.reporter import Advance


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained member.

    Attributes:
        weights: Its weights after the last epoch.
        log: Its epochs.
        answers: Probabilities of the held-out clips after each epoch; empty if nothing was held out.
    """

    weights: list[npt.NDArray[np.float32]]
    log: list[LogLine]
    answers: list[Probabilities]


def train(
    examples: Sequence[Example],
    phase: str,
    tell: Tell,
    *,
    classes: int,
    spec: HeadSpec,
    recipe: Recipe,
    seed: int,
    start: list[npt.NDArray[np.float32]] | None,
    run: Path | None,
    epochs: int,
    hold: Sequence[Example] = (),
) -> Trained:
    """Train for ``epochs``, or until the loss on ``hold`` has not improved for ``patience`` epochs.

    It begins with the weights ``start``, or with random ones.

    ``tell`` receives the phase and the log line of each epoch and, before it, how many of the epoch's steps are done.
    """
    return _Member(examples, classes, spec, recipe, seed, phase, start, run, hold).complete(epochs, tell)


def accuracy_of(answers: Probabilities, examples: Sequence[Example]) -> float:
    """Return the share of examples whose most probable class is their own."""
    return float((answers.argmax(axis=1) == [example.label for example in examples]).mean())


class _Member:
    """The fitting of one member, epoch by epoch; saved in ``run`` after each epoch and resumed from there."""

    def __init__(
        self,
        examples: Sequence[Example],
        classes: int,
        spec: HeadSpec,
        recipe: Recipe,
        seed: int,
        phase: str,
        start: list[npt.NDArray[np.float32]] | None,
        run: Path | None,
        hold: Sequence[Example],
    ) -> None:
        keras.utils.set_random_seed(seed)
        self.examples, self.classes, self.recipe, self.seed, self.phase = examples, classes, recipe, seed, phase
        self.hold = hold
        self.class_weights = _class_weights(examples, recipe)
        self.steps = math.ceil(len(examples) / recipe.batch_size)
        self.log: list[LogLine] = []
        self.answers: list[Probabilities] = []
        self.checkpoint = Checkpoint(run, phase) if run else None
        self.model = build_head(classes, spec, feature_dropout=recipe.feature_dropout)
        if start:
            self.model.set_weights(start)
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
            # Objects, because a metric given by name creates its variables in the first trace, and TensorFlow then
            # traces the training step a second time.
            metrics=[
                keras.metrics.CategoricalCrossentropy(name="cross_entropy"),
                keras.metrics.CategoricalAccuracy(name="accuracy"),
            ],
        )
        self.trainer.optimizer.build(self.trainer.trainable_variables)

    def _learning_rate(self) -> float | keras.optimizers.schedules.LearningRateSchedule:
        if self.recipe.schedule == "constant":
            return self.recipe.learning_rate
        return keras.optimizers.schedules.CosineDecay(self.recipe.learning_rate, self.recipe.epochs * self.steps)

    def complete(self, epochs: int, tell: Tell) -> Trained:
        if self.checkpoint:
            self.log, self.answers = self.checkpoint.load(self.trainer)
        events = Events(self.recipe.tensorboard / self.phase, self.log) if self.recipe.tensorboard else None
        while len(self.log) < epochs and not self._stale():
            self.log.append(self._epoch(tell))
            if events:  # before the checkpoint, so that an epoch that could not be written is not left out
                events.write(self.log[-1])
            if self.checkpoint:
                self.checkpoint.save(self.trainer, self.log, self.answers)
            tell(self.phase, self.log[-1])
        return Trained(self.model.get_weights(), self.log, self.answers)

    def _stale(self) -> bool:
        losses = [line["val_loss"] for line in self.log if "val_loss" in line]
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.recipe.patience

    def _epoch(self, tell: Tell) -> LogLine:
        epoch = len(self.log)
        line: LogLine = {"epoch": epoch + 1, "learning_rate": float(self.trainer.optimizer.learning_rate)}
        self._seed_dropout(epoch)
        steps: list[dict[str, float]] = []

        def progress() -> None:
            tell(self.phase, Advance(f"{self.phase}, epoch {epoch + 1}", len(steps), self.steps))

        progress()
        for batch in Batches(self.examples, self.classes, self.recipe, self.seed, epoch):
            steps.append(self.trainer.train_on_batch(*batch, class_weight=self.class_weights, return_dict=True))
            progress()
        line |= {key: float(np.mean([step[key] for step in steps])) for key in ("loss", "cross_entropy", "accuracy")}
        if not math.isfinite(line["loss"]):
            raise TrainingError(f"the loss is {line['loss']} after epoch {epoch + 1}; lower --learning-rate")
        # The loss is that of the weights before the last step.
        if not all(np.isfinite(weights).all() for weights in self.trainer.get_weights()):
            raise TrainingError(f"the weights are not finite after epoch {epoch + 1}; lower --learning-rate")
        if self.hold:
            found = predict_probabilities(self.model, self.hold)
            of_class = found[np.arange(len(found)), [example.label for example in self.hold]]
            line["val_loss"] = float(-np.log(np.maximum(of_class, 1e-7)).mean())
            line["val_accuracy"] = accuracy_of(found, self.hold)
            self.answers.append(found)
        return line

    def _seed_dropout(self, epoch: int) -> None:
        """Seed an epoch's dropout, so that it is the same after a resume: Keras saves weights without its state."""
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for number, state in enumerate(states):
            state.assign(np.random.default_rng([self.seed, epoch, number]).integers(2**31, size=2))


def _class_weights(examples: Sequence[Example], recipe: Recipe) -> dict[int, float] | None:
    """Return the weight of each class in the loss, n / (k · n_c) of n clips in k classes; ``None``: all are 1."""
    if recipe.class_weights == "none":
        return None
    labels = [example.label for example in examples]
    classes = np.unique(labels)
    weights = compute_class_weight(recipe.class_weights, classes=classes, y=labels)
    return dict(zip(classes.tolist(), weights.tolist(), strict=True))
