"""How a clip moves, told to the sLSTM beside what it attends to; the paper leaves it to find out from the cells."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("limelight")
class Motion(keras.Layer):
    """By how much each channel's mean changes, over the whole frame and over what is above and below its middle.

    Of frame t: for each region R and each lag, gain · |mean_{i∈R} X_{t,i} − mean_{i∈R} X_{t−lag,i}|; before the
    clip there is its first frame. Many actions show the same things and differ in rhythm, and in whether arms or legs
    keep it: jumping jacks, push-ups, a rope. The changes are small beside the values, and gates learn from small inputs
    slowly: hence the gain.

    Args:
        lags: in frames.
        gain: of all changes.
    """

    def __init__(self, lags: tuple[int, ...] = (1, 4), gain: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lags, self.gain = tuple(lags), gain

    def call(self, cuboids: Any) -> Any:
        """Cuboids ``(batch, frames, 7, 7, channels)`` → ``(batch, frames, 3 · lags · channels)``."""
        half = cuboids.shape[2] // 2
        changes = []
        for region in (cuboids, cuboids[:, :, :half], cuboids[:, :, -half:]):
            mean = ops.mean(region, axis=(2, 3))
            for lag in self.lags:
                before = ops.concatenate([*[mean[:, :1]] * lag, mean[:, :-lag]], axis=1)
                changes.append(self.gain * ops.abs(mean - before))
        return ops.concatenate(changes, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lags": self.lags, "gain": self.gain}
