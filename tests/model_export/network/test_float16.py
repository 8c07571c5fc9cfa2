"""What VGG19 computes in float16, compared with NumPy."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from model_export.network.float16 import LARGEST, crafted_frame, measured_encoder
from model_export.network.vgg19 import MEAN_RGB, build_encoder
from model_export.weights import fetch_weights

FILTERS = (2, 2, 4, 4, 8)


@pytest.fixture
def frames() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)


def encoder(scale: float = 1.0) -> keras.Model:
    """A narrow network, of which ``scale`` multiplies every weight."""
    found = build_encoder(None, filters=FILTERS, image_size=32)
    random = np.random.default_rng(0)
    found.set_weights([scale * random.normal(0, 0.3, weights.shape) for weights in found.get_weights()])
    return found


def test_without_rounding_the_features_are_the_encoders(frames: npt.NDArray[np.uint8]) -> None:
    exact = encoder()
    found = measured_encoder(exact)(frames)
    np.testing.assert_allclose(found.cuboids, exact.predict_on_batch(frames), rtol=1e-5)
    assert list(found.peaks)[::15] == ["block1_conv1", "block5_conv4"]
    layers = [layer for layer in exact.layers if layer.name in found.peaks]
    everything = keras.Model(exact.input, [layer.output for layer in layers]).predict_on_batch(frames)
    assert list(found.peaks.values()) == pytest.approx([float(values.max()) for values in everything])
    assert found.overflow is None


def test_weights_and_activations_are_rounded_and_sums_are_not(frames: npt.NDArray[np.uint8]) -> None:
    exact = encoder()
    found = measured_encoder(exact, float16=True)(frames[:1])
    np.testing.assert_allclose(found.cuboids, rounded_by_numpy(exact, frames[:1]), rtol=5e-3)
    assert not np.allclose(found.cuboids, exact.predict_on_batch(frames[:1]), rtol=5e-3)
    np.testing.assert_array_equal(found.cuboids, found.cuboids.astype(np.float16))


def rounded_by_numpy(encoder: keras.Model, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """VGG19 in NumPy: sums in float64, everything that is stored in float16."""
    x: npt.NDArray[Any] = (frames - np.array(MEAN_RGB)).astype(np.float16)
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = (weights.astype(np.float16).astype(np.float64) for weights in layer.get_weights())
            padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            x = np.maximum(np.einsum("nyxiab,abio->nyxo", windows, kernel) + bias, 0).astype(np.float16)
        elif isinstance(layer, keras.layers.MaxPooling2D):
            n, height, width, channels = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return x.astype(np.float32)


def test_a_value_beyond_float16_is_infinite_and_its_layer_named(frames: npt.NDArray[np.uint8]) -> None:
    exact = encoder(scale=2.5)
    peaks = measured_encoder(exact)(frames[:1]).peaks
    found = measured_encoder(exact, float16=True)(frames[:1])
    assert found.overflow == next(layer for layer, peak in peaks.items() if peak > LARGEST)
    with np.errstate(all="ignore"):
        assert not np.isfinite(rounded_by_numpy(exact, frames[:1])).all()


def test_the_published_network_overflows_for_the_crafted_frame() -> None:
    published = build_encoder(fetch_weights(None))
    frame = crafted_frame()[np.newaxis]
    assert frame.shape == (1, 224, 224, 3)
    assert max(measured_encoder(published)(frame).peaks.values()) > LARGEST
    assert measured_encoder(published, float16=True)(frame).overflow == "block4_conv1"
