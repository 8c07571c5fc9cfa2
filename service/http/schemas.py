"""The answers, as documented in OpenAPI."""

from base64 import b64encode
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from service.model.model import Model
from service.pipeline import Prediction


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

    index: int
    time_s: float
    jpeg: str | SkipJsonSchema[None] = Field(
        default=None,
        description="The frame, 112×112, in base64; only there where it was asked for by `frames=jpeg`.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/jpeg"},
    )


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


def answer_json(
    prediction: Prediction, *, model: ModelFacts, labels: list[str], top_k: int, attention: bool, timings_ms: Timings
) -> bytes:
    """A PredictionAnswer as JSON. `top_k` may be more than there are classes.

    The numbers go from the arrays straight to text; as Python objects they would take longer than all the rest.
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
    # Seven decimals are all that float32 knows of a share of 1, and halve the answer.
    return maps.astype(np.float64).round(7)


class ProblemAnswer(_Answer):
    """RFC 9457 problem details, with a stable `code` and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class ProtocolProblemAnswer(ProblemAnswer):
    """Problem details under /v2, with the text once more where clients of the Open Inference Protocol look for it."""

    error: str


class Health(_Answer):
    """The answer of the health checks."""

    status: str
