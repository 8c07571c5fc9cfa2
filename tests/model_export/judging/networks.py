"""Hand-made heads whose predictions and attention are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.judging.deletion import PathsPredict
from model_export.network.arrays import Predict
from model_export.network.spec import CELLS
from service.model.bundle import Outputs

Array = npt.NDArray[np.float32]
STEPS, CHANNELS = 40, 3
TELLING = (2, 5)  # the only cell that the networks look at


def clips(count: int = 12) -> list[Array]:
    """Noise, with a bright cell that determines the class."""
    rng = np.random.default_rng(0)
    cuboids = rng.uniform(0, 0.1, (count, STEPS, 7, 7, CHANNELS)).astype(np.float32)
    cuboids[:, :, *TELLING, 0] = rng.uniform(2, 3, (count, STEPS))
    return list(cuboids)


def network(attention_of: Callable[[Array], Array]) -> Predict:
    """Class 1 is as probable as the telling cell is bright, averaged over the frames."""

    def predict(cuboids: Array) -> Outputs:
        probability = np.tanh(cuboids[:, :, *TELLING, 0].mean(axis=1))
        return Outputs(np.stack([1 - probability, probability], axis=1), attention_of(cuboids))

    return predict


def by_attention(predict: Predict) -> tuple[PathsPredict, PathsPredict, PathsPredict]:
    """A head that reads the clip by attention's path only, its negative control, and the same with uniform maps."""

    def ignorant(attended: Array, others: Array) -> Outputs:
        return Outputs(np.full((len(attended), 2), 0.5, np.float32), predict(attended).attention)

    return lambda attended, others: predict(attended), ignorant, ignorant


def by_other_paths(predict: Predict) -> tuple[PathsPredict, PathsPredict, PathsPredict]:
    """A head whose maps have no effect, which is its own negative control."""

    def head(attended: Array, others: Array) -> Outputs:
        return Outputs(predict(others).probabilities, predict(attended).attention)

    return head, head, head


def on_brightness(cuboids: Array) -> Array:
    return normalised(cuboids.sum(axis=-1))


def on_darkness(cuboids: Array) -> Array:
    return normalised(1 / cuboids.sum(axis=-1))


def normalised(scores: npt.NDArray[Any]) -> Array:
    return np.asarray(scores / scores.sum(axis=(2, 3), keepdims=True), np.float32)


def uniform(cuboids: Array) -> Array:
    return np.full(cuboids.shape[:-1], 1 / CELLS, np.float32)


def at(row: int, column: int) -> Callable[[Array], Array]:
    def attention(cuboids: Array) -> Array:
        maps = np.zeros(cuboids.shape[:-1], np.float32)
        maps[:, :, row, column] = 1
        return maps

    return attention


def steady(cuboids: Array) -> Array:
    maps = np.zeros((7, 7), np.float32)
    maps[:2, :5] = 0.1
    return np.broadcast_to(maps, cuboids.shape[:-1])
