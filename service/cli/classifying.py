"""Where the command line gets its answers from: a running service, or a bundle that runs in this process."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from service.assembly import load_pipeline
from service.errors import ClipError, CommandError
from service.isolation.processes import DecoderProcesses
from service.metrics import Metrics
from service.pipeline import Pipeline, Prediction, Stages
from service.settings import Settings
from service.video.decoder import ClipFacts
from service.video.limits import DecodeLimits

# A prediction may wait behind others on a small machine; a server that runs accepts the connection at once.
TIMEOUT = httpx.Timeout(600, connect=10)
EXAMPLE_URL = "http://127.0.0.1:8000"
DECODE_MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command wants to know of each clip: the likeliest classes, and more where set.

    Attributes:
        top_k: Number of classes in ``Answer.ranking``.
        json: Whether ``Answer.json`` is wanted.
        overlay: Whether ``Answer.frames`` and ``Answer.attention`` are wanted.
    """

    top_k: int = 5
    json: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one clip.

    Attributes:
        ranking: Labels and probabilities of the likeliest classes, the likeliest first.
        clip: What the clip is.
        model: The model's name, version, precision and provider, for people.
        timings_ms: Milliseconds of the stages ``decode``, ``queue`` and ``inference``, and ``total``.
        times_s: Time of each sampled frame in seconds.
        attention: float32 ``(40, 7, 7)``; None where it is not wanted or the network has none.
        frames: uint8 ``(40, 224, 224, 3)``, RGB; None where they are not wanted.
        json: The answer as the API gives it, on one line; None where it is not wanted.
    """

    ranking: list[tuple[str, float]]
    clip: ClipFacts
    model: str
    timings_ms: Mapping[str, float]
    times_s: list[float]
    attention: npt.NDArray[np.float32] | None
    frames: npt.NDArray[np.uint8] | None
    json: str | None


Classify = Callable[[str, bytes], Answer]
"""Classifies a clip, given its name for messages and its bytes. Raises CommandError."""


@contextlib.contextmanager
def in_process(settings: Settings, wanted: Wanted) -> Iterator[Classify]:
    """Classify with the bundle that the settings name, in this process; clips are decoded in the sandbox.

    Raises:
        BundleError: The bundle is missing, damaged or of another schema.
        EngineError: The network cannot run as configured.
        DecodersError: The decoder processes cannot be started.
    """
    pipeline = load_pipeline(settings, Metrics())
    with contextlib.closing(pipeline), asyncio.Runner() as runner:

        def classify(name: str, data: bytes) -> Answer:
            try:
                return runner.run(_run_pipeline(pipeline, data, wanted))
            except ClipError as error:
                raise CommandError(f"{name}: {error}") from error

        yield classify


async def _run_pipeline(pipeline: Pipeline, data: bytes, wanted: Wanted) -> Answer:
    started = time.monotonic()
    model, stages = pipeline.model, Stages(receive=0)
    decoded = await pipeline.decode(data, stages)
    inference = await model.answer(decoded.frames, math.inf)
    stages.queue, stages.inference = inference.queue_s, inference.inference_s
    prediction = Prediction(model, decoded.facts, decoded.sampled, inference.outputs, None)
    timings_ms = {**stages.milliseconds(), "total": round(1000 * (time.monotonic() - started), 3)}
    probabilities, manifest = inference.outputs.probabilities, model.manifest
    ranking = np.argsort(-probabilities, kind="stable")[: wanted.top_k].tolist()
    return Answer(
        ranking=[(manifest.labels[index], float(probabilities[index])) for index in ranking],
        clip=decoded.facts,
        model=f"{manifest.name} {manifest.version}, {model.precision} on {model.provider}",
        timings_ms=timings_ms,
        times_s=[frame.time_s for frame in decoded.sampled],
        attention=inference.outputs.attention,
        frames=decoded.frames if wanted.overlay else None,
        json=_json(prediction, wanted.top_k, timings_ms) if wanted.json else None,
    )


def _json(prediction: Prediction, top_k: int, timings_ms: dict[str, float]) -> str:
    from service.http.schemas import ModelFacts, Timings, answer_json  # the schema of the API's answers

    return answer_json(
        prediction,
        model=ModelFacts.of(prediction.model),
        labels=prediction.model.manifest.labels,
        top_k=top_k,
        attention=True,
        timings_ms=Timings.model_validate(timings_ms),
    ).decode()


@contextlib.contextmanager
def over_http(url: str, key: str | None, wanted: Wanted) -> Iterator[Classify]:
    """Classify with a running service.

    Args:
        url: Address of the service.
        key: API key to send, if any.
        wanted: What to ask for.

    Raises:
        CommandError: ``url`` is not an address.
    """
    credentials = {"Authorization": f"Bearer {key}"} if key else {}
    local = _host(url) in {"127.0.0.1", "localhost", "::1"}
    with httpx.Client(timeout=TIMEOUT, trust_env=not local) as client:  # no proxy between a machine and itself

        def classify(name: str, data: bytes) -> Answer:
            try:
                response = client.post(
                    f"{url.rstrip('/')}/predict",
                    params={"top_k": wanted.top_k, "attention": wanted.json or wanted.overlay},
                    headers={"Content-Type": "application/octet-stream", **credentials},
                    content=data,
                )
            except httpx.HTTPError as error:
                raise CommandError(
                    f"no service answers at {url} ({error}); start one with `limelight serve`, or give --bundle"
                ) from error
            return _parse(response, name, data, url, wanted)

        yield classify


def _host(url: str) -> str:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CommandError(f"{url} is not an address ({error}); give one such as {EXAMPLE_URL}") from error
    if address.scheme not in {"http", "https"}:
        raise CommandError(f"{url} is not an HTTP address; give one such as {EXAMPLE_URL}")
    return address.host


def _parse(response: httpx.Response, name: str, data: bytes, url: str, wanted: Wanted) -> Answer:
    from service.http.schemas import PredictionAnswer, ProblemAnswer

    try:
        if not response.is_success:
            problem = ProblemAnswer.model_validate_json(response.content)
            raise CommandError(f"{name}: {problem.title}: {problem.detail} ({problem.status} {problem.code})")
        answer = PredictionAnswer.model_validate_json(response.content)
    except ValidationError as error:
        raise CommandError(
            f"{url} answered with status {response.status_code}, but not as Limelight does; check the address"
        ) from error
    model = answer.model
    return Answer(
        ranking=[(ranked.label, ranked.probability) for ranked in answer.predictions],
        clip=ClipFacts(**answer.clip.model_dump()),
        model=f"{model.name} {model.version}, {model.precision} on {model.provider}",
        timings_ms=answer.timings_ms.model_dump(),
        times_s=[frame.time_s for frame in answer.frames],
        attention=None if answer.attention is None else np.array(answer.attention.maps, np.float32),
        frames=_decode(name, data) if wanted.overlay else None,
        json=response.text if wanted.json else None,
    )


def _decode(name: str, data: bytes) -> npt.NDArray[np.uint8]:
    """The sampled frames of a clip that a service has answered, decoded once more, here, in the sandbox."""
    with contextlib.closing(DecoderProcesses(DecodeLimits(), memory_bytes=DECODE_MEMORY_BYTES)) as decoders:
        try:
            return asyncio.run(decoders.decode(data)).frames
        except ClipError as error:
            raise CommandError(f"{name}: {error}") from error
