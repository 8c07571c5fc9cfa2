"""The scaling of cuboids, compared with its formula and its purpose."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_export.network.scaling import RootScaling
from tests.model_export.network.reference import Array, root_scaled

LARGEST = 65504.0  # of float16, in which features are kept


def cuboids(channels: int = 6, seed: int = 0) -> Array:
    """Draw values like VGG19's: half of them zero, a few far stronger than the rest."""
    drawn = np.random.default_rng(seed).lognormal(1.0, 2.0, (2, 3, 7, 7, channels))
    drawn[np.random.default_rng(seed + 1).random(drawn.shape) < 0.5] = 0.0
    return drawn.astype(np.float32).astype(np.float64)


def scaled(x: Array) -> Array:
    answered = RootScaling()(x.astype(np.float32))
    assert answered.dtype == "float32"
    return np.asarray(answered, np.float64)


def length(cells: Array) -> Array:
    lengths: Array = np.linalg.norm(cells, axis=-1)
    return lengths


@pytest.mark.parametrize("channels", [1, 6, 512])
def test_cuboids_of_any_width_follow_the_formula(channels: int) -> None:
    np.testing.assert_allclose(scaled(cuboids(channels)), root_scaled(cuboids(channels)), rtol=1e-5, atol=1e-12)


def test_a_cell_without_activation_stays_zero() -> None:
    x = cuboids()
    x[0, 1, 2, 3] = 0.0
    np.testing.assert_allclose(scaled(x)[0, 1, 2, 3], 0.0, atol=1e-12)


def gradient(x: Array, weights: Array) -> Array:
    """Differentiate the weighted sum of the scaled cuboids by the cuboids."""
    cuboids = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(cuboids)
        total = tf.reduce_sum(RootScaling()(cuboids) * tf.constant(weights, tf.float32))
    return np.asarray(tape.gradient(total, cuboids), np.float64)


def test_the_gradient_is_that_of_the_formula_and_finite_where_nothing_is_active() -> None:
    """Compared with central differences of the formula in float64."""
    x, weights = cuboids()[:1, :1, :2, :2], np.random.default_rng(4).normal(size=(1, 1, 2, 2, 6))
    x[0, 0, 0, 0] = 0.0
    found = gradient(x, weights)
    np.testing.assert_array_equal(found[0, 0, 0, 0], 0.0)
    assert np.abs(found[x == 0]).max() < 1, "what a channel without activation changes is the length of its cell"
    for index in zip(*np.nonzero(x), strict=True):
        step = np.zeros_like(x)
        step[index] = 1e-5 * x[index]
        above, below = ((weights * root_scaled(x + sign * step)).sum() for sign in (1, -1))
        assert found[index] == pytest.approx((above - below) / (2 * step[index]), rel=1e-3, abs=1e-5)


def test_values_that_are_not_finite_are_not_hidden() -> None:
    for value in (np.nan, np.inf):
        x = cuboids()
        x[0, 1, 2, 3, 4] = value
        assert not np.isfinite(scaled(x)[0, 1, 2, 3]).all()


def test_cells_are_scaled_independently() -> None:
    x, other = cuboids(), cuboids()
    other[:, :, 0] *= 50.0
    np.testing.assert_array_equal(scaled(other)[:, :, 1:], scaled(x)[:, :, 1:])


@pytest.mark.parametrize("channels", [6, 512])
def test_strong_cells_get_the_same_length_whatever_their_strength(channels: int) -> None:
    """The length is about √channels, a mean square of 1."""
    strong = 1e4 + cuboids(channels)
    for strength in (1.0, 5.0):
        np.testing.assert_allclose(length(scaled(strength * strong)), channels**0.5, rtol=1e-2)


def test_a_weak_cell_stays_short() -> None:
    """Bringing it to full length would amplify noise."""
    faint = np.full((1, 1, 7, 7, 4), 1e-6)
    assert length(scaled(faint)).max() < 0.01
    assert length(scaled(1e9 * faint)).min() > 1.9


@settings(max_examples=60)
@given(x=arrays(np.float16, (2, 8), elements=st.floats(0, LARGEST, width=16)))
def test_float16_features_never_overflow(x: Array) -> None:
    answered = scaled(x.astype(np.float64))
    assert np.isfinite(answered).all()
    assert (answered**2).mean(axis=-1).max() <= 1.0 + 1e-6


def test_cuboids_of_the_largest_float16_values_do_not_overflow() -> None:
    """The squared roots of 512 of them add up to 3.4e7, which overflows float16 but not float32."""
    np.testing.assert_allclose(scaled(np.full((1, 40, 7, 7, 512), LARGEST)), 1.0, rtol=1e-3)


def test_the_layer_is_rebuilt_from_its_config() -> None:
    layer = RootScaling(name="scaled")
    again = RootScaling.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_a_saved_model_with_the_layer_gives_the_same_outputs_after_loading(tmp_path: Path) -> None:
    inputs = keras.Input((3, 7, 7, 6))
    model = keras.Model(inputs, RootScaling()(inputs))
    model.save(tmp_path / "model.keras")
    x = cuboids().astype(np.float32)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))
