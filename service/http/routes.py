import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from service.http.examples import MANIFEST, PREDICTION
from service.http.middleware.access_log import RequestRecord, record_of
from service.http.openapi import answered, problems
from service.http.schemas import Health, ModelFacts, PredictionAnswer, Timings, answer_json
from service.http.serving import Open, Ready, Served, Serving, Warm
from service.http.upload import receive_clip
from service.isolation.clip_file import ClipFile
from service.model.bundle import Manifest

CLIENT_GONE = 499  # nginx's number for it; nobody is left to read it but the log and the metrics

T = TypeVar("T")


_REFUSALS = (
    "empty_body", "malformed_multipart", "missing_file", "upload_timeout", "body_too_large", "unsupported_media",
    "corrupt_clip", "no_frames", "clip_too_long", "resolution_too_large", "decode_timeout", "decoder_crashed",
    "invalid_parameter", "overloaded", "not_ready", "draining", "deadline_exceeded",
)  # fmt: skip
_CLIP = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary", "description": "The clip."}},
    }
}

router = APIRouter()


@router.post(
    "/predict",
    response_model=PredictionAnswer,
    responses=answered(PREDICTION) | problems(*_REFUSALS),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _FORM, "application/octet-stream": _CLIP, "video/*": _CLIP},
        }
    },
)
async def predict(
    request: Request,
    serving: Served,
    pipeline: Open,
    top_k: Annotated[int, Query(ge=1, description="How many of the likeliest classes to list.")] = 5,
    attention: Annotated[bool, Query(description="Whether to send the attention maps.")] = True,
    frames: Annotated[
        Literal["jpeg"] | None, Query(description="`jpeg`: send a small picture of each sampled frame.")
    ] = None,
) -> Response:
    """Classify a clip, sent as the file `file` of a multipart form or as the body itself."""
    record = record_of(request)
    deadline = record.arrived + serving.settings.request_timeout_s
    with ClipFile() as clip:
        await _receive(request, serving, clip)
        work = pipeline.predict(clip, deadline=deadline, stages=record.stages, jpegs=frames == "jpeg")
        prediction = await while_client_waits(request, work)
    record.answered = time.monotonic()
    answer = answer_json(
        prediction,
        model=ModelFacts.of(prediction.model),
        labels=prediction.model.manifest.labels,
        top_k=top_k,
        attention=attention,
        timings_ms=_timings(record),
    )
    return Response(answer, media_type="application/json", headers=server_timing(record))


@router.get("/health/live", responses=answered({"status": "live"}))
async def live() -> Health:
    """Whether the process answers at all."""
    return Health(status="live")


@router.get("/health/ready", responses=answered({"status": "ready"}) | problems("not_ready", "draining"))
async def ready(_: Ready) -> Health:
    """Whether to send predictions here: the model is loaded and warmed up, and the service is not shutting down."""
    return Health(status="ready")


@router.get("/model", responses=answered(MANIFEST) | problems("not_ready"))
async def model(pipeline: Warm) -> Manifest:
    """The manifest of the bundle that is served."""
    return pipeline.model.manifest


@router.get("/metrics", response_class=PlainTextResponse, responses=answered("limelight_ready 1.0\n", "text/plain"))
async def metrics(serving: Served) -> Response:
    """The service's metrics in Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _receive(request: Request, serving: Serving, clip: ClipFile) -> None:
    record = record_of(request)
    await receive_clip(request, clip)
    record.end_receive(serving.metrics)
    serving.metrics.upload_bytes.observe(clip.size)


async def while_client_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client goes away; then ClientDisconnect is raised."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def server_timing(record: RequestRecord) -> dict[str, str]:
    """The header that tells the stages so far, in milliseconds (W3C Server Timing)."""
    stages = record.stages.milliseconds().items()
    return {"Server-Timing": ", ".join(f"{stage};dur={duration:.3f}" for stage, duration in stages)}


async def _disconnected(request: Request) -> None:
    await request.receive()  # once the body has been read this is all that can come


def _timings(record: RequestRecord) -> Timings:
    stages = record.stages.milliseconds()
    shown = {stage: stages[stage] for stage in ("receive", "decode", "queue", "inference")}
    return Timings(**shown, total=round(1000 * (time.monotonic() - record.arrived), 3))
