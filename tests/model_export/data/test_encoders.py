"""Every library computes the same cuboids; which one runs depends on the machine and on the features' type."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from model_export import storing
from model_export.data import encoders
from model_export.data.encoders import (
    bfloat16_encoder,
    fastest_engine,
    keras_encoder,
    load_encoder,
    winograd_encoder,
)
from model_export.errors import FeatureError, StorageError
from model_export.network.spec import Engine
from model_export.network.vgg19 import build_encoder

needs_mnn = pytest.mark.skipif(find_spec("MNN") is None, reason="MNN has no wheel for this processor")

HALF_ROUNDING = 2.0**-11  # relative, at most, of a number stored as float16
BFLOAT16_ROUNDING = 2.0**-8  # relative, at most, of each operand


@pytest.fixture(scope="module")
def frames(rendered_frames: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return rendered_frames[0]


@pytest.fixture(scope="module", params=[(2, 2, 4, 4, 8), (8, 8, 16, 16, 32), (5, 6, 7, 9, 11)], ids=str)
def encoder(request: pytest.FixtureRequest) -> Any:
    keras.utils.set_random_seed(3)
    built = build_encoder(filters=request.param)
    for layer in built.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.linspace(-3, 5, len(bias))])  # Keras starts biases at zero, which hides them
    return built


@pytest.fixture
def cpu(tmp_path: Path) -> Callable[[str], Path]:
    """Writes Linux' description of a processor with these flags."""

    def describe(flags: str) -> Path:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor : 0\nflags : fpu {flags}\n", encoding="utf-8")
        return cpuinfo

    return describe


@pytest.fixture
def plain_cpu(cpu: Callable[[str], Path]) -> Path:
    return cpu("sse2 avx2 fma")


@pytest.fixture
def amx_cpu(cpu: Callable[[str], Path]) -> Path:
    return cpu("avx512f amx_bf16 amx_tile")


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])


@needs_mnn
@pytest.mark.parametrize("count", [1, 8, 11, 40])
def test_mnn_and_keras_agree_within_float16_rounding(encoder: Any, frames: npt.NDArray[np.uint8], count: int) -> None:
    cuboids = winograd_encoder(encoder)(frames[:count])
    expected = keras_encoder(encoder)(frames[:count])
    assert cuboids.dtype == expected.dtype == np.float32
    assert cuboids.shape == expected.shape == (count, 7, 7, encoder.output_shape[-1])
    assert expected.std() > 1
    np.testing.assert_allclose(cuboids, expected, rtol=0, atol=HALF_ROUNDING * float(expected.std()))


def test_bfloat16_rounds_only_weights_and_activations(encoder: Any, frames: npt.NDArray[np.uint8]) -> None:
    """The rounding of sixteen layers adds up at random: far less than 16 times that of one, but not zero."""
    cuboids = bfloat16_encoder(encoder)(frames[:11])
    expected = keras_encoder(encoder)(frames[:11])
    assert cuboids.dtype == np.float32
    assert cuboids.shape == expected.shape
    error = float(np.sqrt(np.mean((cuboids - expected) ** 2) / np.mean(expected**2)))
    assert 1e-4 < error < 8 * BFLOAT16_ROUNDING


@needs_mnn
def test_mnn_encodes_clips_of_any_length_one_after_the_other(
    narrow_encoder: Any, frames: npt.NDArray[np.uint8]
) -> None:
    """Its network is built for full chunks; a shorter chunk in between must not change later results."""
    encode = winograd_encoder(narrow_encoder)
    whole = encode(frames)
    for start, stop in ((0, 3), (3, 40), (7, 8)):
        np.testing.assert_allclose(encode(frames[start:stop]), whole[start:stop], rtol=0, atol=1e-4 * whole.max())


def test_encoding_in_chunks_gives_the_same_cuboids(narrow_encoder: Any, frames: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_allclose(
        keras_encoder(narrow_encoder)(frames[:19]), narrow_encoder(frames[:19]), rtol=0, atol=1e-4 * frames.max()
    )


@needs_mnn
def test_mnn_prints_nothing(
    narrow_encoder: Any, frames: npt.NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    """MNN's C++ code prints at every start, which would break tables and progress bars."""
    winograd_encoder(narrow_encoder)(frames[:8])
    assert capfd.readouterr().out == ""


@needs_mnn
def test_float16_features_come_from_mnn_on_a_plain_cpu(plain_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    assert fastest_engine("float16", plain_cpu) == "MNN"


@pytest.mark.parametrize("flags", ["avx512f amx_bf16 amx_tile", "avx512f avx512_bf16"])
def test_float16_features_come_from_bfloat16_on_a_cpu_with_instructions_for_it(
    cpu: Callable[[str], Path], flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    assert fastest_engine("float16", cpu(flags)) == "TensorFlow in bfloat16"


def test_float32_features_come_from_tensorflow(amx_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    assert fastest_engine("float32", amx_cpu) == "TensorFlow"


def test_features_come_from_tensorflow_on_a_gpu(amx_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"] if kind == "GPU" else [])
    assert fastest_engine("float16", amx_cpu) == "TensorFlow"


def test_features_come_from_tensorflow_if_mnn_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``/proc/cpuinfo`` may be missing as well."""
    no_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "MNN", None)  # importing it raises ImportError
    assert fastest_engine("float16", tmp_path / "not there") == "TensorFlow"


@pytest.mark.parametrize("engine", ["TensorFlow", "TensorFlow in bfloat16", pytest.param("MNN", marks=needs_mnn)])
def test_an_encoder_runs_on_the_engine_that_is_asked_for(
    engine: Engine, narrow_encoder: Any, frames: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's features come from one engine, whatever is fastest on the machine."""
    monkeypatch.setattr(encoders, "build_encoder", lambda weights: narrow_encoder)
    encode = load_encoder(Path("vgg19.h5"), engine)
    assert encode.name == engine
    assert encode(frames[:2]).shape == (2, 7, 7, 8)


def test_an_engine_that_is_missing_is_one_sentence(narrow_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "build_encoder", lambda weights: narrow_encoder)
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(
        FeatureError, match=r"^MNN, which .*, does not load \(.*\); install it, or choose another folder"
    ):
        load_encoder(Path("vgg19.h5"), "MNN")


@needs_mnn
def test_a_full_disk_of_temporary_files_is_one_sentence(
    narrow_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNN crashes the process if it reads what it could not write whole."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(storing, "shutil", Mock(disk_usage=lambda folder: Mock(free=0)))
    with pytest.raises(
        StorageError, match=rf"^a temporary file in {tmp_path} was not written .*; free 2 MiB there, or"
    ):
        winograd_encoder(narrow_encoder)
