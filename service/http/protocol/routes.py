"""Open Inference Protocol v2 over the same network as /predict, for clients that decode their clips themselves."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as version_of
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service.errors import DeadlineExceeded
from service.http.middleware.access_log import record_of
from service.http.openapi import Document, Responses, answered, problems
from service.http.problems import Problem
from service.http.protocol import examples, schemas
from service.http.protocol.tensors import (
    DATATYPE,
    INPUT,
    Body,
    TensorRequest,
    TensorSpec,
    inflate,
    read_request,
    write_answer,
)
from service.http.routes import server_timing, while_client_waits
from service.http.serving import Open, Ready, Served, Serving, Warm
from service.model.model import Model

HEADER_LENGTH = "Inference-Header-Content-Length"
PLATFORM = "onnxruntime_onnx"  # Triton's name for it

F = TypeVar("F", bound=Callable[..., Any])

_problems = partial(problems, under="/v2")
_KNOWN = _problems("unknown_model", "not_ready")
_INFERRED: Responses = {
    200: {
        "content": {
            "application/json": {"schema": examples.RESPONSE_SCHEMA, "example": examples.RESPONSE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        }
    },
    **_problems(
        "invalid_tensor", "unknown_model", "upload_timeout", "body_too_large", "unsupported_media", "overloaded",
        "not_ready", "draining", "deadline_exceeded",
    ),
}  # fmt: skip
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_REQUEST: Document = {
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": "Length of the JSON, where bytes of tensors follow it.",
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


async def _named_model(pipeline: Warm, request: Request, name: str) -> Model:
    """The model, which has to be of the path's name and version. Raises Problem `unknown_model`."""
    manifest = pipeline.model.manifest
    version = request.path_params.get("version")
    if name != manifest.name or version not in {None, manifest.version}:
        asked = name if version is None else f"{name}, version {version}"
        raise Problem(
            "unknown_model", f"the model {asked} is not here, only {manifest.name}, version {manifest.version}"
        )
    return pipeline.model


Named = Annotated[Model, Depends(_named_model)]


def _of_model(method: str, suffix: str, *, openapi_extra: Document | None = None, **options: Any) -> Callable[[F], F]:
    """Route what is asked of a model, with its version in the path or without."""
    extra = openapi_extra or {}
    versioned = extra | {"parameters": [*extra.get("parameters", ()), _VERSION]}

    def register(endpoint: F) -> F:
        for version, described in (("", extra), ("/versions/{version}", versioned)):
            path = f"/models/{{name}}{version}{suffix}"
            router.add_api_route(path, endpoint, methods=[method], openapi_extra=described, **options)
        return endpoint

    return register


@router.get("", responses=answered(examples.SERVER))
async def server_metadata() -> schemas.ServerMetadata:
    """Name, version and protocol extensions of this server."""
    return schemas.ServerMetadata(
        name="limelight", version=version_of("limelight"), extensions=["binary_tensor_data", "model_configuration"]
    )


@router.get("/health/live", responses=answered({"live": True}))
async def server_live() -> schemas.Live:
    """Whether the process answers at all."""
    return schemas.Live(live=True)


@router.get("/health/ready", responses=answered({"ready": True}) | _problems("not_ready", "draining"))
async def server_ready(_: Ready) -> schemas.Ready:
    """Whether inference is served."""
    return schemas.Ready(ready=True)


@_of_model("GET", "", responses=answered(examples.MODEL) | _KNOWN)
async def model_metadata(model: Named) -> schemas.ModelMetadata:
    """The model's tensors."""
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


@_of_model("GET", "/ready", responses=answered(examples.READY) | _KNOWN)
async def model_ready(model: Named) -> schemas.ModelReady:
    """Whether the model answers."""
    return schemas.ModelReady(name=model.manifest.name, ready=True)


@_of_model("GET", "/config", responses=answered(examples.CONFIG) | _KNOWN)
async def model_config(model: Named) -> schemas.ModelConfig:
    """The model's tensors in the words of Triton's model configuration extension."""
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


@_of_model(
    "POST",
    "/infer",
    dependencies=[Depends(_named_model)],  # before the body is read, and once more when it is here
    response_class=Response,
    responses=_INFERRED,
    openapi_extra=_REQUEST,
)
async def infer(request: Request, serving: Served, pipeline: Open, name: str) -> Response:
    """Classify clips whose 40 frames each are decoded and resized already."""
    record = record_of(request)
    deadline = record.arrived + serving.settings.request_timeout_s
    body = bytearray()  # grows in place; `request.body()` would copy all of it at the end
    async for chunk in request.stream():
        body += chunk
    serving.metrics.upload_bytes.observe(len(body))
    model = await _named_model(pipeline, request, name)
    with model.held():
        asked = await _understand(request, serving, body, _spec(model), deadline)
        record.end_receive(serving.metrics)
        work = pipeline.infer(model, asked.frames, deadline=deadline, stages=record.stages)
        found = await while_client_waits(request, work)
    record.answered = time.monotonic()
    arrays = {"probabilities": found.probabilities}
    if found.attention is not None:
        arrays["attention"] = found.attention
    answer, header_length = write_answer(
        arrays,
        asked.outputs,
        model=model.manifest.name,
        version=model.manifest.version,
        request_id=asked.id,
    )
    headers = server_timing(record)
    if header_length is None:
        return Response(answer, media_type="application/json", headers=headers)
    return Response(
        answer, media_type="application/octet-stream", headers={**headers, HEADER_LENGTH: str(header_length)}
    )


async def _understand(
    request: Request, serving: Serving, body: Body, spec: TensorSpec, deadline: float
) -> TensorRequest:
    """What is asked for. In a thread, for it may take long; one at a time, for it may take much memory."""
    encoding, header_length = request.headers.get("Content-Encoding", ""), request.headers.get(HEADER_LENGTH)

    def read() -> TensorRequest:
        return read_request(inflate(body, encoding, serving.settings.max_body_bytes), header_length, spec)

    try:
        async with asyncio.timeout(deadline - time.monotonic()), serving.reading_tensors:
            return await asyncio.to_thread(read)
    except TimeoutError as error:
        raise DeadlineExceeded("the tensors were not read in time") from error


def _spec(model: Model) -> TensorSpec:
    return TensorSpec(model.manifest.clip_shape, model.capacity, tuple(model.manifest.output_shapes))
