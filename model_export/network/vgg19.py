"""The encoder: VGG19 up to ``block5_pool`` (paper, Table 1), from 8-bit RGB frames to cuboids X_t of 7×7×512."""

from pathlib import Path

import h5py
import keras
import numpy as np
import numpy.typing as npt

from model_export.network.spec import IMAGE_SIZE

FILTERS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 4, 4, 4)
# ImageNet's mean colour, with which the published weights were trained, in the order R, G, B.
MEAN_RGB = (123.68, 116.779, 103.939)


def build_encoder(
    weights: Path | None = None,
    dtype: str = "float32",
    *,
    filters: tuple[int, ...] | None = None,
    image_size: int = IMAGE_SIZE,
) -> keras.Model:
    """Build VGG19 without its classifier, reading RGB frames as they are decoded.

    Args:
        weights: ``vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5``, or a file with the same layout; ``None`` leaves
            the weights random.
        dtype: Type of the convolutions, ``float32`` or ``float16``. Mean subtraction and the result are always float32.
        filters: Channels of the five blocks; default: those of the file, or VGG19's. Narrower ones make tests quick.
        image_size: Height and width of a frame, a multiple of 32.

    Returns:
        uint8 ``(n, image_size, image_size, 3)`` RGB → float32 ``(n, image_size / 32, image_size / 32, filters[-1])``.
    """
    if filters is None:
        filters = FILTERS if weights is None else _read_filters(weights)
    frames = keras.Input((image_size, image_size, 3), dtype="uint8", name="frames")
    # Not folded into the first bias: that convolution pads with zeros, which must mean the mean colour.
    x = keras.layers.Rescaling(1.0, offset=[-mean for mean in MEAN_RGB], dtype="float32", name="subtract_mean")(frames)
    for block, (channels, convolutions) in enumerate(zip(filters, CONVOLUTIONS, strict=True), start=1):
        for layer in range(1, convolutions + 1):
            x = keras.layers.Conv2D(
                channels, 3, padding="same", activation="relu", dtype=dtype, name=f"block{block}_conv{layer}"
            )(x)
        x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"block{block}_pool")(x)
    cuboids = keras.layers.Identity(dtype="float32", name="cuboids")(x)
    encoder = keras.Model(frames, cuboids, name="vgg19", trainable=False)
    if weights is not None:
        _load_weights(encoder, weights)
    return encoder


def _read_filters(path: Path) -> tuple[int, ...]:
    with h5py.File(path) as file:
        kernels = (_layer_weights(file, f"block{block}_conv1")[0] for block in range(1, len(CONVOLUTIONS) + 1))
        return tuple(kernel.shape[-1] for kernel in kernels)


def _load_weights(encoder: keras.Model, path: Path) -> None:
    with h5py.File(path) as file:
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.Conv2D):
                kernel, bias = _layer_weights(file, layer.name)
                if layer.name == "block1_conv1":
                    # The published kernel expects B, G, R; reversing frames in the graph would rule out CUDA graphs.
                    kernel = kernel[:, :, ::-1, :]
                layer.set_weights([kernel, bias])


def _layer_weights(file: h5py.File, layer: str) -> list[npt.NDArray[np.float32]]:
    """Return the kernel ``(3, 3, in, out)`` and bias ``(out,)`` of a layer."""
    group = file[layer]
    return [np.asarray(group[name]) for name in group.attrs["weight_names"]]
