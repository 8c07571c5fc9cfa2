"""The soft attention around the sLSTM, with both kinds of scores."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from model_export.network.attention import AttentionSLSTMCell, DoublyStochastic
from model_export.network.recurrence import RNN
from model_export.network.slstm import initial_state
from model_export.network.spec import AttentionScores
from tests.model_export.network import reference
from tests.model_export.network.keras_weights import attention_weights, fill
from tests.model_export.network.reference import NO_MASKS, Array, Weights

UNITS, ATTENTION_UNITS, CELLS, CHANNELS = 4, 6, 49, 5

with_all_scores = pytest.mark.parametrize("scores", ["state", "content", "uniform"])
with_both_scores = pytest.mark.parametrize("scores", ["state", "content"])


def cell_with(scores: AttentionScores, dtype: str = "float64", beside: int = 0) -> Any:
    cell = AttentionSLSTMCell(UNITS, ATTENTION_UNITS, scores, beside=beside, dtype=dtype)
    cell.build([(None, CELLS, CHANNELS), *([(None, 4 * UNITS)] if beside else [])])
    fill(cell, seed=0)
    return cell


def clip(frames: int, batch: int = 2, seed: int = 1) -> Array:
    return np.random.default_rng(seed).exponential(size=(batch, frames, CELLS, CHANNELS))


def start(batch: int = 2, seed: int = 2) -> tuple[Array, Array]:
    h0, c0 = np.random.default_rng(seed).uniform(-1, 1, (2, batch, UNITS))
    return h0, c0


def some_masks(batch: int = 2, seed: int = 3) -> Weights:
    drawn = 2.0 * np.random.default_rng(seed).integers(0, 2, (3, batch, ATTENTION_UNITS))
    return dict(zip(("mlp2", "mlp3", "mlp4"), drawn, strict=True))


def run(
    cell: Any,
    cells: Array,
    masks: Weights = NO_MASKS,
    training: bool = False,
    beside: Array | None = None,
    unroll: bool = False,
) -> tuple[Array, Array]:
    """Return h (B, T, U) and the maps (B, T, 49) of all frames."""
    state = [*initial_state(*start(len(cells))), *masks.values()]
    inputs = [cells] if beside is None else [cells, beside]
    rnn = RNN(cell, unroll, dtype="float64")
    out = np.asarray(rnn(inputs, [keras.ops.convert_to_tensor(s) for s in state], training=training))
    return out[..., :UNITS], out[..., UNITS:]


@with_both_scores
def test_a_step_returns_state_and_map_joined(scores: AttentionScores) -> None:
    cell = cell_with(scores)
    sequences, before = cell.prepare([clip(1)], initial_state(*map(keras.ops.convert_to_tensor, start())))
    out, states = cell([sequence[:, 0] for sequence in sequences], before)
    assert out.shape == (2, UNITS + CELLS)
    assert [tuple(state.shape) for state in states] == [(2, UNITS)] * 4
    np.testing.assert_array_equal(out[:, :UNITS], states[0])


@with_all_scores
def test_forty_frames_follow_the_reference(scores: AttentionScores) -> None:
    cell, cells = cell_with(scores), clip(40)
    expected_h, expected_maps = reference.attend_over_time(attention_weights(cell), cells, *start(), scores)
    for h, maps in (run(cell, cells), run(cell, cells, unroll=True)):
        np.testing.assert_allclose(maps, expected_maps, rtol=1e-9)
        np.testing.assert_allclose(h, expected_h, rtol=1e-9, atol=1e-12)


@with_all_scores
def test_the_second_input_is_read_but_not_attended_to(scores: AttentionScores) -> None:
    cell, cells, rng = cell_with(scores, beside=3), clip(40), np.random.default_rng(4)
    beside, kernel = rng.normal(size=(2, 40, 3)), rng.normal(size=(3, 4 * UNITS))
    h, maps = run(cell, cells, beside=beside @ kernel)
    weights = attention_weights(cell, kernel)
    expected_h, expected_maps = reference.attend_over_time(weights, cells, *start(), scores, beside=beside)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-9)
    np.testing.assert_allclose(h, expected_h, rtol=1e-9, atol=1e-12)


@with_all_scores
def test_every_map_is_a_distribution_over_the_cells(scores: AttentionScores) -> None:
    _, maps = run(cell_with(scores), 50 * clip(10))
    assert maps.min() >= 0
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-12)


@with_both_scores
def test_attention_depends_on_earlier_frames(scores: AttentionScores) -> None:
    """The same last frame after other frames gets another map, since the scores depend on h_{t-1}."""
    cell, cells = cell_with(scores), clip(3)
    elsewhere = cells.copy()
    elsewhere[:, :2] = clip(2, seed=9)
    assert np.abs(run(cell, cells)[1][:, 2] - run(cell, elsewhere)[1][:, 2]).max() > 1e-6


def test_content_scores_follow_cells_that_are_permuted() -> None:
    cell, cells = cell_with("content"), clip(1)
    np.testing.assert_allclose(run(cell, cells[:, :, ::-1])[1], run(cell, cells)[1][..., ::-1], rtol=1e-9)


def test_state_scores_depend_on_a_frames_mean_only() -> None:
    """They cannot tell where in the frame anything is."""
    cell, cells = cell_with("state"), clip(1)
    np.testing.assert_allclose(run(cell, cells[:, :, ::-1])[1], run(cell, cells)[1], rtol=1e-9)


@with_all_scores
def test_in_training_masks_drop_the_same_units_at_every_frame(scores: AttentionScores) -> None:
    cell, cells, masks = cell_with(scores), clip(40), some_masks()
    h, maps = run(cell, cells, masks, training=True)
    expected_h, expected_maps = reference.attend_over_time(attention_weights(cell), cells, *start(), scores, masks)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-9)
    np.testing.assert_allclose(h, expected_h, rtol=1e-9, atol=1e-12)


@with_both_scores
def test_masks_do_nothing_outside_training(scores: AttentionScores) -> None:
    masked, free = run(cell_with(scores), clip(6), some_masks()), run(cell_with(scores), clip(6))
    for with_masks, without in zip(masked, free, strict=True):
        np.testing.assert_array_equal(with_masks, without)


@with_both_scores
def test_training_without_masks_drops_nothing(scores: AttentionScores) -> None:
    trained, free = run(cell_with(scores), clip(6), training=True), run(cell_with(scores), clip(6))
    for in_training, without in zip(trained, free, strict=True):
        np.testing.assert_array_equal(in_training, without)


@with_all_scores
def test_a_cell_is_rebuilt_from_its_config(scores: AttentionScores) -> None:
    cell = cell_with(scores)
    again = AttentionSLSTMCell.from_config(cell.get_config())
    assert again.get_config() == cell.get_config()
    again.build([(None, CELLS, CHANNELS)])
    again.set_weights(cell.get_weights())
    for rebuilt, original in zip(run(again, clip(3)), run(cell, clip(3)), strict=True):
        np.testing.assert_array_equal(rebuilt, original)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@with_all_scores
def test_a_saved_model_with_the_cell_gives_the_same_outputs_after_loading(
    scores: AttentionScores, tmp_path: Path
) -> None:
    inputs = keras.Input((3, CELLS, CHANNELS)), *(keras.Input((UNITS,)) for _ in range(4))
    cell = AttentionSLSTMCell(units=UNITS, attention_units=ATTENTION_UNITS, scores=scores)
    model = keras.Model(inputs, RNN(cell)(inputs[:1], inputs[1:]))
    fill(model, seed=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    given = [part.astype(np.float32) for part in (clip(3), *start(), np.ones((2, UNITS)), np.zeros((2, UNITS)))]
    np.testing.assert_array_equal(loaded(given), model(given))


def test_unknown_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one of state, content, uniform"):
        AttentionSLSTMCell(scores="cells")  # type: ignore[arg-type]


def left_out(maps: Array) -> float:
    """Return the loss that ``DoublyStochastic`` adds for maps (B, T, 7, 7)."""
    layer, probabilities = DoublyStochastic(weight=0.5), np.ones((len(maps), 3), np.float32)
    np.testing.assert_array_equal(layer(probabilities, maps.astype(np.float32)), probabilities)
    return float(sum(layer.losses))


def test_attention_that_covers_all_cells_equally_has_no_penalty() -> None:
    uniform = np.full((2, 40, 7, 7), 1 / 49)
    wandering = np.eye(49).reshape(1, 49, 7, 7)
    assert left_out(uniform) == pytest.approx(0, abs=1e-6)
    assert left_out(wandering) == pytest.approx(0, abs=1e-6)


def test_attention_on_a_single_cell_has_the_largest_penalty() -> None:
    resting = np.zeros((2, 40, 7, 7))
    resting[:, :, 3, 2] = 1.0
    assert left_out(resting) == pytest.approx(0.5 * (48**2 + 48) / 49)
