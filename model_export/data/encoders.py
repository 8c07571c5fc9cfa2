"""Running the encoder over frames: on the fastest library that the machine has and the features' precision allows.

VGG19 is sixteen 3×3 convolutions. Processors with AMX or AVX-512 BF16 multiply bfloat16 numbers in hardware; on others,
MNN computes the convolutions by Winograd's algorithm, with a fraction of the multiplications. Measured on 2 cores of an
AMD EPYC with AVX2, of an AMD EPYC with AVX-512 BF16 and of an Intel Xeon with AMX: seconds per clip of 40 frames on
each, and the cuboids' difference from TensorFlow's in float32, relative to their root mean square (storing them as
float16 changes each value by up to 4.9e-4 of itself)::

                             AVX2    AVX-512 BF16    AMX    difference
    TensorFlow, float32      10.4             3.3    3.9
    ONNX Runtime, float32     8.4
    MNN, Winograd             3.3             2.8    3.8    1.4e-4
    TensorFlow, bfloat16                      1.7    0.6    9e-3

Since the features differ, those of one folder are all computed by one engine (see ``FeatureCache``).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.errors import FeatureError
from model_export.network.arrays import Cuboids, Frames
from model_export.network.spec import Engine, FeatureDtype
from model_export.network.vgg19 import MEAN_RGB, build_encoder
from model_export.storing import MIB, temporary_folder

# Frames per call; 8 is 10 % faster than 40 on two cores, as measured, and needs a fifth of the memory.
CHUNK = 8
# Linux' names of the instructions that multiply bfloat16 numbers.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True, slots=True)
class FrameEncoder:
    """An encoder on the library that runs it, as a function from frames to cuboids.

    Attributes:
        name: Name of the engine.
        encode_chunk: Encodes at most ``CHUNK`` frames.
    """

    name: Engine
    encode_chunk: Callable[[Frames], Cuboids]

    def __call__(self, frames: Frames) -> Cuboids:
        """Encode any number of frames, uint8 ``(n, 224, 224, 3)``, to float32 ``(n, 7, 7, channels)``."""
        return np.concatenate([self.encode_chunk(frames[i : i + CHUNK]) for i in range(0, len(frames), CHUNK)])


def fastest_engine(dtype: FeatureDtype, cpuinfo: Path = Path("/proc/cpuinfo")) -> Engine:
    """Choose the fastest engine that is exact enough for features stored as ``dtype``.

    For float16 on a machine without a GPU, that is bfloat16 if the processor has instructions for it, otherwise MNN if
    it is installed and loads. In all other cases it is TensorFlow in float32.
    """
    if dtype == "float16" and not tf.config.list_physical_devices("GPU"):
        if _multiplies_bfloat16(cpuinfo):
            return "TensorFlow in bfloat16"
        try:
            _import_mnn()
        except ImportError:  # MNN has wheels for x86-64 and 64-bit ARM only
            return "TensorFlow"
        return "MNN"
    return "TensorFlow"


def load_encoder(weights: Path, engine: Engine) -> FrameEncoder:
    """Build VGG19 from its weights file, on an engine.

    Raises:
        FeatureError: The engine is not installed, or its library does not load.
    """
    encoder = build_encoder(weights)
    match engine:
        case "TensorFlow":
            return keras_encoder(encoder)
        case "TensorFlow in bfloat16":
            return bfloat16_encoder(encoder)
        case "MNN":
            try:
                return winograd_encoder(encoder)
            except ImportError as error:
                raise FeatureError(
                    f"MNN, which has to compute these features, does not load ({error}); install it, or choose another "
                    "folder for features"
                ) from error


def keras_encoder(encoder: keras.Model) -> FrameEncoder:
    """Run the encoder on TensorFlow in float32: the reference, and the fastest on a GPU."""
    return FrameEncoder("TensorFlow", encoder.predict_on_batch)


def bfloat16_encoder(encoder: keras.Model) -> FrameEncoder:
    """Run the encoder on TensorFlow with weights and activations rounded to bfloat16; sums stay float32."""

    def rounded(layer: keras.Layer) -> keras.Layer:
        convolves = isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D))
        return layer.from_config(layer.get_config() | ({"dtype": "bfloat16"} if convolves else {}))

    twin = keras.models.clone_model(encoder, clone_function=rounded)
    twin.set_weights(encoder.get_weights())
    return FrameEncoder("TensorFlow in bfloat16", twin.predict_on_batch)


def _multiplies_bfloat16(cpuinfo: Path) -> bool:
    """Check for instructions on bfloat16 as Linux reports them; other systems count as without."""
    try:
        return not BFLOAT16_FLAGS.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return False


def winograd_encoder(encoder: keras.Model) -> FrameEncoder:
    """Run the encoder on MNN, on all cores that this process may use.

    Raises:
        ImportError: MNN is not installed, or its library does not load.
    """
    MNN = _import_mnn()
    with _without_stdout():
        network = _mnn_network(MNN, encoder)

    def encode_chunk(frames: Frames) -> Cuboids:
        x = MNN.expr.placeholder(list(frames.shape), MNN.expr.NHWC)
        x.write(frames - np.asarray(MEAN_RGB, np.float32))
        # A copy, since MNN reuses the memory of its result.
        return np.array(network.forward([x])[0].read())

    return FrameEncoder("MNN", encode_chunk)


def _import_mnn() -> Any:
    with _without_stdout():
        import MNN
    return MNN


def _mnn_network(MNN: Any, encoder: keras.Model) -> Any:
    """Build the encoder's convolutions and poolings in MNN, from mean-subtracted frames to cuboids.

    The layers are built with MNN's own ``nn`` module and saved, which freezes the weights: only then does MNN choose
    Winograd. Its ``mnnconvert`` would do the same from ONNX, but installs a package and sends usage data to its maker
    when it runs.
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
    with temporary_folder(4 * encoder.count_params() + MIB) as folder:
        path = str(folder / "encoder.mnn")
        expr.save([y], path)
        runtime = MNN.nn.create_runtime_manager((config,))
        return MNN.nn.load_module_from_file(path, [x.name], [y.name], runtime_manager=runtime, shape_mutable=False)


def _mnn_convolution(MNN: Any, kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> Any:
    """Build a 3×3 convolution from Keras' kernel ``(3, 3, in, out)`` and bias ``(out,)``."""
    _, _, inputs, outputs = kernel.shape
    convolution = MNN.nn.conv(inputs, outputs, [3, 3], [1, 1], [1, 1], [1, 1], False, True, MNN.expr.CAFFE)
    parameters = [np.ascontiguousarray(value, np.float32) for value in (bias, kernel.transpose(3, 2, 0, 1))]
    convolution.load_parameters([MNN.expr.const(value, list(value.shape), MNN.expr.NCHW) for value in parameters])
    convolution.train(False)
    return convolution


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Silence MNN's C++ code, which prints the processor's features to file descriptor 1."""
    stdout = os.dup(1)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
