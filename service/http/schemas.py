"""The bodies of answers. Their docstrings and descriptions go into the OpenAPI document, so they are Markdown."""

from base64 import b64encode
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.json_schema import SkipJsonSchema

from service.model.model import Model
from service.pipeline import Prediction
from service.video.decoder import ClipFacts


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ModelFacts(_Answer):
    """The model that answered, its precision, and the execution provider that ran it."""

    name: str
    version: str
    variant: str
    precision: str
    provider: str

    @classmethod
    def of(cls, model: Model) -> Self:
        """Return the facts of a model."""
        manifest = model.manifest
        return cls(
            name=manifest.name,
            version=manifest.version,
            variant=manifest.variant,
            precision=model.precision,
            provider=model.provider,
        )


@pydantic_dataclass(frozen=True)
class ClipAnswer(ClipFacts):
    """Facts of the clip.

    Width and height are in pixels as displayed: upright, cropped, and with square pixels. Coded width and height are
    those of the decoded picture before that. The rotation is in degrees clockwise.
    """

    damaged_frames: int = Field(
        description="Number of sampled frames that could not be decoded; each is replaced by the frame before it."
    )


class RankedLabel(_Answer):
    """One of the most likely classes."""

    label: str
    index: int
    probability: float


class Attention(_Answer):
    """Where the network looked: one map per sampled frame, rows from the top; each map sums to 1."""

    grid: tuple[int, int]
    maps: list[list[list[float]]]


class FrameAnswer(_Answer):
    """A sampled frame: its index in presentation order, and its time in seconds after the first frame."""

    index: int
    time_s: float
    jpeg: str | SkipJsonSchema[None] = Field(
        default=None,
        description="The frame at 112×112 pixels, base64-encoded; only present with `frames=jpeg`.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/jpeg"},
    )


class Timings(_Answer):
    """Milliseconds spent in each stage. The total also includes waiting for a decoder and bookkeeping."""

    receive: float
    decode: float
    queue: float
    inference: float
    total: float


class PredictionAnswer(_Answer):
    """The answer of `POST /predict`."""

    model: ModelFacts
    clip: ClipAnswer
    predictions: list[RankedLabel] = Field(description="The `top_k` most likely classes, most likely first.")
    probabilities: list[float] = Field(description="One per class, in index order.")
    attention: Attention | None = Field(description="Null with `attention=false`, or if the network has no attention.")
    frames: list[FrameAnswer] = Field(description="The sampled frames, in the order of the attention maps.")
    timings_ms: Timings


def answer_json(
    prediction: Prediction, *, model: ModelFacts, labels: list[str], top_k: int, attention: bool, timings_ms: Timings
) -> bytes:
    """Serialise a prediction as the JSON of a ``PredictionAnswer``.

    Numbers go straight from arrays to text: as Python objects they would take longer than everything else.

    Args:
        prediction: The prediction.
        model: Facts of the model that answered.
        labels: The name of each class, in index order.
        top_k: Number of most likely classes to list; all of them if there are fewer.
        attention: Whether to include the attention maps.
        timings_ms: Milliseconds of each stage.
    """
    probabilities = prediction.outputs.probabilities.astype(np.float64)
    ranking = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    maps = prediction.outputs.attention if attention else None
    answer = {
        "model": model.model_dump(),
        "clip": prediction.clip,
        "predictions": [{"label": labels[i], "index": i, "probability": probabilities[i]} for i in ranking],
        "probabilities": probabilities,
        "attention": None if maps is None else {"grid": maps.shape[1:], "maps": _rounded(maps)},
        "frames": _frames(prediction),
        "timings_ms": timings_ms.model_dump(),
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _frames(prediction: Prediction) -> Any:
    if prediction.jpegs is None:
        return prediction.sampled
    return [
        {"index": frame.index, "time_s": frame.time_s, "jpeg": b64encode(jpeg).decode()}
        for frame, jpeg in zip(prediction.sampled, prediction.jpegs, strict=True)
    ]


def _rounded(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # float32 holds no more than seven decimals of a fraction of 1; rounding to them halves the answer's size.
    return maps.astype(np.float64).round(7)


class ProblemAnswer(_Answer):
    """RFC 9457 problem details with a stable `code` and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class ProtocolProblemAnswer(ProblemAnswer):
    """Problem details under `/v2`: clients of the Open Inference Protocol read the text from `error`."""

    error: str


class Health(_Answer):
    """The answer of a health check."""

    status: str
