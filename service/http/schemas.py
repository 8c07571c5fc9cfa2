"""The answers, as documented in OpenAPI."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.pipeline import Model, Prediction


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ModelFacts(_Answer):
    """Which network answered, in which precision, on what."""

    name: str
    version: str
    variant: str
    precision: str
    provider: str

    @classmethod
    def of(cls, model: Model) -> Self:
        """The facts of this network."""
        manifest = model.manifest
        return cls(
            name=manifest.name,
            version=manifest.version,
            variant=manifest.variant,
            precision=model.precision,
            provider=model.provider,
        )


class ClipAnswer(_Answer):
    """What the clip was. Width and height in pixels as coded, before the rotation in degrees clockwise."""

    model_config = ConfigDict(from_attributes=True)

    container: str
    codec: str
    width: int
    height: int
    frames: int
    duration_s: float
    rotation: int
    damaged_frames: int = Field(description="Sampled frames that could not be decoded and repeat the one before.")


class RankedLabel(_Answer):
    """One of the likeliest classes."""

    label: str
    index: int
    probability: float


class Attention(_Answer):
    """Where the network looked: one map a sampled frame, rows from the top, each map summing to 1."""

    grid: tuple[int, int]
    maps: list[list[list[float]]]


class FrameAnswer(_Answer):
    """A sampled frame: its index in presentation order, and its time after the first frame."""

    model_config = ConfigDict(from_attributes=True)

    index: int
    time_s: float


class Timings(_Answer):
    """Milliseconds by stage; the rest of the total is waiting for a decoder and bookkeeping."""

    receive: float
    decode: float
    queue: float
    inference: float
    total: float


class PredictionAnswer(_Answer):
    """The answer of `POST /predict`."""

    model: ModelFacts
    clip: ClipAnswer
    predictions: list[RankedLabel] = Field(description="The `top_k` likeliest classes, likeliest first.")
    probabilities: list[float] = Field(description="One a class, in index order.")
    attention: Attention | None = Field(description="Null where not wanted, or where the network has none.")
    frames: list[FrameAnswer] = Field(description="The sampled frames, in the order of the attention's maps.")
    timings_ms: Timings

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        *,
        model: ModelFacts,
        labels: list[str],
        top_k: int,
        attention: bool,
        timings_ms: Timings,
    ) -> Self:
        """A prediction in words. `top_k` may be more than there are classes."""
        probabilities = prediction.probabilities.tolist()
        ranking = np.argsort(-prediction.probabilities, kind="stable")[:top_k].tolist()
        return cls(
            model=model,
            clip=ClipAnswer.model_validate(prediction.clip),
            predictions=[RankedLabel(label=labels[i], index=i, probability=probabilities[i]) for i in ranking],
            probabilities=probabilities,
            attention=_attention(prediction) if attention else None,
            frames=[FrameAnswer.model_validate(frame) for frame in prediction.sampled],
            timings_ms=timings_ms,
        )


def _attention(prediction: Prediction) -> Attention | None:
    if prediction.attention is None:
        return None
    # Seven decimals are all that float32 knows of a share of 1, and halve the answer.
    maps = prediction.attention.astype(np.float64).round(7)
    return Attention(grid=(maps.shape[1], maps.shape[2]), maps=maps.tolist())


class ProblemAnswer(_Answer):
    """RFC 9457 problem details, with a stable `code` and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Health(_Answer):
    """The answer of the health checks."""

    status: str
