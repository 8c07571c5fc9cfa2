"""Motion features: a second input of the sLSTM, beside the attended cells; an addition to the paper."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

REGIONS = 3


def region_weights(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Return what to multiply the cells of a frame by for the means of all rows, the upper and the lower ones.

    Returns:
        float32 ``(3, rows · columns)``.
    """
    half = rows // 2
    of_rows = np.ones((REGIONS, rows))
    of_rows[1, half:] = of_rows[2, : rows - half] = 0
    of_cells = np.repeat(of_rows, columns, axis=1)
    weights: npt.NDArray[np.float32] = (of_cells / of_cells.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


@keras.saving.register_keras_serializable("limelight")
class RegionMeans(keras.layers.Layer):
    """Average the cells of each frame over all rows, the upper and the lower ones, in one pass over the cuboids."""

    def call(self, cuboids: Any) -> Any:
        """Compute ``(batch, frames, 3, channels)`` from cuboids ``(batch, frames, 7, 7, channels)``."""
        _, frames, rows, columns, channels = cuboids.shape
        cells = ops.reshape(cuboids, (-1, frames, rows * columns, channels))
        return ops.matmul(ops.cast(region_weights(rows, columns), cells.dtype), cells)


@keras.saving.register_keras_serializable("limelight")
class Motion(keras.Layer):
    """Compute how much each channel's mean changes, over all rows, the upper and the lower rows of the frame.

    For frame t, each region R and each lag: gain · |mean_{i∈R} X_{t,i} − mean_{i∈R} X_{t−lag,i}|, where frames before
    the clip equal its first frame. Many actions show the same things and differ in their rhythm, and in whether arms or
    legs keep it: jumping jacks, push-ups, skipping. Changes are small compared with the values, and gates learn slowly
    from small inputs, hence the gain.

    Args:
        lags: Distances between the frames compared, in frames.
        gain: Factor of all changes.
    """

    def __init__(self, lags: tuple[int, ...] = (1, 4), gain: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lags, self.gain = tuple(lags), gain

    def call(self, means: Any) -> Any:
        """Compute ``(batch, frames, 3 · lags · channels)`` from means of regions ``(batch, frames, 3, channels)``."""
        changes = []
        for region in range(REGIONS):
            mean = means[:, :, region]
            for lag in self.lags:
                before = ops.concatenate([*[mean[:, :1]] * lag, mean[:, :-lag]], axis=1)
                changes.append(self.gain * ops.abs(mean - before))
        return ops.concatenate(changes, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lags": self.lags, "gain": self.gain}
