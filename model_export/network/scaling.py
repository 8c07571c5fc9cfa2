"""Scaling of the cuboids before the head reads them; the paper uses them as VGG19 gives them."""

from typing import Any

import keras
from keras import ops

# Far below any activation (the smallest float16 above 0 is 6e-8): its root, 1e-15, is 0 for all that follows.
LEAST = 1e-30


@keras.saving.register_keras_serializable("limelight")
class RootScaling(keras.Layer):
    """Take square roots and bring every cell to the same length: x → √x · √channels / (‖√x‖ + 1).

    The strongest of VGG19's 512 channels is twelve times as strong as the median one (means over 605 clips of
    UCF-101), and cells differ as well; without scaling, a few channels would dominate the gates. The power and the
    normalisation are those of the improved Fisher vector (Perronnin, Sánchez and Mensink, ECCV 2010); the 1 keeps a
    cell without any activation at zero.
    """

    def call(self, cuboids: Any) -> Any:
        """Scale non-negative activations ``(…, channels)`` to a mean square of about 1."""
        length = _root(ops.sum(cuboids, axis=-1, keepdims=True))
        return _root(cuboids) * (cuboids.shape[-1] ** 0.5 / (length + 1.0))


def _root(x: Any) -> Any:
    """Compute √x, with the gradient 0 at 0: that of ``sqrt`` is infinite there, and most activations are 0."""
    return ops.sqrt(ops.maximum(x, LEAST))
