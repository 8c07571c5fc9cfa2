"""``RNN``: running a cell over the frames of a clip."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("limelight")
class RNN(keras.layers.Layer):
    """Run a cell over all frames and return every state at every frame.

    ``keras.layers.RNN`` feeds a cell one tensor. The cuboids, which need no gradients, would be joined with what does,
    and copied several times in either direction, which takes a third of the training time. This layer takes several
    tensors and lets the cell compute, before the loop, what does not depend on the state. It has the name of Keras'
    layer, because Keras stores weights under the names of classes.

    Args:
        cell: A layer with ``state_size``, the sizes of the states that are returned, ``prepare(sequences, state,
            training)``, which returns tensors ``(batch, frames, …)`` to loop over and the state to begin with, and
            ``call(inputs, state)``, which takes one frame of the former and returns an output and the next state.
        unroll: Write the steps out instead of looping, for export.
    """

    def __init__(self, cell: Any, unroll: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell, self.unroll = cell, unroll

    def build(self, sequences_shape: list[tuple[int | None, ...]], state_shape: Any = None) -> None:
        self.cell.build([(shape[0], *shape[2:]) for shape in sequences_shape])

    def compute_output_shape(
        self, sequences_shape: list[tuple[int | None, ...]], state_shape: Any
    ) -> list[tuple[int | None, ...]]:
        return [(*sequences_shape[0][:2], size) for size in self.cell.state_size]

    def call(self, sequences: list[Any], state: list[Any], training: bool | None = None) -> list[Any]:
        """Compute all states ``(batch, frames, size)`` from sequences ``(batch, frames, …)`` and the state before."""
        count = len(self.cell.state_size)
        frames, state = self.cell.prepare(sequences, state, training)
        if self.unroll:
            states = []
            for number in range(sequences[0].shape[1]):
                _, state = self.cell(keras.tree.map_structure(lambda one, t=number: one[:, t], frames), state)
                states.append(state)
            return [ops.stack(one, axis=1) for one in zip(*states, strict=True)][:count]

        def step(state: list[Any], frame: Any) -> tuple[list[Any], list[Any]]:
            _, state = self.cell(frame, state)
            return state, state

        _, over_time = ops.scan(step, state, keras.tree.map_structure(_swap, frames))
        return [_swap(one) for one in over_time[:count]]

    def get_config(self) -> dict[str, Any]:
        cell = keras.saving.serialize_keras_object(self.cell)
        return {**super().get_config(), "cell": cell, "unroll": self.unroll}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RNN":
        return cls(**{**config, "cell": keras.saving.deserialize_keras_object(config["cell"])})


def _swap(sequence: Any) -> Any:
    """Exchange the axes of clips and frames."""
    return ops.transpose(sequence, (1, 0, *range(2, len(sequence.shape))))
