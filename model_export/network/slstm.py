"""The sLSTM cell (paper, eqs 1–8), in the stabilised form of the xLSTM paper (arXiv 2405.04517, eqs 15–17)."""

from typing import Any

import keras
from keras import ops


def initial_state(h: Any, c: Any) -> list[Any]:
    """Return the state [h, c, n, m] before the first step.

    n_0 = 1 and m_0 = 0, so that c_0 / n_0 = c_0.

    Args:
        h: Hidden state h_0, ``(batch, units)``.
        c: Memory c_0, ``(batch, units)``.
    """
    return [h, c, ops.ones_like(h), ops.zeros_like(h)]


@keras.saving.register_keras_serializable("limelight")
class SLSTMCell(keras.Layer):
    """One step of the scalar LSTM with exponential input gate, for ``keras.layers.RNN``.

    With W_x x_t + W_h h_{t-1} + b as f~, i~, z~ and o~, and f = σ(f~), i = exp(i~), z = tanh(z~), o = σ(o~)::

        c_t = f c_{t-1} + i z        (eq 4; its W_xc, W_hc, b_c are eq 2's W_xz, W_hz, b_z)
        n_t = f n_{t-1} + i          (eq 8)
        h_t = o c_t / n_t            (eqs 6, 7)

    exp(i~) can overflow, so c and n are kept multiplied by exp(-m_t), where m_t = max(log f + m_{t-1}, i~); h is the
    same. One of the two gates is then exactly 1, so that n_t is at least the smaller of 1 and n_{t-1}, and never 0.

    Weights: ``kernel`` (inputs, 4 · units), ``recurrent_kernel`` (units, 4 · units), ``bias`` (4 · units,); gates in
    the order f, i, z, o.

    Args:
        units: Size of h.
        projected: Whether the inputs are W_x x_t already, ``(batch, 4 · units)``; the cell then has no ``kernel``. W_x
            takes no part in the recurrence, so one product for all steps reads it once instead of at every step.
    """

    def __init__(self, units: int, projected: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.projected = units, projected
        self.state_size = [units] * 4
        self.output_size = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if not self.projected:
            self.kernel = self.add_weight(shape=(input_shape[-1], 4 * self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, 4 * self.units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(4 * self.units,), initializer="zeros", name="bias")

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """Return the state from which ``keras.layers.RNN`` starts by default: h_0 = c_0 = 0."""
        zeros = ops.zeros((batch_size, self.units), dtype=self.compute_dtype)
        return initial_state(zeros, zeros)

    def prepare(self, sequences: list[Any], state: list[Any], training: bool | None = None) -> tuple[Any, list[Any]]:
        """Return the one sequence and the state, for ``RNN``, as they are."""
        return sequences[0], state

    def call(self, inputs: Any, states: list[Any], training: bool | None = None) -> tuple[Any, list[Any]]:
        """Compute h_t ``(batch, units)`` and the next states from inputs ``(batch, inputs)`` and [h, c, n, m]."""
        h, c, n, m = states
        projected = inputs if self.projected else ops.matmul(inputs, self.kernel)
        gates = projected + ops.matmul(h, self.recurrent_kernel) + self.bias
        f, i, z, o = ops.split(gates, 4, axis=-1)
        log_f = -ops.softplus(-f)
        next_m = ops.maximum(log_f + m, i)
        input_gate = ops.exp(i - next_m)
        forget_gate = ops.exp(log_f + m - next_m)
        next_c = forget_gate * c + input_gate * ops.tanh(z)
        next_n = forget_gate * n + input_gate
        next_h = ops.sigmoid(o) * next_c / next_n
        return next_h, [next_h, next_c, next_n, next_m]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "projected": self.projected}
