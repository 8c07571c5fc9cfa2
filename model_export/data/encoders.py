"""Runs the encoder over frames, the fastest way that the machine knows and the features' precision allows.

VGG19 is sixteen 3×3 convolutions. Processors with AMX multiply matrices of bfloat16 in hardware; elsewhere MNN computes
the convolutions by Winograd's algorithm, with a fraction of the multiplications. Seconds a clip of 40 frames on 2 cores
of an AMD EPYC (AVX2) and of an Intel Xeon (AMX), and by how much of their root mean square the cuboids differ from
TensorFlow's in float32 (float16 rounds off up to 4.9e-4 of each value)::

    TensorFlow, float32      10.4    3.9
    ONNX Runtime, float32     8.4
    MNN, Winograd             3.3    3.8    1.4e-4
    TensorFlow, bfloat16             0.6    9e-3
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.network.vgg19 import MEAN_RGB

FeatureDtype = Literal["float16", "float32"]
Frames = npt.NDArray[np.uint8]
Cuboids = npt.NDArray[np.float32]
Encode = Callable[[Frames], Cuboids]
"""Cuboids X_t, float32 ``(n, 7, 7, channels)``, of RGB frames, uint8 ``(n, 224, 224, 3)``."""

# Frames encoded at a time; 8 is measured 10 % faster than 40 on two cores, and needs a fifth of the memory.
CHUNK = 8


@dataclass(frozen=True, slots=True)
class Engine:
    """An encoder on the library that runs it; calling it encodes frames (see ``Encode``).

    Attributes:
        name: of the library, for messages.
        encode_chunk: encodes at most ``CHUNK`` frames.
    """

    name: str
    encode_chunk: Encode

    def __call__(self, frames: Frames) -> Cuboids:
        """Cuboids of any number of frames."""
        return np.concatenate([self.encode_chunk(frames[i : i + CHUNK]) for i in range(0, len(frames), CHUNK)])


def choose_encode(encoder: keras.Model, dtype: FeatureDtype, cpuinfo: Path = Path("/proc/cpuinfo")) -> Engine:
    """The fastest way to run the encoder that is exact enough for features stored as ``dtype``.

    For float16 on a machine without a GPU: bfloat16 where the processor has AMX, else MNN where it is installed and
    loads. Otherwise TensorFlow in float32.
    """
    if dtype == "float16" and not tf.config.list_physical_devices("GPU"):
        if _has_amx(cpuinfo):
            return bfloat16_encode(encoder)
        try:
            return winograd_encode(encoder)
        except ImportError:  # MNN has wheels for x86-64 and 64-bit ARM only
            pass
    return keras_encode(encoder)


def keras_encode(encoder: keras.Model) -> Engine:
    """The encoder on TensorFlow: the reference, and the fastest on a GPU."""
    return Engine("TensorFlow", encoder.predict_on_batch)


def bfloat16_encode(encoder: keras.Model) -> Engine:
    """The encoder on TensorFlow with weights and activations rounded to bfloat16; sums stay float32."""

    def rounded(layer: keras.Layer) -> keras.Layer:
        convolves = isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D))
        return layer.from_config(layer.get_config() | ({"dtype": "bfloat16"} if convolves else {}))

    twin = keras.models.clone_model(encoder, clone_function=rounded)
    twin.set_weights(encoder.get_weights())
    return Engine("TensorFlow in bfloat16", twin.predict_on_batch)


def _has_amx(cpuinfo: Path) -> bool:
    """Whether the processor multiplies matrices of bfloat16, as Linux tells it; elsewhere no."""
    try:
        return "amx_bf16" in cpuinfo.read_text().split()
    except OSError:
        return False


def winograd_encode(encoder: keras.Model) -> Engine:
    """The encoder's weights on MNN, on all cores this process may use.

    Raises:
        ImportError: MNN is not installed, or its library does not load.
    """
    with _without_stdout():
        import MNN

        network = _mnn_network(MNN, encoder)

    def encode_chunk(frames: Frames) -> Cuboids:
        x = MNN.expr.placeholder(list(frames.shape), MNN.expr.NHWC)
        x.write(frames - np.asarray(MEAN_RGB, np.float32))
        # A copy: MNN reuses the memory that it answers with.
        return np.array(network.forward([x])[0].read())

    return Engine("MNN", encode_chunk)


def _mnn_network(MNN: Any, encoder: keras.Model) -> Any:
    """The encoder's convolutions and poolings as MNN's network, from frames less their mean to cuboids.

    The layers are built with MNN's own `nn` and saved, which freezes the weights: only then does it choose Winograd.
    Its ``mnnconvert`` would do the same from ONNX, but installs a package and reports to its maker when it is run.
    """
    expr = MNN.expr
    x = expr.placeholder([CHUNK, *encoder.input_shape[1:]], expr.NHWC)
    x.name = "frames"
    y = expr.convert(x, expr.NC4HW4)
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.Conv2D):
            y = expr.relu(_mnn_convolution(MNN, *layer.get_weights()).forward(y))
        elif isinstance(layer, keras.layers.MaxPooling2D):
            y = expr.max_pool(y, [2, 2], [2, 2])
    y = expr.convert(y, expr.NHWC)
    y.name = "cuboids"
    threads = len(os.sched_getaffinity(0))
    config = {"backend": "CPU", "numThread": threads, "precision": "high", "memory": "high", "power": "high"}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "encoder.mnn")
        expr.save([y], path)
        runtime = MNN.nn.create_runtime_manager((config,))
        return MNN.nn.load_module_from_file(path, [x.name], [y.name], runtime_manager=runtime, shape_mutable=False)


def _mnn_convolution(MNN: Any, kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> Any:
    """A 3×3 convolution with Keras' kernel ``(3, 3, in, out)`` and bias ``(out,)``."""
    _, _, inputs, outputs = kernel.shape
    convolution = MNN.nn.conv(inputs, outputs, [3, 3], [1, 1], [1, 1], [1, 1], False, True, MNN.expr.CAFFE)
    parameters = [np.ascontiguousarray(value, np.float32) for value in (bias, kernel.transpose(3, 2, 0, 1))]
    convolution.load_parameters([MNN.expr.const(value, list(value.shape), MNN.expr.NCHW) for value in parameters])
    convolution.train(False)
    return convolution


@contextmanager
def _without_stdout() -> Iterator[None]:
    """MNN's C++ code prints what the processor can do, past Python's ``sys.stdout``."""
    stdout = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
