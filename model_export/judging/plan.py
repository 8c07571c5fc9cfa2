"""``EvaluationPlan``: what an evaluation covers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_export.network.spec import AttentionScores, HeadSpec
from service.model.bundle import Variant

FoldKind = Literal["grouped", "random"]
"""How clips are dealt to folds: all clips of a source video together, or each clip on its own."""


class EvaluationPlan(BaseModel):
    """Which networks are judged, on which folds, and what else is measured.

    The description of a field is the help of the option that sets it; tuples are options that may be repeated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k_fold: int = Field(4, ge=2, description="Number of folds; each class needs at least as many source videos.")
    folds: tuple[FoldKind, ...] = Field(
        ("grouped",),
        description="`grouped` keeps all clips of a source video in one fold; `random` does not, so that its figures "
        "are too good and not stated as a head's. Repeat the option to compare both.",
    )
    split: tuple[Annotated[int, Field(ge=1, le=3)], ...] = Field(
        (),
        description="Use this official split of UCF-101 or HMDB-51 instead of folds, without --folds and --k-fold; "
        "repeat the option for several.",
    )
    split_files: Path | None = Field(None, description="Folder of the official split lists; needed by --split.")
    variant: tuple[Variant, ...] = Field(
        ("attention", "base"), description="Network to judge; repeat the option to compare networks."
    )
    attention_scores: tuple[AttentionScores, ...] = Field(
        ("content",),
        description="How `attention` scores cells: `content` by what each cell shows, `state` by the sLSTM's state and "
        "the frame's mean cell only, `uniform` not at all, as the control does. Repeat the option to compare them.",
    )
    controls: bool = Field(
        True,
        description="Also judge what tells attention from motion: each network with motion switched off, or on after "
        "--no-motion, and `uniform attention`, which gives every cell the same weight. This trains two to three times "
        "as many heads; leave them out to save time.",
    )
    attention_quality: bool = Field(
        True, description="Also judge the attention: deletion of cells, rendered actor, map statistics."
    )
    actor_clips: int = Field(24, ge=3, description="Number of clips to render for the rendered actor.")

    @model_validator(mode="after")
    def _splits_or_folds(self) -> "EvaluationPlan":
        if self.split and self.model_fields_set & {"folds", "k_fold"}:
            raise ValueError(
                "--split is judged instead of folds; leave out --folds and --k-fold, or --split, and judge both in two "
                "runs"
            )
        if self.split_files and not self.split:
            raise ValueError("--split-files has no effect without --split; give --split 1, or leave it out")
        return self

    def specs(self, spec: HeadSpec) -> list[HeadSpec]:
        """Return the networks that are asked for: each variant and, if it has attention, each kind of scores."""
        return [
            spec.model_copy(update={"variant": variant, "attention_scores": scores})
            for variant in dict.fromkeys(self.variant)
            for scores in (dict.fromkeys(self.attention_scores) if variant == "attention" else (spec.attention_scores,))
        ]

    def control_specs(self, spec: HeadSpec) -> list[HeadSpec]:
        """Return the networks beside them that show what motion and attention contribute."""
        asked = self.specs(spec)
        uniform = spec.model_copy(update={"variant": "attention", "attention_scores": "uniform"})
        switched = [one.model_copy(update={"motion": not one.motion}) for one in asked]
        controls = [*([uniform] if "attention" in self.variant else []), *switched]
        return [one for one in controls if one not in asked] if self.controls else []
