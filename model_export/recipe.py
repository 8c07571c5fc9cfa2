"""``Recipe``: how a head is trained."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_export.network.spec import HeadSpec

# Raised with any change of the head that ``fit_head`` makes of the same clips, network and settings.
FITTING_REVISION = 3
# Members add to the seed, and the seeds of NumPy, Keras and scikit-learn end at 2**32 - 1.
LARGEST_SEED = 2**31 - 1

Schedule = Literal["cosine", "constant"]
ClassWeights = Literal["none", "balanced"]


class Recipe(BaseModel):
    """Everything that ``fit_head`` needs to know besides the network.

    The description of a field is the help of the option that sets it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(16, ge=1, description="Largest number of epochs; the learning rate's schedule spans them.")
    # Chosen by loss, because accuracy on a few dozen clips varies too much.
    patience: int = Field(4, ge=1, description="Stop after this many epochs without a lower held-out loss.")
    holdout: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="Share of each class's source videos held out to choose the number of epochs; the head is then "
        "trained on all clips. 0 holds out nothing and trains for all --epochs.",
    )
    batch_size: int = Field(16, ge=1, description="Clips per training step; lower it if memory runs out.")
    learning_rate: float = Field(5e-4, ge=0, description="Learning rate of RMSProp; lower it if the loss jumps.")
    schedule: Schedule = Field(
        "cosine",
        description="Learning rate over the epochs: `cosine` falls to 0 along half a cosine, `constant` keeps it.",
    )
    feature_dropout: float = Field(
        0.5,
        ge=0,
        le=0.9,
        description="Share of VGG19's channels hidden from each clip in training; raise it against overfitting.",
    )
    doubly_stochastic: float = Field(
        0.0,
        ge=0,
        description="Weight of the penalty on attention that leaves parts of a clip out (Xu et al., eq 14); 0 turns it "
        "off, and `base` ignores it.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of RMSProp; 0 turns it off.")
    label_smoothing: float = Field(
        0.1, ge=0, le=0.9, description="Share of each target spread evenly over all classes; 0 turns it off."
    )
    class_weights: ClassWeights = Field(
        "none",
        description="Weight of a clip in the loss: `none` weighs all alike, `balanced` weighs classes alike, whatever "
        "their numbers of clips. Choose it if some classes have far fewer clips. Held-out loss and accuracy are not "
        "weighted.",
    )
    flip: bool = Field(
        False,
        description="Also train on mirrored clips, each shown mirrored half of the time; doubles the features to "
        "compute. Leave it off if left and right tell your classes apart.",
    )
    tensorboard: Path | None = Field(
        None,
        description="Folder to also write the log of each training to, for TensorBoard; use one for each --output.",
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Seed of the weights, the order of clips, dropout and the folds."
    )


def settings(spec: HeadSpec, recipe: Recipe) -> dict[str, Any]:
    """Every setting that a trained head depends on, by name, as ``head.json`` and checkpoints keep them.

    The versions of Keras and TensorFlow are not among them: like processors, they change a head by rounding only.
    """
    from model_export.revisions import CURRENT  # noqa: PLC0415 - it loads PyAV, which `--help` does not need

    return {
        **spec.model_dump(include=HeadSpec.model_fields.keys() - {"channels"}),
        **recipe.model_dump(exclude={"tensorboard"}),
        **{f"{name}_revision": revision for name, revision in CURRENT.model_dump().items()},
        "fitting_revision": FITTING_REVISION,
    }


def describe(spec: HeadSpec, recipe: Recipe) -> str:
    """Every setting in one line, for reports and to recognise the same settings by."""
    return ", ".join(f"{name}={value}" for name, value in settings(spec, recipe).items())
