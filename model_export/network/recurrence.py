"""``RNN``: running a cell over the frames of a clip."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("limelight")
class RNN(keras.layers.Layer):
    """Run a cell over all frames and return what it puts out at every frame.

    ``keras.layers.RNN`` feeds a cell one tensor. The cuboids, which need no gradients, would be joined with what does,
    and copied several times in either direction. This layer takes several tensors and lets the cell compute, before the
    loop, what does not depend on the state. It has the name of Keras' layer, because Keras stores weights under the
    names of classes.

    Args:
        cell: A layer with ``output_size``; ``prepare(sequences, state, training)``, which returns tensors ``(batch,
            frames, …)`` to loop over, alone or in a list, and the state to begin with; and ``call(inputs, state)``,
            which takes one frame of the former and returns the output and the next state.
        unroll: Write the steps out instead of looping, for export.
    """

    def __init__(self, cell: Any, unroll: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell, self.unroll = cell, unroll

    def build(self, sequences_shape: list[tuple[int | None, ...]], state_shape: Any = None) -> None:
        if not self.cell.built:
            self.cell.build([(shape[0], *shape[2:]) for shape in sequences_shape])

    def compute_output_shape(
        self, sequences_shape: list[tuple[int | None, ...]], state_shape: Any = None
    ) -> tuple[int | None, ...]:
        return (*sequences_shape[0][:2], self.cell.output_size)

    def call(self, sequences: list[Any], state: list[Any], training: bool | None = None) -> Any:
        """Compute ``(batch, frames, output)`` from sequences ``(batch, frames, …)`` and the state before."""
        frames, state = self.cell.prepare(sequences, state, training)
        if not self.unroll:
            return _swap(self._scan(keras.tree.map_structure(_swap, frames), state))
        outputs = []
        for number in range(sequences[0].shape[1]):
            output, state = self.cell(keras.tree.map_structure(lambda one, t=number: one[:, t], frames), state)
            outputs.append(output)
        return ops.stack(outputs, axis=1)

    def _scan(self, frames: Any, state: list[Any]) -> Any:
        """Run the cell in a loop over frames ``(frames, batch, …)``; return its outputs in the same layout."""

        def step(carried: Any, frame: Any) -> tuple[Any, Any]:
            after = self.cell(frame, carried[1])
            return after, after

        # Keras' scan returns what is carried, so that the output is carried, too.
        first = ops.zeros((ops.shape(state[0])[0], self.cell.output_size), dtype=state[0].dtype)
        _, (outputs, _) = ops.scan(step, (first, state), frames)
        return outputs

    def get_config(self) -> dict[str, Any]:
        cell = keras.saving.serialize_keras_object(self.cell)
        return {**super().get_config(), "cell": cell, "unroll": self.unroll}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RNN":
        return cls(**{**config, "cell": keras.saving.deserialize_keras_object(config["cell"])})


def _swap(sequence: Any) -> Any:
    """Exchange the axes of clips and frames."""
    return ops.transpose(sequence, (1, 0, *range(2, len(sequence.shape))))
