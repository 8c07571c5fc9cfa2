"""How the cuboids are scaled before the head reads them; the paper leaves them as VGG19 gives them."""

from typing import Any, Literal

import keras
from keras import ops

FeatureScaling = Literal["none", "root"]


@keras.saving.register_keras_serializable("limelight")
class RootScaling(keras.Layer):
    """Square roots, every cell brought to the same length: x → √x · √channels / (‖√x‖ + 1).

    The strongest of VGG19's 512 channels answers twelve times as strongly as the median one (means over 605 clips of
    UCF-101), and cells differ; gates and tanhs would follow the few. The power and the length are those of the improved
    Fisher vector (Perronnin, Sánchez and Mensink, ECCV 2010); the 1 keeps a cell in which nothing answers at nought.
    """

    def call(self, cuboids: Any) -> Any:
        """Activations ``(…, channels)``, none negative → scaled ones, about 1 in the mean square."""
        root = ops.sqrt(cuboids)
        length = ops.sqrt(ops.sum(cuboids, axis=-1, keepdims=True))
        return root * (cuboids.shape[-1] ** 0.5 / (length + 1.0))
