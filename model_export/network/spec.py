"""``HeadSpec``, the description of a head's network, and the constants that all networks share."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.model import bundle
from service.model.bundle import Manifest, Variant

# The paper's T and F. The bundle's manifest defines what the service feeds the network.
FRAME_COUNT: int = Manifest.model_fields["frame_count"].default
IMAGE_SIZE: int = Manifest.model_fields["image_size"].default
GRID: int = bundle.GRID
CELLS = GRID * GRID
CHANNELS = 512
# Revisions, which keys of kept results and the facts of heads and features contain.
# Raise the first with any change of what a head computes from the same weights, the second with any change of what
# ``build_encoder`` computes from the same frames: results and weights of other revisions are then refused.
NETWORK_REVISION = 1
ENCODER_REVISION = 1

AttentionScores = Literal["state", "content", "uniform"]
Readout = Literal["last", "mean"]
FeatureScaling = Literal["none", "root"]
FeatureDtype = Literal["float16", "float32"]
"""Type in which features are stored."""
Engine = Literal["TensorFlow", "TensorFlow in bfloat16", "MNN"]
"""Library, and type of its arithmetic, that computes features; each rounds differently."""


class HeadSpec(BaseModel):
    """Everything that ``build_head`` needs to know, except the number of classes.

    The description of a field is the help of the option that sets it. ``channels`` follows from the encoder and is not
    an option: it differs from VGG19's 512 only with a narrower encoder, in tests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant = Field(
        "attention",
        description="Network: `attention` attends to 7×7 cells of each frame, `base` reads frames whole and gives no "
        "attention maps.",
    )
    attention_scores: AttentionScores = Field(
        "content",
        description="How cells are scored: `content` by what each cell shows, `state` by the sLSTM's state and the "
        "frame's mean cell only, as the paper is worded. `base` ignores it.",
    )
    readout: Readout = Field(
        "mean", description="What the classifier reads: the sLSTM's `last` output or the `mean` of its 40 outputs."
    )
    feature_scaling: FeatureScaling = Field(
        "root",
        description="Scaling of VGG19's features: `root` takes square roots and brings every cell to the same length, "
        "`none` leaves them as they are, as the paper does.",
    )
    motion: bool = Field(
        True,
        description="Also feed the sLSTM how much each frame differs from earlier ones; the paper's network has no "
        "such input.",
    )
    members: int = Field(
        1,
        ge=1,
        description="Train this many heads from different seeds and average their answers in one head; time and size "
        "grow in proportion.",
    )
    channels: int = Field(CHANNELS, ge=1)
