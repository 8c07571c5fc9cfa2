"""Where ``limelight predict`` and ``limelight demo`` get answers: from a running service, or from a bundle."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from service.assembly import load_pipeline
from service.errors import ClipError, CommandError
from service.isolation.processes import DecoderProcesses
from service.metrics import Metrics
from service.pipeline import Prediction, Stages
from service.settings import DEFAULT_URL, LOOPBACK, Settings
from service.video.decoder import ClipFacts
from service.video.limits import DecodeLimits

# A prediction may wait behind others on a small machine, but a running server accepts the connection at once.
TIMEOUT = httpx.Timeout(600, connect=10)
MOST_TEXT = 200  # characters shown of an answer that is not Limelight's
DECODE_MEMORY_BYTES: int = Settings.model_fields["decode_memory_bytes"].default


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
        json: The API's answer on one line; ``None`` if it is not wanted.
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
"""Classifies a clip, given its name (for error messages) and its bytes. Raises ``CommandError``."""


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
    pipeline = load_pipeline(settings, Metrics())
    with contextlib.closing(pipeline), asyncio.Runner() as runner:

        def classify(name: str, data: bytes) -> Answer:
            started, stages = time.monotonic(), Stages(receive=0)
            work = pipeline.predict(data, deadline=math.inf, stages=stages, frames=wanted.overlay)
            try:
                prediction = runner.run(work)
            except ClipError as error:
                raise CommandError(f"{name}: {error}") from error
            timings_ms = {**stages.milliseconds(), "total": round(1000 * (time.monotonic() - started), 3)}
            return _of_prediction(prediction, timings_ms, wanted)

        yield classify


def _of_prediction(prediction: Prediction, timings_ms: dict[str, float], wanted: Wanted) -> Answer:
    model, outputs = prediction.model, prediction.outputs
    manifest = model.manifest
    ranking = np.argsort(-outputs.probabilities, kind="stable")[: wanted.top_k].tolist()
    return Answer(
        ranking=[(manifest.labels[index], float(outputs.probabilities[index])) for index in ranking],
        clip=prediction.clip,
        model=_model_line(manifest.name, manifest.version, model.precision, model.provider),
        timings_ms=timings_ms,
        times_s=[frame.time_s for frame in prediction.sampled],
        attention=outputs.attention,
        frames=prediction.frames,
        json=_api_json(prediction, timings_ms, wanted.top_k) if wanted.json else None,
    )


def _api_json(prediction: Prediction, timings_ms: dict[str, float], top_k: int) -> str:
    """Return what ``POST /predict`` would answer."""
    from service.http.schemas import ModelFacts, Timings, answer_json

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
        url: Address of the service: ``http://…``, ``https://…``, or ``unix:`` and the path of a Unix socket.
        key: API key to send, if any.
        wanted: Which parts of the answers are needed.

    Raises:
        CommandError: ``url`` is not an HTTP address, or the proxy of the environment cannot be used.
    """
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with _client(url) as client:

        def classify(name: str, data: bytes) -> Answer:
            try:
                response = client.post(
                    "/predict",
                    params={"top_k": wanted.top_k, "attention": wanted.json or wanted.overlay},
                    headers=headers,
                    content=data,
                )
            except (httpx.HTTPError, UnicodeError) as error:  # the latter for a host that cannot be looked up
                raise CommandError(
                    f"no service answers at {_shown(url)} ({error}); start one with `limelight serve`, or give --bundle"
                ) from error
            answer = _of_response(response, name, _shown(url), wanted)
            return replace(answer, frames=_decode(name, data)) if wanted.overlay else answer

        yield classify


def _client(url: str) -> httpx.Client:
    """Return a client of the service at this address."""
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix:"))
        return httpx.Client(base_url="http://localhost", timeout=TIMEOUT, transport=transport)
    proxied = _host(url) not in LOOPBACK  # a proxy of the environment does not reach this machine's own loopback
    try:
        return httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=proxied)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        reason = f" ({error})" if isinstance(error, ImportError) else ""  # the others may hold the proxy's password
        raise CommandError(
            f"the proxy that the environment names cannot be used{reason}; correct or unset HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY and NO_PROXY"
        ) from error


def _host(url: str) -> str:
    """Return the host of a service's address."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise CommandError(f"{_shown(url)} is not an address; give one such as {DEFAULT_URL}") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise CommandError(f"{_shown(url)} is not an HTTP address; give one such as {DEFAULT_URL}")
    return address.host


def _shown(url: str) -> str:
    """Return a service's address for an error message, unless a password or a token may be a part of it."""
    return url if url.startswith("unix:") or not any(mark in url for mark in "@?#") else "the given address"


def _of_response(response: httpx.Response, name: str, url: str, wanted: Wanted) -> Answer:
    from service.http.schemas import PredictionAnswer, ProblemAnswer

    try:
        if not response.is_success:
            problem = ProblemAnswer.model_validate_json(response.content)
            raise CommandError(f"{name}: {problem.title}: {problem.detail} ({problem.status} {problem.code})")
        answer = PredictionAnswer.model_validate_json(response.content)
    except ValidationError as error:
        raise CommandError(
            f"the answer from {url} (status {response.status_code}) is not Limelight's, but `{_beginning(response)}`; "
            "check the address and the proxies on the way"
        ) from error
    model = answer.model
    return Answer(
        ranking=[(ranked.label, ranked.probability) for ranked in answer.predictions],
        clip=answer.clip,
        model=_model_line(model.name, model.version, model.precision, model.provider),
        timings_ms=answer.timings_ms.model_dump(),
        times_s=[frame.time_s for frame in answer.frames],
        attention=None if answer.attention is None else np.array(answer.attention.maps, np.float32),
        frames=None,
        json=response.text if wanted.json else None,
    )


def _beginning(response: httpx.Response) -> str:
    """Return a foreign answer's status and the beginning of its text, unless the server repeats what authenticates."""
    status = f"{response.status_code} {response.reason_phrase}"
    credentials = response.request.headers.get("Authorization", "").rpartition(" ")[2]
    text = " ".join(response.text[:MOST_TEXT].split())
    return status if not text or (credentials and credentials in response.text) else f"{status}: {text}"


def _decode(name: str, data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a clip here, in the sandbox, because a service's answer does not hold the frames that it sampled."""
    with contextlib.closing(DecoderProcesses(DecodeLimits(), memory_bytes=DECODE_MEMORY_BYTES)) as decoders:
        try:
            return asyncio.run(decoders.decode(data)).frames
        except ClipError as error:
            raise CommandError(f"{name}: {error}") from error


def _model_line(name: str, version: str, precision: str, provider: str) -> str:
    return f"{name} {version}, {precision} on {provider}"
