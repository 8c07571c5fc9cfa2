"""The heads: from the cuboids X_t to probabilities and maps."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.network.classifier import (
    InitialState,
    average_heads,
    build_head,
    separate_paths,
    with_uniform_maps,
    without_context,
)
from model_export.network.spec import AttentionScores, HeadSpec, Readout
from service.model.bundle import Variant
from tests.model_export.network import reference
from tests.model_export.network.keras_weights import dense_weights, fill, head_weights
from tests.model_export.network.reference import Array

CLASSES, CHANNELS = 5, 6  # as small as in the tests of the cells

HEADS: tuple[tuple[Variant, AttentionScores], ...] = (
    ("attention", "state"),
    ("attention", "content"),
    ("attention", "uniform"),
    ("base", "state"),
)
with_all_heads = pytest.mark.parametrize(("variant", "scores"), HEADS)


def head_with(
    variant: Variant, scores: AttentionScores, *, dropout: float = 0.5, unroll: bool = False, **fields: Any
) -> Any:
    spec = HeadSpec(variant=variant, attention_scores=scores, channels=CHANNELS, **fields)
    head = build_head(CLASSES, spec, dropout=dropout, unroll=unroll)
    fill(head, seed=0)
    return head


def features(clips: int = 2, seed: int = 1) -> Array:
    drawn = np.random.default_rng(seed).exponential(size=(clips, 40, 7, 7, CHANNELS))
    return drawn.astype(np.float32).astype(np.float64)


def answer(head: Any, x: Array, training: bool = False) -> dict[str, Array]:
    return {name: np.asarray(value, np.float64) for name, value in head(x, training=training).items()}


@with_all_heads
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("unroll", [False, True])
def test_a_head_follows_the_reference(
    variant: Variant, scores: AttentionScores, readout: Readout, unroll: bool
) -> None:
    head = head_with(variant, scores, readout=readout, unroll=unroll)
    expected = reference.head(head_weights(head), features(), variant, scores, readout, "root", moving=True)
    assert_as_predicted(answer(head, features()), expected)


@with_all_heads
def test_a_head_without_scaling_and_motion_follows_the_reference(variant: Variant, scores: AttentionScores) -> None:
    head = head_with(variant, scores, feature_scaling="none", motion=False)
    assert_as_predicted(
        answer(head, features()), reference.head(head_weights(head), features(), variant, scores, "mean")
    )


def assert_as_predicted(answered: dict[str, Array], expected: reference.Prediction) -> None:
    np.testing.assert_allclose(answered["probabilities"], expected.probabilities, atol=1e-5)
    if expected.attention is not None:
        np.testing.assert_allclose(answered["attention"], expected.attention, atol=1e-5)


@with_all_heads
def test_probabilities_and_every_map_sum_to_one(variant: Variant, scores: AttentionScores) -> None:
    answered = answer(head_with(variant, scores), 30 * features())
    assert answered["probabilities"].shape == (2, CLASSES)
    np.testing.assert_allclose(answered["probabilities"].sum(axis=-1), 1, atol=1e-5)
    assert ("attention" in answered) == (variant == "attention")
    if variant == "attention":
        assert answered["attention"].shape == (2, 40, 7, 7)
        np.testing.assert_allclose(answered["attention"].sum(axis=(2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 6), (5, 1)])
def test_a_map_has_the_layout_of_the_frame(row: int, column: int) -> None:
    """If content scores reward what only one cell shows, the map must be largest at that cell."""
    head = build_head(CLASSES, HeadSpec(channels=CHANNELS))
    cell = head.get_layer("slstm").cell
    for variable in head.trainable_weights:
        variable.assign(np.zeros(variable.shape))
    cell.mlp3.kernel.assign(np.ones(cell.mlp3.kernel.shape))
    cell.linear.kernel.assign(np.ones(cell.linear.kernel.shape))
    x = np.zeros((1, 40, 7, 7, CHANNELS))
    x[:, :, row, column] = 1.0
    brightest = answer(head, x)["attention"].reshape(40, 49).argmax(axis=-1)
    np.testing.assert_array_equal(brightest, np.full(40, 7 * row + column))


@with_all_heads
def test_inference_is_deterministic(variant: Variant, scores: AttentionScores) -> None:
    head = head_with(variant, scores)
    once, again = answer(head, features()), answer(head, features())
    for name, value in once.items():
        np.testing.assert_array_equal(value, again[name])


@with_all_heads
def test_training_drops_different_units_in_every_batch_and_clip(variant: Variant, scores: AttentionScores) -> None:
    head, same_clip_twice = head_with(variant, scores), np.repeat(features(1), 2, axis=0)
    once, again = answer(head, same_clip_twice, training=True), answer(head, same_clip_twice, training=True)
    for name, value in once.items():
        if (scores, name) != ("uniform", "attention"):
            assert np.abs(value - again[name]).max() > 1e-6
            assert np.abs(value[0] - value[1]).max() > 1e-6


@with_all_heads
def test_without_dropout_training_equals_inference(variant: Variant, scores: AttentionScores) -> None:
    head = head_with(variant, scores, dropout=0.0)
    trained, inferred = answer(head, features(), training=True), answer(head, features())
    for name, value in trained.items():
        np.testing.assert_allclose(value, inferred[name], atol=1e-6)


def test_feature_dropout_drops_whole_channels_of_a_clip_in_training_only() -> None:
    """With one channel, a clip is dropped completely or kept and scaled up."""
    one_channel = HeadSpec(feature_scaling="none", channels=1)
    head = build_head(CLASSES, one_channel, dropout=0.0, feature_dropout=0.5)
    fill(head, seed=0)
    plain = build_head(CLASSES, one_channel)
    plain.set_weights(head.get_weights())
    x = np.repeat(np.random.default_rng(1).exponential(size=(1, 40, 7, 7, 1)), 20, axis=0)
    shown, hidden = (answer(plain, share * x)["probabilities"][0] for share in (2.0, 0.0))
    trained = answer(head, x, training=True)["probabilities"]
    is_shown, is_hidden = (np.isclose(trained, seen, atol=1e-5).all(axis=-1) for seen in (shown, hidden))
    assert (is_shown ^ is_hidden).all()
    assert is_shown.any()
    assert is_hidden.any()
    np.testing.assert_allclose(answer(head, x)["probabilities"], answer(plain, x)["probabilities"], atol=1e-6)


@pytest.mark.parametrize("scores", ["state", "content"])
def test_the_attention_uses_one_mask_for_a_whole_clip(scores: AttentionScores) -> None:
    """With one frame repeated forty times and scores that ignore h, only another mask could change the map."""
    head = head_with("attention", scores)
    kernel = head.get_layer("slstm").cell.mlp2.kernel
    kernel.assign(np.zeros(kernel.shape))
    still = np.repeat(features()[:, :1], 40, axis=1)
    maps = answer(head, still, training=True)["attention"]
    np.testing.assert_allclose(maps, np.broadcast_to(maps[:, :1], maps.shape), atol=1e-6)
    assert np.abs(maps - answer(head, still)["attention"]).max() > 1e-6


def test_the_initial_state_follows_equations_9_and_10_with_n_one_and_m_zero() -> None:
    layer, v = InitialState(4), features().mean(axis=(1, 2, 3))
    h, c, n, m = layer(v)
    fill(layer, seed=2)
    h, c, n, m = layer(v)
    expected_h, expected_c = reference.initial_state(
        dense_weights(mlp_h=layer.mlp_h, mlp_c=layer.mlp_c), features().reshape(2, 40, 49, CHANNELS)
    )
    np.testing.assert_allclose(h, expected_h, atol=1e-6)
    np.testing.assert_allclose(c, expected_c, atol=1e-6)
    np.testing.assert_array_equal(n, np.ones((2, 4)))
    np.testing.assert_array_equal(m, np.zeros((2, 4)))


@settings(max_examples=20)
@given(rate=st.sampled_from([0.2, 0.5, 0.8]), sizes=st.lists(st.integers(1, 9), max_size=3))
def test_masks_are_inverted_dropout_in_training_and_ones_otherwise(rate: float, sizes: list[int]) -> None:
    layer, v = InitialState(4, tuple(sizes), dropout=rate), np.ones((3, CHANNELS), np.float32)
    for training in (True, False):
        masks = [np.asarray(mask) for mask in layer(v, training=training)[4:]]
        assert [mask.shape for mask in masks] == [(3, size) for size in sizes]
        allowed = [0.0, 1 / (1 - rate)] if training else [1.0]
        assert all(np.isclose(mask[..., None], allowed).any(axis=-1).all() for mask in masks)


def test_dropout_applies_to_every_mask_and_both_states() -> None:
    layer = InitialState(1000, (1000,), dropout=0.3)
    h, c, n, _, mask = (np.asarray(state) for state in layer(np.ones((20, CHANNELS), np.float32), training=True))
    assert [(part == 0).mean() for part in (h, c, mask)] == pytest.approx([0.3] * 3, abs=0.02)
    assert n.min() == 1.0
    assert ((h == 0) != (c == 0)).any()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@with_all_heads
def test_a_saved_head_gives_the_same_outputs_after_loading(
    variant: Variant, scores: AttentionScores, tmp_path: Path
) -> None:
    head = head_with(variant, scores)
    head.save(tmp_path / "head.keras")
    loaded = answer(keras.saving.load_model(tmp_path / "head.keras"), features())
    for name, value in answer(head, features()).items():
        np.testing.assert_array_equal(loaded[name], value)


@with_all_heads
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_weights_trained_in_a_loop_fit_the_unrolled_head(
    variant: Variant, scores: AttentionScores, tmp_path: Path
) -> None:
    looped, unrolled = head_with(variant, scores), head_with(variant, scores, unroll=True)
    fill(looped, seed=7)
    looped.save_weights(tmp_path / "head.weights.h5")
    unrolled.load_weights(tmp_path / "head.weights.h5")
    for name, value in answer(looped, features()).items():
        np.testing.assert_allclose(answer(unrolled, features())[name], value, atol=1e-6)


def test_the_papers_sizes_are_the_defaults() -> None:
    head = build_head(101, HeadSpec())
    assert head.input_shape == (None, 40, 7, 7, 512)
    cell = head.get_layer("slstm").cell
    assert (cell.units, cell.mlp2.units, cell.mlp3.units, cell.mlp4.units) == (256, 128, 128, 128)
    assert head.output["probabilities"].shape == (None, 101)


def apart(variant: Variant = "attention") -> list[Any]:
    """Build two heads with different weights."""
    heads = [build_head(CLASSES, HeadSpec(variant=variant, channels=CHANNELS)) for _ in range(2)]
    for seed, head in enumerate(heads):
        fill(head, seed)
    return heads


@pytest.mark.parametrize("variant", ["attention", "base"])
def test_averaged_heads_give_the_mean_of_their_outputs(variant: Variant) -> None:
    heads = apart(variant)
    one, other = (answer(head, features()) for head in heads)
    both = answer(average_heads(heads), features())
    assert both.keys() == one.keys()
    for name, value in both.items():
        assert np.abs(one[name] - other[name]).max() > 1e-3
        np.testing.assert_allclose(value, (one[name] + other[name]) / 2, atol=1e-6)


def test_the_average_of_one_head_is_that_head() -> None:
    head = build_head(CLASSES, HeadSpec(variant="base", channels=CHANNELS))
    assert average_heads([head]) is head


def test_averaging_no_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="no heads"):
        average_heads([])


def test_a_head_of_two_members_has_two_heads_with_different_weights_and_the_outputs_of_one() -> None:
    one, two = (build_head(CLASSES, HeadSpec(channels=CHANNELS, members=members)) for members in (1, 2))
    assert two.count_params() == 2 * one.count_params()
    assert two.input_shape == one.input_shape
    assert {name: value.shape for name, value in two.output.items()} == {
        name: value.shape for name, value in one.output.items()
    }
    kernels = [np.asarray(weight) for weight in two.trainable_weights if weight.name == "recurrent_kernel"]
    assert len(kernels) == 2
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_averaged_maps_and_probabilities_sum_to_one() -> None:
    answered = answer(head_with("attention", "content", members=2), 30 * features())
    np.testing.assert_allclose(answered["probabilities"].sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(answered["attention"].sum(axis=(2, 3)), 1, atol=1e-5)


def test_weights_of_averaged_heads_fit_a_head_of_members_built_later(tmp_path: Path) -> None:
    """Names in the file must not depend on how many layers the process built before, nor on how members were joined."""
    averaged = average_heads(apart())
    averaged.save_weights(tmp_path / "head.weights.h5")
    expected = answer(averaged, features())
    for unroll in (False, True):
        later = build_head(CLASSES, HeadSpec(channels=CHANNELS, members=2), unroll=unroll)
        later.load_weights(tmp_path / "head.weights.h5")
        for name, value in answer(later, features()).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("scores", ["content", "state"])
def test_the_path_of_attention_is_separate_from_the_others(scores: AttentionScores, members: int) -> None:
    spec = HeadSpec(channels=CHANNELS, attention_scores=scores, members=members)
    head = build_head(CLASSES, spec, feature_dropout=0.5)
    paths = separate_paths(head)
    x, y = (features(clips=1, seed=seed) for seed in (1, 2))
    whole = head.predict_on_batch(x)
    for name, values in paths.predict_on_batch([x, x]).items():
        np.testing.assert_array_equal(values, whole[name])
    by_attention, by_others = (paths.predict_on_batch(cuboids)["probabilities"] for cuboids in ([y, x], [x, y]))
    assert (by_attention != whole["probabilities"]).any()
    assert (by_others != whole["probabilities"]).any()

    with without_context(head):
        blind, attended, others = (
            paths.predict_on_batch(cuboids)["probabilities"] for cuboids in ([x, x], [y, x], [x, y])
        )
    np.testing.assert_array_equal(blind, attended)
    assert (blind != others).any()

    with with_uniform_maps(head):
        even = paths.predict_on_batch([x, x])
    np.testing.assert_allclose(even["attention"], 1 / 49, rtol=1e-5)
    assert (even["probabilities"] != whole["probabilities"]).any()
    np.testing.assert_array_equal(head.predict_on_batch(x)["probabilities"], whole["probabilities"])
