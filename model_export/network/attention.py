"""Soft attention around the sLSTM (paper, section IV and Fig. 6): where to look next, given what was seen so far."""

from typing import Any, get_args

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
class AttentionSLSTMCell(keras.layers.Layer):
    """Weigh the cells of X_t according to h_{t-1}, and feed their weighted mean to an sLSTM cell.

    With ``state`` scores, the paper's text taken literally, scores depend on X_t through its mean only::

        scores = linear(mlp3([mlp4(mean_i X_{t,i}); mlp2(h_{t-1})]))             all 49 at once

    With ``content`` scores, as in Xu (arXiv 1502.03044) and in the code published with Sharma (arXiv 1511.04119), each
    cell is scored by what it shows::

        score_i = linear(tanh(mlp2(h_{t-1}) + mlp3(X_{t,i}) + mlp4(mean_i X_{t,i})))

    In both, α = softmax(scores) and the sLSTM's input is Σ_i α_i X_{t,i}. With ``uniform`` scores, a control that reads
    the same and attends to nothing, α_i = 1 / 49. A second input that is not attended to must be projected to the
    sLSTM's gates already (see ``SLSTMCell``).

    For ``RNN``. The sequences are the cells ``(batch, frames, 49, channels)`` and the second input ``(batch, frames,
    4 · units)``, if there is one. The state is the sLSTM's h, c, n and m; then, for dropout in training, one mask
    ``(batch, attention_units)`` for each of mlp2, mlp3 and mlp4, so that a clip has one mask. Without masks nothing is
    dropped.

    Args:
        units: Size of h.
        attention_units: Size of mlp2, mlp3 and mlp4 (Table 2: 128).
        scores: ``state``, ``content`` or ``uniform``.
        beside: Number of values of the second input before its projection; 0 if there is none.
    """

    def __init__(
        self,
        units: int = 256,
        attention_units: int = 128,
        scores: AttentionScores = "content",
        beside: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if scores not in get_args(AttentionScores):
            raise ValueError(f"scores must be one of {', '.join(get_args(AttentionScores))}, not {scores!r}")
        self.units, self.attention_units, self.scores, self.beside = units, attention_units, scores, beside
        if scores != "uniform":
            activation = "tanh" if scores == "state" else None
            self.mlp2 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp2")
            self.mlp3 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp3")
            self.mlp4 = keras.layers.Dense(attention_units, activation, dtype=self.dtype_policy, name="mlp4")
        self.slstm = SLSTMCell(units, projected=True, dtype=self.dtype_policy, name="slstm")
        self.output_size = units + CELLS

    def build(self, input_shape: list[tuple[Any, ...]]) -> None:
        gates, channels = 4 * self.units, input_shape[0][-1]
        if self.scores != "uniform":
            self.mlp2.build((None, self.units))
            self.mlp3.build((None, 2 * self.attention_units if self.scores == "state" else channels))
            self.mlp4.build((None, channels))
            self.linear = keras.layers.Dense(
                CELLS if self.scores == "state" else 1, dtype=self.dtype_policy, name="linear"
            )
            self.linear.build((None, self.attention_units))
        # W_x of both inputs is one matrix; this part of it is drawn with the limits of the whole (Glorot).
        limit = (6 / (channels + self.beside + gates)) ** 0.5
        self.kernel = self.add_weight(
            shape=(channels, gates), initializer=keras.initializers.RandomUniform(-limit, limit), name="kernel"
        )
        self.slstm.build((None, gates))

    def prepare(
        self, sequences: list[Any], state: list[Any], training: bool | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Compute for all frames what does not depend on h; return what to loop over, and the state to begin with."""
        # VGG19 is frozen, so its cells need no gradients; computing them would take a fifth of the training time.
        cells, beside = ops.stop_gradient(sequences[0]), sequences[1:]
        mean = ops.mean(cells, axis=2)
        h, c, n, m, *masks = state
        mask2, mask3, mask4 = masks if masks and training else [None] * 3
        if self.scores == "uniform":
            gates = _matmul(mean, self.kernel)
            return [gates + beside[0] if beside else gates], [h, c, n, m]
        mean = _dropped(self.mlp4.activation(_matmul(mean, self.mlp4.kernel) + self.mlp4.bias), mask4)
        if self.scores == "state":
            seen = _matmul(mean, self.mlp3.kernel[: self.attention_units]) + self.mlp3.bias
        else:
            # The biases go to the mean first, which has fewer values.
            for mask, mlp in ((mask2, self.mlp2), (mask3, self.mlp3)):
                mean = mean + _dropped(ops.broadcast_to(mlp.bias, ops.shape(mean)), mask)
            seen = _dropped(_matmul(cells, self.mlp3.kernel), mask3) + mean[:, :, None]
        return [cells, seen, *beside], [h, c, n, m, *([] if mask2 is None else [mask2, mask3])]

    def call(self, inputs: list[Any], state: list[Any]) -> tuple[Any, list[Any]]:
        """Compute [h_t; α_t] ``(batch, units + 49)`` and the next state from a frame of what ``prepare`` returned."""
        h, c, n, m, *masks = state
        if self.scores == "uniform":
            gates = inputs[0]
            alpha = ops.full((ops.shape(gates)[0], CELLS), 1 / CELLS, dtype=gates.dtype)
        else:
            cells, seen, *beside = inputs
            alpha = ops.softmax(self._scores(seen, h, *(masks or (None, None))))
            gates = ops.matmul(ops.squeeze(ops.matmul(alpha[:, None, :], cells), axis=1), self.kernel)
            gates = gates + beside[0] if beside else gates
        h, state = self.slstm(gates, [h, c, n, m])
        return ops.concatenate([h, alpha], axis=-1), [*state, *masks]

    def _scores(self, seen: Any, h: Any, mask2: Any, mask3: Any) -> Any:
        """Compute the scores of all cells from h_{t-1} and from ``seen``, the other summands inside the tanh."""
        if self.scores == "state":
            asked = ops.matmul(_dropped(self.mlp2(h), mask2), self.mlp3.kernel[self.attention_units :])
            return self.linear(_dropped(ops.tanh(seen + asked), mask3))
        asked = _dropped(ops.matmul(h, self.mlp2.kernel), mask2)
        return ops.squeeze(_matmul(ops.tanh(seen + asked[:, None]), self.linear.kernel) + self.linear.bias, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "attention_units": self.attention_units,
            "scores": self.scores,
            "beside": self.beside,
        }


def _matmul(x: Any, kernel: Any) -> Any:
    """Multiply the last axis of ``x`` by ``kernel``, as one product of two axes.

    A product of more axes is slower, and is exported with all its shape arithmetic.
    """
    product = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel)
    return ops.reshape(product, (-1, *x.shape[1:-1], product.shape[-1]))


def _dropped(x: Any, mask: Any) -> Any:
    """Multiply ``(batch, …, units)`` by a mask ``(batch, units)``, if there is one."""
    if mask is None:
        return x
    return x * ops.reshape(mask, (-1, *[1] * (len(x.shape) - 2), mask.shape[-1]))
