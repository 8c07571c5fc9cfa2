"""Reading features in batches, to train on and to predict."""

import math
from collections.abc import Sequence

import keras
import numpy as np
import numpy.typing as npt

from model_export.data.examples import Example
from model_export.errors import FeatureError
from model_export.network.arrays import Probabilities, predictor
from model_export.recipe import Recipe


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


class Batches(keras.utils.PyDataset):
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
