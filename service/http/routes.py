"""The service's own API: predictions, health, the model's manifest and metrics."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.http.examples import MANIFEST, PREDICTION
from service.http.middleware.access_log import RequestRecord, record_of
from service.http.openapi import example_response, problem_responses
from service.http.schemas import Health, ModelFacts, PredictionAnswer, Timings, answer_json
from service.http.serving import OpenPipeline, ReadyPipeline, ServingState, WarmPipeline, cancel_on_disconnect
from service.http.upload import receive_clip
from service.isolation.clip_file import ClipFile
from service.metrics import Metrics
from service.model.bundle import Manifest

_REFUSALS = (
    "empty_body", "malformed_multipart", "missing_file", "upload_timeout", "body_too_large", "unsupported_media",
    "corrupt_clip", "no_frames", "clip_too_long", "resolution_too_large", "decode_timeout", "decoder_crashed",
    "decoder_fault", "invalid_parameter", "overloaded", "not_ready", "decoders_unavailable", "draining",
    "deadline_exceeded",
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

# The docstrings of routes go into the OpenAPI document, so they are Markdown.


@router.post(
    "/predict",
    response_model=PredictionAnswer,
    responses=example_response(PREDICTION) | problem_responses(*_REFUSALS),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _FORM, "application/octet-stream": _CLIP, "video/*": _CLIP},
        }
    },
)
async def predict(
    request: Request,
    serving: ServingState,
    pipeline: OpenPipeline,
    top_k: Annotated[int, Query(ge=1, description="Number of most likely classes to list.")] = 5,
    attention: Annotated[bool, Query(description="Whether to return the attention maps.")] = True,
    frames: Annotated[
        Literal["jpeg"] | None, Query(description="Set to `jpeg` to get a small picture of each sampled frame.")
    ] = None,
) -> Response:
    """Classify a clip. Send it as the part `file` of a multipart form, or as the request's body."""
    record = record_of(request)
    deadline = record.arrived + serving.settings.request_timeout_s
    with ClipFile() as clip:
        await _receive(request, clip, serving.metrics)
        work = pipeline.predict(clip, deadline=deadline, stages=record.stages, jpegs=frames == "jpeg")
        prediction = await cancel_on_disconnect(request, work)
    record.answered = time.monotonic()
    answer = answer_json(
        prediction,
        model=ModelFacts.of(prediction.model),
        labels=prediction.model.manifest.labels,
        top_k=top_k,
        attention=attention,
        timings_ms=_timings(record),
    )
    return Response(answer, media_type="application/json", headers={"Server-Timing": record.server_timing()})


@router.get("/health/live", responses=example_response({"status": "live"}))
async def live() -> Health:
    """Check whether the process responds."""
    return Health(status="live")


@router.get(
    "/health/ready",
    responses=example_response({"status": "ready"})
    | problem_responses("not_ready", "decoders_unavailable", "draining"),
)
async def ready(_: ReadyPipeline) -> Health:
    """Check whether to send predictions here.

    The model is warmed up, decoder processes can be started, and the service is not shutting down.
    """
    return Health(status="ready")


@router.get("/model", responses=example_response(MANIFEST) | problem_responses("not_ready"))
async def model(pipeline: WarmPipeline) -> Manifest:
    """Get the manifest of the bundle in service."""
    return pipeline.model.manifest


@router.get(
    "/metrics", response_class=PlainTextResponse, responses=example_response("limelight_ready 1.0\n", "text/plain")
)
async def metrics(request: Request, serving: ServingState) -> Response:
    """Get the service's metrics in Prometheus' text format, or as OpenMetrics if the client accepts it."""
    content, media_type = serving.metrics.render(request.headers.get("Accept", ""))
    return Response(content, media_type=media_type)


async def _receive(request: Request, clip: ClipFile, metrics: Metrics) -> None:
    """Receive the clip, and measure how long that took and how large the clip is."""
    await receive_clip(request, clip)
    record_of(request).end_receive(metrics)
    metrics.upload_bytes.observe(clip.size)


def _timings(record: RequestRecord) -> Timings:
    stages = record.stages.milliseconds()
    shown = {stage: stages[stage] for stage in ("receive", "decode", "queue", "inference")}
    return Timings(**shown, total=round(1000 * (time.monotonic() - record.arrived), 3))
