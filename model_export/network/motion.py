"""Motion features: a second input of the sLSTM, beside the attended cells; an addition to the paper."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

REGIONS = 3


def regions(cuboids: Any) -> tuple[Any, ...]:
    """Return all rows of the frame, the upper and the lower ones, from cuboids ``(batch, frames, 7, 7, channels)``."""
    half = cuboids.shape[2] // 2
    return cuboids, cuboids[:, :, :half], cuboids[:, :, -half:]


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

    def call(self, cuboids: Any) -> Any:
        """Compute ``(batch, frames, 3 · lags · channels)`` from cuboids ``(batch, frames, 7, 7, channels)``."""
        return self.changes(ops.mean(region, axis=(2, 3)) for region in regions(cuboids))

    def changes(self, means: Iterable[Any]) -> Any:
        """Compute the same from the mean of each region, ``(batch, frames, channels)``."""
        changes = []
        for mean in means:
            for lag in self.lags:
                before = ops.concatenate([*[mean[:, :1]] * lag, mean[:, :-lag]], axis=1)
                changes.append(self.gain * ops.abs(mean - before))
        return ops.concatenate(changes, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lags": self.lags, "gain": self.gain}
