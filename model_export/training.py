"""Trains a head on cached VGG19 features: RMSProp and cross-entropy (paper, section V.C), VGG19 frozen."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from model_export.features import Features
from model_export.network.attention import AttentionScores
from model_export.network.classifier import Readout, Variant, build_head


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a head is trained.

    ``epochs`` is the most; training stops ``patience`` epochs after the held-out loss was last best (accuracy on a few
    dozen clips jumps too much to choose by). ``holdout`` is the share of each class's groups that is held out to find
    that epoch and the accuracy that is reported.
    """

    variant: Variant = "attention"
    attention_scores: AttentionScores = "content"
    readout: Readout = "mean"
    epochs: int = 40
    patience: int = 6
    batch_size: int = 16
    learning_rate: float = 3e-4
    holdout: float = 0.25
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A clip as training sees it: its features ``(40, 7, 7, channels)``, class index and group."""

    features: Features
    label: int
    group: str


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A head trained on every example, and what a head trained without the held-out groups scored on them."""

    model: keras.Model
    epochs: int
    holdout_accuracy: float
    holdout_clips: int
    training_clips: int


class TrainingError(Exception):
    """Training cannot begin. One sentence with the remedy."""


class _Batches(keras.utils.PyDataset):
    """Batches of examples, float32, shuffled anew each epoch where a seed is given."""

    def __init__(self, examples: Sequence[Example], batch_size: int, shuffle_seed: int | None = None) -> None:
        super().__init__()
        self.examples = list(examples)
        self.batch_size = batch_size
        self.random = random.Random(shuffle_seed) if shuffle_seed is not None else None  # noqa: S311
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        batch = self.examples[index * self.batch_size : (index + 1) * self.batch_size]
        features = np.stack([example.features for example in batch]).astype(np.float32)
        return features, np.array([example.label for example in batch])

    def on_epoch_end(self) -> None:
        if self.random:
            self.random.shuffle(self.examples)


def train(examples: Sequence[Example], classes: int, recipe: Recipe, callbacks: Sequence[Any] = ()) -> TrainingResult:
    """Finds the number of epochs on held-out groups, then trains a head on all examples for as many.

    Args:
        examples: of every class; ``features`` may be memory-mapped.
        classes: number of classes.
        recipe: how.
        callbacks: Keras callbacks for both runs.

    Raises:
        TrainingError: there are too few groups to hold some out.
    """
    keep, hold = _hold_out_groups(examples, recipe)
    history = _fit(keep, hold, classes, recipe, recipe.epochs, callbacks)[1]
    best = int(np.argmin(history["val_loss"]))
    model, _ = _fit(examples, None, classes, recipe, best + 1, callbacks)
    return TrainingResult(model, best + 1, history["val_accuracy"][best], len(hold), len(examples))


def _hold_out_groups(examples: Sequence[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Splits so that no group stands on both sides."""
    labels = [example.label for example in examples]
    groups = [example.group for example in examples]
    folds = max(2, round(1 / recipe.holdout))
    fewest = min(len({e.group for e in examples if e.label == label}) for label in set(labels))
    if fewest < folds:
        raise TrainingError(f"a class has clips of only {fewest} groups, {folds} are needed; give more source videos")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=recipe.seed)
    keep, hold = next(splitter.split(np.zeros(len(labels)), labels, groups))
    return [examples[i] for i in keep], [examples[i] for i in hold]


def _fit(
    examples: Sequence[Example],
    holdout: Sequence[Example] | None,
    classes: int,
    recipe: Recipe,
    epochs: int,
    callbacks: Sequence[Any],
) -> tuple[keras.Model, dict[str, list[float]]]:
    keras.utils.set_random_seed(recipe.seed)
    channels = examples[0].features.shape[-1]
    model = build_head(classes, recipe.variant, recipe.attention_scores, recipe.readout, channels=channels)
    # The same layers, without the attention maps: there is no target for them.
    trainer = keras.Model(model.input, model.output["probabilities"])
    trainer.compile(
        optimizer=keras.optimizers.RMSprop(recipe.learning_rate, clipnorm=1.0),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    stop = keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience)
    history = trainer.fit(
        _Batches(examples, recipe.batch_size, recipe.seed),
        validation_data=_Batches(holdout, recipe.batch_size) if holdout is not None else None,
        epochs=epochs,
        callbacks=[*callbacks, *([stop] if holdout is not None else [])],
        verbose=0,
    )
    return model, history.history
