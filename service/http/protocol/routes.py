"""Routes of the Open Inference Protocol v2: the model of ``/predict`` for clients that decode clips themselves."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as version_of
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.errors import DeadlineExceeded
from service.http.middleware.access_log import record_of
from service.http.middleware.body_limits import hold_body
from service.http.openapi import Document, Responses, example_response, problem_responses
from service.http.problems import Problem
from service.http.protocol import examples, schemas
from service.http.protocol.statistics import statistics_of
from service.http.protocol.tensors import (
    DATATYPE,
    INPUT,
    Body,
    TensorRequest,
    TensorSpec,
    check_codings,
    inflate,
    read_request,
    write_answer,
)
from service.http.serving import (
    OpenPipeline,
    ReadyPipeline,
    Serving,
    ServingState,
    WarmPipeline,
    cancel_on_disconnect,
)
from service.http.upload import content_codings
from service.model.bundle import Manifest, Outputs
from service.model.model import Model
from service.threads import run_alone

HEADER_LENGTH = "Inference-Header-Content-Length"
PLATFORM = "onnxruntime_onnx"  # Triton's name for ONNX Runtime

F = TypeVar("F", bound=Callable[..., Any])

_problems = partial(problem_responses, under="/v2")
_MODEL_PROBLEMS = _problems("bad_request", "unknown_model", "not_ready")
_INDEX_PROBLEMS = ("upload_timeout", "body_too_large", "overloaded", "not_ready")
_INFER_RESPONSES: Responses = {
    200: {
        "content": {
            "application/json": {"schema": examples.RESPONSE_SCHEMA, "example": examples.RESPONSE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        }
    },
    **_problems(
        "bad_request", "invalid_tensor", "unknown_model", "upload_timeout", "body_too_large", "unsupported_media",
        "overloaded", "not_ready", "draining", "deadline_exceeded",
    ),
}  # fmt: skip
_PLAIN: Document = {"pattern": r"^[^\u0000-\u001f\u007f]+$"}  # no control characters; the connection refuses them
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"} | _PLAIN}
_INFER_REQUEST: Document = {
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": "Length of the JSON in bytes; required if binary tensors follow it.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": examples.REQUEST_SCHEMA, "example": examples.REQUEST},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

# The docstrings of routes go into the OpenAPI document, so they are Markdown.


Name = Annotated[str, Path(json_schema_extra=_PLAIN)]


async def _named_model(pipeline: WarmPipeline, request: Request, name: Name) -> Model:
    """Return the model in service if the path has its name and, if any, its version.

    Raises:
        Problem: It has another name or version (``unknown_model``).
    """
    manifest = pipeline.model.manifest
    version = request.path_params.get("version")
    if name != manifest.name or version not in {None, manifest.version}:
        asked = name if version is None else f"{name}, version {version}"
        raise Problem(
            "unknown_model",
            f"this service does not serve the model {asked}; it serves {manifest.name}, version {manifest.version}",
        )
    return pipeline.model


NamedModel = Annotated[Model, Depends(_named_model)]


def _model_route(
    method: str, suffix: str, *, openapi_extra: Document | None = None, **options: Any
) -> Callable[[F], F]:
    """Add a route under a model's path, once without and once with the version in the path."""
    extra = openapi_extra or {}
    versioned = extra | {"parameters": [*extra.get("parameters", ()), _VERSION]}

    def register(endpoint: F) -> F:
        # A name may contain slashes; Triton's client does not encode them.
        for version, described in (("/versions/{version}", versioned), ("", extra)):
            path = f"/models/{{name:path}}{version}{suffix}"
            router.add_api_route(path, endpoint, methods=[method], openapi_extra=described, **options)
        return endpoint

    return register


@router.get("", responses=example_response(examples.SERVER))
async def server_metadata() -> schemas.ServerMetadata:
    """Get name, version and protocol extensions of this server."""
    return schemas.ServerMetadata(
        name="limelight",
        version=version_of("limelight"),
        extensions=["binary_tensor_data", "model_configuration", "statistics"],
    )


@router.get("/health/live", responses=example_response({"live": True}))
async def server_live() -> schemas.Live:
    """Check whether the process responds."""
    return schemas.Live(live=True)


@router.get(
    "/health/ready",
    responses=example_response({"ready": True}) | _problems("not_ready", "decoders_unavailable", "draining"),
)
async def server_ready(_: ReadyPipeline) -> schemas.Ready:
    """Check whether inference is served."""
    return schemas.Ready(ready=True)


@router.get("/models", responses=example_response(examples.MODELS) | _problems("not_ready"))
async def models(pipeline: WarmPipeline) -> schemas.ModelList:
    """List the models in service: there is one."""
    return schemas.ModelList(models=[pipeline.model.manifest.name])


@router.post("/repository/index", responses=example_response(examples.INDEX) | _problems(*_INDEX_PROBLEMS))
async def repository_index(request: Request, pipeline: WarmPipeline) -> list[schemas.RepositoryModel]:
    """List the models in service, in the form of Triton's repository index. A body is ignored."""
    async for _ in request.stream():
        pass  # an answer before the end of the body would close the connection
    manifest = pipeline.model.manifest
    return [schemas.RepositoryModel(name=manifest.name, version=manifest.version, state="READY", reason="")]


# Before the routes of named models, so that `stats` is not taken for a name.
@router.get("/models/stats", responses=example_response(examples.STATISTICS) | _problems("not_ready"))
async def statistics(serving: ServingState, pipeline: WarmPipeline) -> schemas.Statistics:
    """Get counts and durations since the service started. They include the clips of `/predict`."""
    return statistics_of(pipeline.model.manifest, serving.metrics)


@_model_route("GET", "/stats", responses=example_response(examples.STATISTICS) | _MODEL_PROBLEMS)
async def model_statistics(serving: ServingState, model: NamedModel) -> schemas.Statistics:
    """Get counts and durations since the service started. They include the clips of `/predict`."""
    return statistics_of(model.manifest, serving.metrics)


@_model_route("GET", "/ready", responses=example_response(examples.READY) | _MODEL_PROBLEMS)
async def model_ready(model: NamedModel) -> schemas.ModelReady:
    """Check whether the model is ready for inference."""
    return schemas.ModelReady(name=model.manifest.name, ready=True)


@_model_route("GET", "/config", responses=example_response(examples.CONFIG) | _MODEL_PROBLEMS)
async def model_config(model: NamedModel) -> schemas.ModelConfig:
    """Get the model's tensors in the form of Triton's model configuration extension."""
    return schemas.ModelConfig(
        name=model.manifest.name,
        platform=PLATFORM,
        max_batch_size=model.capacity,
        input=[schemas.TensorConfig(name=INPUT, data_type=f"TYPE_{DATATYPE}", dims=list(model.manifest.clip_shape))],
        output=[
            schemas.TensorConfig(name=name, data_type="TYPE_FP32", dims=list(shape))
            for name, shape in model.manifest.output_shapes.items()
        ],
    )


@_model_route(
    "POST",
    "/infer",
    dependencies=[Depends(_named_model)],  # before the body is read; ``infer`` checks again when it has arrived
    response_class=Response,
    responses=_INFER_RESPONSES,
    openapi_extra=_INFER_REQUEST,
)
async def infer(request: Request, serving: ServingState, pipeline: OpenPipeline, name: Name) -> Response:
    """Classify clips that are already decoded: 40 frames each, resized to 224×224 RGB."""
    record = record_of(request)
    deadline = record.arrived + serving.settings.request_timeout_s
    check_codings(content_codings(request.headers))
    body = await _receive(request)
    serving.metrics.upload_bytes.observe(len(body))
    model = await _named_model(pipeline, request, name)
    with model.held():
        reading = _read_tensors(request, serving, body, _spec(model), deadline)
        tensors = await cancel_on_disconnect(request, reading)
        record.end_receive(serving.metrics)
        if tensors.timeout_s is not None:
            deadline = min(deadline, record.arrived + tensors.timeout_s)
        work = pipeline.infer(model, tensors.frames, deadline=deadline, stages=record.stages)
        outputs = await cancel_on_disconnect(request, work)
    record.answered = time.monotonic()
    return _answer(outputs, tensors, model.manifest, record.server_timing())


@router.get("/models/{name:path}/infer", include_in_schema=False)
async def infer_by_get() -> None:
    """Refuse GET, because the next route would take `infer` for the end of a name with slashes."""
    raise HTTPException(405, headers={"Allow": "POST"})


# After the routes of a model's own paths, which would otherwise be taken for the rest of a name with slashes.
@_model_route("GET", "", responses=example_response(examples.MODEL) | _MODEL_PROBLEMS)
async def model_metadata(model: NamedModel) -> schemas.ModelMetadata:
    """Get names, data types and shapes of the model's tensors."""
    return schemas.ModelMetadata(
        name=model.manifest.name,
        versions=[model.manifest.version],
        platform=PLATFORM,
        inputs=[schemas.TensorMetadata(name=INPUT, datatype=DATATYPE, shape=[-1, *model.manifest.clip_shape])],
        outputs=[
            schemas.TensorMetadata(name=name, datatype="FP32", shape=[-1, *shape])
            for name, shape in model.manifest.output_shapes.items()
        ],
    )


async def _receive(request: Request) -> bytearray:
    body = bytearray()  # grows in place, whereas ``request.body()`` would copy all of it at the end
    async for chunk in request.stream():
        body += chunk
    return body


async def _read_tensors(
    request: Request, serving: Serving, body: Body, spec: TensorSpec, deadline: float
) -> TensorRequest:
    """Parse the body in a thread, because that may take long, and one at a time, because it may take much memory.

    The body's memory stays reserved until the thread has ended, even if the request ends before.

    Raises:
        Problem: The body cannot be parsed, or does not match the model.
        DeadlineExceeded: The body was not parsed before the deadline.
    """
    codings, header_length = content_codings(request.headers), request.headers.get(HEADER_LENGTH)

    def read() -> TensorRequest:
        return read_request(inflate(body, codings, serving.settings.max_body_bytes), header_length, spec)

    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await run_alone(serving.reading_tensors, read, ended=hold_body(request.scope))
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the tensors were not parsed in time; send fewer clips, or send binary tensors"
        ) from error


def _answer(outputs: Outputs, request: TensorRequest, manifest: Manifest, server_timing: str) -> Response:
    arrays = {"probabilities": outputs.probabilities}
    if outputs.attention is not None:
        arrays["attention"] = outputs.attention
    content, header_length = write_answer(
        arrays, request.outputs, model=manifest.name, version=manifest.version, request_id=request.id
    )
    headers = {"Server-Timing": server_timing}
    if header_length is None:
        return Response(content, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(header_length)
    return Response(content, media_type="application/octet-stream", headers=headers)


def _spec(model: Model) -> TensorSpec:
    return TensorSpec(model.manifest.clip_shape, model.capacity, tuple(model.manifest.output_shapes))
