"""``Revisions``: which versions of the code a head belongs to, since the same weights are another head under others."""

from pydantic import BaseModel, ConfigDict

from model_export.network.spec import ENCODER_REVISION, NETWORK_REVISION
from service.video.decoder import RESIZE_REVISION
from service.video.sampling import SAMPLING_REVISION


class Revisions(BaseModel):
    """Revisions of everything between a clip and a head's answer that is not a setting.

    Attributes:
        network: What a head computes from the same weights.
        encoder: What VGG19 computes from the same frames.
        sampling: Which frames of a clip are shown to it.
        resize: How they are resized.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: int
    encoder: int
    sampling: int
    resize: int

    def differences(self, current: "Revisions") -> dict[str, str]:
        """Describe, by name, each revision that is not the current one."""
        now = current.model_dump()
        return {name: f"{name} {was} (now {now[name]})" for name, was in self.model_dump().items() if was != now[name]}


CURRENT = Revisions(
    network=NETWORK_REVISION, encoder=ENCODER_REVISION, sampling=SAMPLING_REVISION, resize=RESIZE_REVISION
)
