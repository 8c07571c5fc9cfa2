"""Reading features in batches, to train on and to predict."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from model_export.data.examples import Example
from model_export.network.arrays import Probabilities, StoredCuboids, predictor
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
        whole: Any = np.stack(batch + batch[:1] * (batch_size - len(batch)))
        found.append(predict(whole).probabilities[: len(batch)].astype(np.float64))
    return np.concatenate(found)


class Batches:
    """One epoch: the examples in batches of one size, in an order and mirroring drawn by seed and epoch.

    The last batch is filled up from the first, so that the network is compiled for one shape only. While a batch is
    used, the next one is read.

    Args:
        examples: The examples.
        classes: Number of classes.
        recipe: Its batch size, and whether mirrored views are used.
        seed: Seed of the member.
        epoch: Number of the epoch, from 0.
    """

    def __init__(self, examples: Sequence[Example], classes: int, recipe: Recipe, seed: int, epoch: int) -> None:
        self.examples, self.classes, self.batch_size = examples, classes, recipe.batch_size
        random = np.random.default_rng([seed, epoch])
        self.order = random.permutation(len(examples))
        self.flipped = (random.random(len(examples)) < 0.5) & recipe.flip

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[StoredCuboids, npt.NDArray[np.float32]]]:
        """Yield features ``(batch, 40, 7, 7, channels)`` as they are stored, and one-hot targets ``(batch, classes)``.

        Raises:
            FeatureError: Features cannot be read or are damaged.
        """
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, 0)
            for number in range(1, len(self) + 1):
                batch = ahead.result()
                if number < len(self):
                    ahead = reader.submit(self._read, number)
                yield batch

    def _read(self, number: int) -> tuple[StoredCuboids, npt.NDArray[np.float32]]:
        first = number * self.batch_size
        chosen = np.take(self.order, range(first, first + self.batch_size), mode="wrap")
        features = np.stack([self.examples[i].read(flipped=bool(self.flipped[i])) for i in chosen])
        return features, np.eye(self.classes, dtype=np.float32)[[self.examples[i].label for i in chosen]]
