"""Motion features, compared with their formula and on clips whose motion is known."""

from typing import Any

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.network.motion import Motion, RegionMeans
from tests.model_export.network import reference


def computed(x: Any, **options: Any) -> Any:
    return np.asarray(Motion(**options)(RegionMeans()(np.asarray(x, np.float32))))


@settings(max_examples=20)
@given(clips=st.integers(1, 3), frames=st.integers(5, 12), seed=st.integers(0, 99))
def test_motion_follows_the_reference(clips: int, frames: int, seed: int) -> None:
    x = np.random.default_rng(seed).exponential(size=(clips, frames, 7, 7, 3))
    np.testing.assert_allclose(computed(x), reference.motion(x), atol=1e-5)


def test_a_still_clip_has_no_motion() -> None:
    still = np.repeat(np.random.default_rng(0).exponential(size=(2, 1, 7, 7, 3)), 9, axis=1)
    assert not computed(still).any()


def test_an_alternating_clip_has_motion_at_odd_lags_only() -> None:
    beat = np.tile([[0.0], [1.0]], (10, 1)).reshape(1, 20, 1, 1, 1) * np.ones((1, 1, 7, 7, 2))
    odd, even = computed(beat, lags=(1, 2), gain=1.0)[..., :2], computed(beat, lags=(1, 2), gain=1.0)[..., 2:4]
    np.testing.assert_allclose(odd[:, 1:], 1, rtol=1e-6)
    np.testing.assert_array_equal(even[:, 2:], np.zeros((1, 18, 2)))


def test_motion_in_the_upper_and_lower_half_is_distinguished() -> None:
    x = np.ones((1, 6, 7, 7, 2))
    x[:, ::2, :3] = 0.0  # the upper three of seven rows flicker
    everywhere, above, below = np.split(computed(x, lags=(1,), gain=1.0)[:, 1:], 3, axis=-1)
    np.testing.assert_allclose(everywhere, 3 / 7, atol=1e-6)
    np.testing.assert_allclose(above, 1.0)
    np.testing.assert_array_equal(below, 0.0)


def test_motion_is_the_same_for_mirrored_and_reversed_clips() -> None:
    x = np.random.default_rng(1).exponential(size=(1, 12, 7, 7, 3))
    np.testing.assert_allclose(computed(x), computed(x[:, :, :, ::-1]), atol=1e-5)
    later, earlier = computed(x, lags=(1,))[:, 1:], computed(x[:, ::-1], lags=(1,))[:, 1:]
    np.testing.assert_allclose(later, earlier[:, ::-1], atol=1e-5)


def test_a_saved_layer_is_the_same_after_loading() -> None:
    layer = Motion(lags=(2, 3), gain=0.5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    x = np.random.default_rng(2).exponential(size=(1, 9, 7, 7, 2)).astype(np.float32)
    means = RegionMeans()(x)
    np.testing.assert_array_equal(layer(means), again(means))
