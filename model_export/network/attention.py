"""Soft attention around the sLSTM (paper, section IV and Fig. 6): where to look next, given what was seen so far."""

from typing import Any

import keras
from keras import ops

from model_export.network.slstm import SLSTMCell
from model_export.network.spec import CELLS, AttentionScores


@keras.saving.register_keras_serializable("limelight")
class DoublyStochastic(keras.Layer):
    """Add a penalty to the loss if attention leaves cells out over a whole clip (Xu, arXiv 1502.03044, eq 14).

    Each map sums to 1 over its cells; over the clip, each cell should get an equal share as well. The penalty is weight
    · mean over cells of (1 − cells · mean_t α_{t,i})², which is Xu's Σ_i (1 − Σ_t α_{t,i})² for any number of cells and
    steps. The layer returns the probabilities unchanged.

    Args:
        weight: Weight of the penalty in the loss.
    """

    def __init__(self, weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = weight

    def call(self, probabilities: Any, maps: Any) -> Any:
        """Add the penalty of maps ``(batch, frames, 7, 7)``; return the probabilities."""
        cells = maps.shape[2] * maps.shape[3]
        self.add_loss(self.weight * ops.mean(ops.square(1.0 - cells * ops.mean(maps, axis=1))))
        return probabilities

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable("limelight")
class AttentionSLSTMCell(keras.Layer):
    """Weigh the cells of X_t according to h_{t-1}, and feed their weighted mean to an sLSTM cell.

    With ``state`` scores, the paper's text taken literally, scores depend on X_t through its mean only::

        scores = linear(mlp3([mlp4(mean_i X_{t,i}); mlp2(h_{t-1})]))             all 49 at once

    With ``content`` scores, as in Xu (arXiv 1502.03044) and in the code published with Sharma (arXiv 1511.04119), each
    cell is scored by what it shows::

        score_i = linear(tanh(mlp2(h_{t-1}) + mlp3(X_{t,i}) + mlp4(mean_i X_{t,i})))

    In both, α = softmax(scores) and the sLSTM's input is Σ_i α_i X_{t,i}. A second input that is not attended to must
    be projected to the sLSTM's gates already (see ``SLSTMCell``). A Keras RNN takes and returns one tensor per step:
    the input is the flattened cells followed by the 4 · units values of the second input, if there is one; the output
    is h_t followed by α_t.

    The states are the sLSTM's h, c, n, m; then, for dropout in training, one mask ``(batch, attention_units)`` for each
    of mlp2, mlp3 and mlp4, carried unchanged from step to step, so that a sequence has one mask. Without masks nothing
    is dropped.

    Args:
        units: Size of h.
        attention_units: Size of mlp2, mlp3 and mlp4 (Table 2: 128).
        scores: ``state`` or ``content``.
        cells: Number of cells.
        beside: Number of values of the second input before its projection; 0 if there is none.
    """

    def __init__(
        self,
        units: int = 256,
        attention_units: int = 128,
        scores: AttentionScores = "content",
        cells: int = CELLS,
        beside: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if scores not in ("state", "content"):
            raise ValueError(f"scores must be 'state' or 'content', not {scores!r}")
        self.units, self.attention_units, self.scores = units, attention_units, scores
        self.cells, self.beside = cells, beside
        activation = "tanh" if scores == "state" else None
        self.mlp2 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp2")
        self.mlp3 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp3")
        self.mlp4 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp4")
        self.slstm = SLSTMCell(units, projected=True, dtype=self.dtype_policy, name="slstm")
        self.state_size = self.slstm.state_size

    def build(self, input_shape: tuple[Any, ...]) -> None:
        gates = 4 * self.units
        channels = (input_shape[-1] - (gates if self.beside else 0)) // self.cells
        state = self.scores == "state"
        self.mlp2.build((None, self.units))
        self.mlp3.build((None, 2 * self.attention_units) if state else (None, self.cells, channels))
        self.mlp4.build((None, channels))
        self.linear = keras.layers.Dense(self.cells if state else 1, dtype=self.dtype_policy, name="linear")
        self.linear.build((None, self.attention_units))
        # W_x of both inputs is one matrix; this part of it is drawn with the limits of the whole (Glorot).
        limit = (6 / (channels + self.beside + gates)) ** 0.5
        self.kernel = self.add_weight(
            shape=(channels, gates), initializer=keras.initializers.RandomUniform(-limit, limit), name="kernel"
        )
        self.slstm.build((None, gates))
        self.output_size = self.units + self.cells

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        return self.slstm.get_initial_state(batch_size)

    def call(self, inputs: Any, states: list[Any], training: bool | None = None) -> tuple[Any, list[Any]]:
        """Compute [h_t; α_t] ``(batch, units + cells)`` and the next states from one step's input."""
        h, c, n, m, *masks = states
        width = self.cells * self.kernel.shape[0]
        # VGG19 is frozen, so its cells need no gradients; computing them would take a fifth of the training time.
        cells = ops.reshape(ops.stop_gradient(inputs[:, :width]), (-1, self.cells, self.kernel.shape[0]))
        score = self._state_scores if self.scores == "state" else self._content_scores
        alpha = ops.softmax(score(cells, h, masks if training else []))
        projected = ops.matmul(ops.squeeze(ops.matmul(alpha[:, None, :], cells), axis=1), self.kernel)
        if self.beside:
            projected += inputs[:, width:]
        h, next_states = self.slstm(projected, [h, c, n, m])
        return ops.concatenate([h, alpha], axis=-1), [*next_states, *masks]

    def _state_scores(self, cells: Any, h: Any, masks: list[Any]) -> Any:
        mask2, mask3, mask4 = masks or (1.0, 1.0, 1.0)
        p = self.mlp4(ops.mean(cells, axis=1)) * mask4
        q = self.mlp2(h) * mask2
        return self.linear(self.mlp3(ops.concatenate([p, q], axis=-1)) * mask3)

    def _content_scores(self, cells: Any, h: Any, masks: list[Any]) -> Any:
        mask2, mask3, mask4 = (mask[:, None, :] for mask in masks) if masks else (1.0, 1.0, 1.0)
        asked = (
            ops.expand_dims(self.mlp2(h), 1) * mask2 + ops.expand_dims(self.mlp4(ops.mean(cells, axis=1)), 1) * mask4
        )
        # On two axes: a Dense layer on three is exported as a Tensordot with all its shape arithmetic.
        count, channels = cells.shape[1:]
        shown = ops.reshape(self.mlp3(ops.reshape(cells, (-1, channels))), (-1, count, self.attention_units))
        seen = ops.tanh(asked + shown * mask3)
        return ops.reshape(self.linear(ops.reshape(seen, (-1, self.attention_units))), (-1, count))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "attention_units": self.attention_units,
            "scores": self.scores,
            "cells": self.cells,
            "beside": self.beside,
        }
