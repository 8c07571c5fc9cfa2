"""What the commands ask about a clip and get, and how a bundle in this process answers (``remote``: a service)."""

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from service.assembly import load_pipeline
from service.cli.clips import Clip, ClipProblem
from service.errors import ClipError
from service.metrics import Metrics
from service.pipeline import Prediction, Stages
from service.settings import Settings
from service.video.decoder import ClipFacts


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parts of an answer a command needs.

    Attributes:
        top_k: Number of classes in ``Answer.ranking``.
        json: Whether to fill in ``Answer.json``.
        overlay: Whether to fill in ``Answer.frames`` and ``Answer.attention``.
    """

    top_k: int = 5
    json: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one clip.

    Attributes:
        ranking: Labels and probabilities of the most likely classes, most likely first.
        clip: Facts about the clip.
        model: The model's name, version, precision and provider, as a line of text.
        timings_ms: Milliseconds of the stages ``decode``, ``queue`` and ``inference``, and ``total``, which
            is more than their sum.
        times_s: Time of each sampled frame in seconds.
        attention: float32 ``(40, 7, 7)``; ``None`` if it is not wanted or the network has none.
        frames: The sampled frames, uint8 ``(40, 224, 224, 3)``, RGB; ``None`` if they are not wanted.
        json: The API's answer; ``None`` if it is not wanted.
    """

    ranking: list[tuple[str, float]]
    clip: ClipFacts
    model: str
    timings_ms: Mapping[str, float]
    times_s: list[float]
    attention: npt.NDArray[np.float32] | None
    frames: npt.NDArray[np.uint8] | None
    json: Mapping[str, Any] | None


Classify = Callable[[Clip], Answer]
"""Classifies a clip; threads may call it. Raises ``ClipProblem``, or ``CommandError`` if no clip can be classified."""
Result = TypeVar("Result")


@contextlib.contextmanager
def in_process(settings: Settings, wanted: Wanted) -> Iterator[Classify]:
    """Classify with a bundle in this process. Each clip is decoded once, in the sandbox.

    Args:
        settings: Names the bundle, how to run it, and what a clip may cost.
        wanted: Which parts of the answers are needed.

    Raises:
        BundleError: The bundle is missing, damaged or of another schema.
        EngineError: The network cannot run as configured.
        DecodersError: The decoder processes cannot be started.
    """
    with contextlib.closing(load_pipeline(settings, Metrics())) as pipeline, _event_loop() as run:
        places = threading.BoundedSemaphore(pipeline.model.capacity)

        def classify(clip: Clip) -> Answer:
            started, stages = time.monotonic(), Stages(receive=0)
            with places, clip.in_memory() as file:
                try:
                    prediction = run(pipeline.predict(file, deadline=math.inf, stages=stages, frames=wanted.overlay))
                except ClipError as error:
                    raise _problem(clip.name, error, wanted) from error
            timings_ms = {**stages.milliseconds(), "total": round(1000 * (time.monotonic() - started), 3)}
            return _of_prediction(prediction, timings_ms, wanted)

        yield classify


@contextlib.contextmanager
def _event_loop() -> Iterator[Callable[[Coroutine[Any, Any, Result]], Result]]:
    """Run an event loop in a thread. Yields a function that runs a coroutine there and waits for its result.

    Leaving the context cancels what is running.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="pipeline", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    """Cancel all other tasks of the event loop, and wait for their end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _problem(name: str, error: ClipError, wanted: Wanted) -> ClipProblem:
    """Return the problem of a clip at fault. Its title and status are those of the API, if JSON is wanted."""
    title, status = "The clip cannot be classified", None
    if wanted.json:
        from service.http.problems import KINDS

        title, status = KINDS[error.code].title, KINDS[error.code].status
    return ClipProblem(name, error.code, str(error), title=title, status=status)


def _of_prediction(prediction: Prediction, timings_ms: dict[str, float], wanted: Wanted) -> Answer:
    model, outputs = prediction.model, prediction.outputs
    manifest = model.manifest
    ranking = np.argsort(-outputs.probabilities, kind="stable")[: wanted.top_k].tolist()
    return Answer(
        ranking=[(manifest.labels[index], float(outputs.probabilities[index])) for index in ranking],
        clip=prediction.clip,
        model=model_line(manifest.name, manifest.version, model.precision, model.provider),
        timings_ms=timings_ms,
        times_s=[frame.time_s for frame in prediction.sampled],
        attention=outputs.attention,
        frames=prediction.frames,
        json=_api_json(prediction, timings_ms, wanted.top_k) if wanted.json else None,
    )


def _api_json(prediction: Prediction, timings_ms: dict[str, float], top_k: int) -> Mapping[str, Any]:
    """Return what ``POST /predict`` would answer."""
    from service.http.schemas import ModelFacts, Timings, answer_json

    answer: dict[str, Any] = json.loads(
        answer_json(
            prediction,
            model=ModelFacts.of(prediction.model),
            labels=prediction.model.manifest.labels,
            top_k=top_k,
            attention=True,
            timings_ms=Timings.model_validate(timings_ms),
        )
    )
    return answer


def model_line(name: str, version: str, precision: str, provider: str) -> str:
    """Return the line about a model that is printed with an answer."""
    return f"{name} {version}, {precision} on {provider}"
