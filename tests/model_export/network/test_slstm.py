"""The sLSTM cell, compared with eqs 1-8 of the paper."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_export.network.slstm import SLSTMCell, initial_state
from tests.model_export.network import reference
from tests.model_export.network.keras_weights import fill, slstm_weights
from tests.model_export.network.reference import Array

UNITS = 3
SHUT, OPEN = -1e4, 1e4  # gate inputs


def cell_for(inputs: int, dtype: str = "float32", seed: int = 0) -> Any:
    cell = SLSTMCell(UNITS, dtype=dtype)
    cell.build((None, inputs))
    fill(cell, seed)
    return cell


def cell_fed_gate_inputs(dtype: str) -> Any:
    """Build a cell without recurrence whose input is its gate inputs, joined in the order f, i, z, o."""
    cell = SLSTMCell(UNITS, dtype=dtype)
    cell.build((None, 4 * UNITS))
    cell.set_weights([np.eye(4 * UNITS), np.zeros((UNITS, 4 * UNITS)), np.zeros(4 * UNITS)])
    return cell


def start(batch: int, seed: int = 1) -> tuple[Array, Array]:
    h0, c0 = np.random.default_rng(seed).uniform(-1, 1, (2, batch, UNITS))
    return h0, c0


def run(cell: Any, x: Array, h0: Array, c0: Array) -> Array:
    """Return h at every step (B, T, U), computed by Keras' RNN layer."""
    dtype = cell.compute_dtype
    initial = initial_state(keras.ops.cast(h0, dtype), keras.ops.cast(c0, dtype))
    rnn = keras.layers.RNN(cell, return_sequences=True, dtype=dtype)
    return np.asarray(rnn(keras.ops.cast(x, dtype), initial_state=initial), np.float64)


def gate_inputs(f: float, i: float, z: float, o: float, steps: int = 4) -> Array:
    return np.tile(np.repeat([f, i, z, o], UNITS), (1, steps, 1))


def sequences(largest: float) -> st.SearchStrategy[Array]:
    elements = st.floats(-largest, largest, allow_subnormal=False)
    return st.integers(1, 6).flatmap(lambda steps: arrays(np.float64, (1, steps, 4 * UNITS), elements=elements))


def test_every_state_is_that_of_the_printed_equations_scaled_by_the_stabiliser() -> None:
    rng = np.random.default_rng(2)
    cell = cell_for(inputs=5, dtype="float64")
    (h0, c0), x = start(batch=4), rng.normal(size=(4, 5))
    out, (h, c, n, m) = cell(x, initial_state(h0, c0))
    expected_h, expected_c, expected_n = reference.slstm_step(slstm_weights(cell), x, h0, c0, np.ones_like(c0))
    scale = np.exp(np.asarray(m))
    np.testing.assert_allclose(out, expected_h, rtol=1e-12)
    np.testing.assert_array_equal(out, h)
    np.testing.assert_allclose(np.asarray(c) * scale, expected_c, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(n) * scale, expected_n, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_five_hundred_steps_follow_the_printed_equations(dtype: str, tolerance: float) -> None:
    x = np.random.default_rng(3).normal(size=(2, 500, 5)).astype(np.float32).astype(np.float64)
    cell = cell_for(inputs=5, dtype=dtype)
    expected = reference.slstm(slstm_weights(cell), x, *start(batch=2))
    np.testing.assert_allclose(run(cell, x, *start(batch=2)), expected, atol=tolerance)


@settings(max_examples=40)
@given(x=sequences(300.0))
def test_gate_inputs_up_to_300_follow_the_printed_equations(x: Array) -> None:
    cell = cell_fed_gate_inputs("float64")
    expected = reference.slstm(slstm_weights(cell), x, *start(batch=1))
    np.testing.assert_allclose(run(cell, x, *start(batch=1)), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(x=sequences(1e4))
def test_gate_inputs_of_any_size_follow_the_reference_in_log_space(x: Array) -> None:
    cell = cell_fed_gate_inputs("float64")
    expected = reference.slstm_in_log_space(slstm_weights(cell), x, *start(batch=1))
    np.testing.assert_allclose(run(cell, x, *start(batch=1)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("largest", [1e2, 1e4])
def test_large_gate_inputs_are_accurate_in_float32_with_recurrence(largest: float) -> None:
    """m reaches 1e4, where adjacent float32 numbers are 1e-3 apart; the weights of the mean may be off by as much."""
    x = largest * np.random.default_rng(4).uniform(-1, 1, (2, 40, 5)).astype(np.float32).astype(np.float64)
    cell = cell_for(inputs=5)
    expected = reference.slstm_in_log_space(slstm_weights(cell), x, *start(batch=2))
    np.testing.assert_allclose(run(cell, x, *start(batch=2)), expected, atol=1e-2)


@pytest.mark.parametrize("f", [SHUT, 0.0, OPEN])
@pytest.mark.parametrize("i", [SHUT, 0.0, OPEN])
def test_saturated_gates_give_finite_values_and_gradients(f: float, i: float) -> None:
    cell = cell_fed_gate_inputs("float32")
    x = tf.constant(gate_inputs(f, i, z=1.5, o=OPEN), tf.float32)
    h0, c0 = start(batch=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        states = initial_state(tf.constant(h0, tf.float32), tf.constant(c0, tf.float32))
        for t in range(x.shape[1]):
            h, states = cell(x[:, t], states)
    expected = reference.slstm_in_log_space(slstm_weights(cell), x.numpy().astype(np.float64), h0, c0)
    np.testing.assert_allclose(h, expected[:, -1], atol=1e-3)
    assert np.isfinite(tape.gradient(h, x).numpy()).all()
    assert all(np.isfinite(state).all() for state in states)


@settings(max_examples=40)
@given(x=sequences(1e4))
def test_the_normaliser_never_falls_below_one_so_nothing_divides_by_zero(x: Array) -> None:
    cell = cell_fed_gate_inputs("float32")
    states = initial_state(*(keras.ops.cast(state, "float32") for state in start(batch=1)))
    for t in range(x.shape[1]):
        _, states = cell(keras.ops.cast(x[:, t], "float32"), states)
        assert np.asarray(states[2]).min() >= 1.0


def test_projecting_inputs_before_the_recurrence_changes_nothing() -> None:
    whole, x = cell_for(inputs=5, dtype="float64"), np.random.default_rng(9).normal(size=(2, 7, 5))
    cell = SLSTMCell(UNITS, projected=True, dtype="float64")
    cell.build((None, 4 * UNITS))
    cell.set_weights(whole.get_weights()[1:])
    answer = run(cell, x @ np.asarray(whole.kernel), *start(batch=2))
    np.testing.assert_allclose(answer, run(whole, x, *start(batch=2)), rtol=1e-12)


def test_a_closed_input_gate_keeps_c0() -> None:
    """With n_0 = 1, h~_0 = c_0: the initial memory is all that the cell can return."""
    h0, c0 = start(batch=1)
    shown = run(cell_fed_gate_inputs("float64"), gate_inputs(f=0.3, i=SHUT, z=2.0, o=OPEN), h0, c0)
    np.testing.assert_allclose(shown, np.broadcast_to(c0, shown.shape), rtol=1e-12)


def test_a_closed_forget_gate_keeps_only_the_current_input() -> None:
    shown = run(cell_fed_gate_inputs("float64"), gate_inputs(f=SHUT, i=-300.0, z=2.0, o=0.0), *start(batch=1))
    np.testing.assert_allclose(shown, 0.5 * np.tanh(2.0), rtol=1e-12)


def test_clips_of_a_batch_are_independent() -> None:
    cell, x = cell_for(inputs=5, dtype="float64"), np.random.default_rng(5).normal(size=(3, 7, 5))
    h0, c0 = start(batch=3)
    alone = [run(cell, x[k : k + 1], h0[k : k + 1], c0[k : k + 1]) for k in range(3)]
    np.testing.assert_allclose(run(cell, x, h0, c0), np.concatenate(alone), rtol=1e-12)


def test_a_cell_is_rebuilt_from_its_config() -> None:
    cell = SLSTMCell(UNITS, dtype="float64", name="memory")
    again = SLSTMCell.from_config(cell.get_config())
    assert (again.units, again.name, again.compute_dtype) == (UNITS, "memory", "float64")
    assert again.get_config() == cell.get_config()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_saved_model_with_the_cell_gives_the_same_outputs_after_loading(tmp_path: Path) -> None:
    inputs = keras.Input((6, 5))
    model = keras.Model(inputs, keras.layers.RNN(SLSTMCell(UNITS))(inputs))
    fill(model, seed=6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(7).normal(size=(2, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_the_default_initial_state_is_zero_with_a_normaliser_of_one() -> None:
    """``keras.layers.RNN`` asks the cell for it if the caller gives none."""
    cell, x = cell_for(inputs=5, dtype="float64"), np.random.default_rng(8).normal(size=(2, 6, 5))
    zeros = np.zeros((2, UNITS))
    answer = keras.layers.RNN(cell, return_sequences=True, dtype="float64")(x)
    np.testing.assert_allclose(answer, run(cell, x, zeros, zeros), rtol=1e-12)


@settings(max_examples=40)
@given(x=sequences(100.0))
def test_the_two_references_agree_in_their_common_range(x: Array) -> None:
    w, (h0, c0) = slstm_weights(cell_fed_gate_inputs("float64")), start(batch=1)
    np.testing.assert_allclose(
        reference.slstm_in_log_space(w, x, h0, c0), reference.slstm(w, x, h0, c0), rtol=1e-9, atol=1e-12
    )
