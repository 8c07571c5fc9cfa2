"""The encoder, compared with Keras' own VGG19 on input preprocessed for the published weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from model_export.network.vgg19 import build_encoder
from model_export.weights import fetch_weights
from tests.model_export.network.reference import caffe_input
from tests.model_export.network.vgg19_file import write_vgg19_weights

Frames = npt.NDArray[np.uint8]


def frame(red: int, green: int, blue: int, size: int = 224) -> Frames:
    return np.full((size, size, 3), (red, green, blue), np.uint8)


def noise(count: int = 1, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), np.uint8)


def checkerboard(square: int) -> Frames:
    rows, columns = np.indices((224, 224)) // square
    return np.repeat(255 * ((rows + columns) % 2)[..., None], 3, axis=-1).astype(np.uint8)


def bright_corner() -> Frames:
    lit = frame(0, 0, 0)
    lit[:9, :9] = (255, 128, 0)
    return lit


@pytest.fixture(scope="module")
def published() -> Any:
    """Keras' VGG19 with random weights, scaled so that features do not vanish over sixteen layers."""
    rng = np.random.default_rng(1)
    network = keras.applications.VGG19(include_top=False, weights=None, input_shape=(224, 224, 3))
    for layer in network.layers:
        if layer.weights:
            kernel, bias = (variable.shape for variable in layer.weights)
            spread = np.sqrt(2 / np.prod(kernel[:3]))
            layer.set_weights([rng.normal(0, spread, kernel), rng.normal(0, 5, bias)])
    return network


@pytest.fixture(scope="module")
def weights_file(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of the random network with the layout of the published one."""
    path = tmp_path_factory.mktemp("weights") / "vgg19.h5"
    write_vgg19_weights(path, {layer.name: layer.get_weights() for layer in published.layers})
    yield path
    path.unlink()  # 80 MB


@pytest.fixture(scope="module")
def encoder(weights_file: Path) -> Any:
    return build_encoder(weights_file)


@pytest.fixture(scope="module")
def half_encoder(weights_file: Path) -> Any:
    return build_encoder(weights_file, dtype="float16")


def assert_close(actual: Any, expected: Any, share: float) -> None:
    """Compare within a share of the largest value, since float32 sums of 4,608 terms have no fixed order."""
    expected = np.asarray(expected)
    assert expected.max() > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * float(expected.max()))


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(noise()[0], id="noise"),
        pytest.param(frame(250, 10, 60), id="red"),
        pytest.param(frame(60, 10, 250), id="blue"),
        pytest.param(bright_corner(), id="corner"),
    ],
)
def test_an_rgb_frame_gives_the_features_of_keras_vgg19_in_bgr_without_the_mean(
    encoder: Any, published: Any, picture: Frames
) -> None:
    """Including borders: outside the frame is the mean colour, since padding follows subtraction."""
    assert_close(encoder(picture[None]), published(caffe_input(picture[None])), share=1e-5)


def test_padding_has_the_mean_colour(encoder: Any) -> None:
    """A frame of the mean colour has (nearly) no edge in the first layer.

    Folding the mean into the bias would pad with black, and the first layer would show a border.
    """
    first = keras.Model(encoder.input, encoder.get_layer("block1_conv1").output)
    mean, black = (np.asarray(first(frame(*colour)[None]))[0] for colour in ((124, 117, 104), (0, 0, 0)))
    assert np.abs(mean[0] - mean[100]).max() < 1.0
    assert np.abs(black[0] - black[100]).max() > 50.0


def test_frames_of_a_batch_are_independent(encoder: Any) -> None:
    frames = noise(2)
    assert_close(encoder(frames), np.concatenate([encoder(frames[:1]), encoder(frames[1:])]), share=1e-5)


def test_uint8_frames_become_float32_cuboids(encoder: Any, half_encoder: Any) -> None:
    for network in (encoder, half_encoder):
        assert network.input.dtype == "uint8"
        assert network.input.shape == (None, 224, 224, 3)
        assert network.output.dtype == "float32"
        assert network.output.shape == (None, 7, 7, 512)


def test_the_encoder_is_not_trainable(encoder: Any) -> None:
    assert encoder.trainable_weights == []


def test_the_float16_encoder_computes_in_float16_and_stays_close(encoder: Any, half_encoder: Any) -> None:
    convolutions = [layer for layer in half_encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.compute_dtype for layer in convolutions] == ["float16"] * 16
    assert_close(half_encoder(noise()), encoder(noise()), share=1e-2)


def test_the_number_of_channels_is_that_of_the_weights_file(tmp_path: Path) -> None:
    """A narrow weights file therefore gives a narrow network everywhere."""
    random = build_encoder(filters=(2, 3, 4, 5, 6))
    convolutions = [layer for layer in random.layers if isinstance(layer, keras.layers.Conv2D)]
    weights = {layer.name: layer.get_weights() for layer in convolutions}
    write_vgg19_weights(tmp_path / "narrow.h5", weights)
    narrow = build_encoder(tmp_path / "narrow.h5")
    assert narrow.output_shape == (None, 7, 7, 6)
    kernel, _ = narrow.get_layer("block1_conv1").get_weights()
    np.testing.assert_array_equal(kernel, weights["block1_conv1"][0][:, :, ::-1])
    np.testing.assert_array_equal(narrow.get_layer("block5_conv4").get_weights()[0], weights["block5_conv4"][0])


def test_the_default_is_the_size_of_vgg19() -> None:
    assert build_encoder().output_shape == (None, 7, 7, 512)


def test_extreme_frames_are_finite_in_float16_with_the_published_weights() -> None:
    """float16 ends at 65,504; only the real weights show how close they come to it."""
    extremes = [frame(0, 0, 0), frame(255, 255, 255), *(checkerboard(square) for square in (1, 4, 16, 32))]
    path = fetch_weights()
    half, full = build_encoder(path, dtype="float16"), build_encoder(path)
    for picture in extremes:
        answered = np.asarray(half(picture[None]))
        assert np.isfinite(answered).all()
        assert_close(answered, full(picture[None]), share=2e-2)


def test_the_published_weights_give_the_features_of_keras_own_vgg19() -> None:
    path = fetch_weights()
    published = keras.applications.VGG19(include_top=False, weights=None, input_shape=(224, 224, 3))
    published.load_weights(path)
    assert_close(build_encoder(path)(noise()), published(caffe_input(noise())), share=1e-5)
