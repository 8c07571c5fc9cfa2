"""Messages of the Open Inference Protocol v2 (JSON over HTTP) that the service understands and sends.

The protocol: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol. Binary tensors and
model configuration are Triton's extensions of these names. Unknown fields of requests are ignored. Docstrings and
descriptions of answers go into the OpenAPI document, so they are Markdown.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Bounded, because the details of problems repeat them.
Name = Annotated[str, Field(max_length=256)]
RequestId = Annotated[str, Field(max_length=1024)]  # which answers repeat
Shape = Annotated[list[Annotated[int, Field(ge=-(2**63), lt=2**63)]], Field(max_length=16)]


def _without_nulls(fields: Any) -> Any:
    """Leave out fields that are null: clients that write every field of their models mean that they are absent."""
    return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields


Parameters = Annotated[dict[str, Any], AfterValidator(_without_nulls)]


class _Message(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), strict=True)


class _Request(_Message):
    _drop_nulls = model_validator(mode="before")(_without_nulls)


class RequestedOutput(_Request):
    """A requested output. Its parameter ``binary_data`` asks for the numbers as bytes after the JSON."""

    name: Name
    parameters: Parameters = {}


class InputTensor(_Request):
    """An input tensor. ``data`` is true if an array of numbers was cut out of the JSON (see ``tensors``)."""

    name: Name
    shape: Shape
    datatype: Name
    parameters: Parameters = {}
    data: Literal[True] | None = None


class InferenceRequest(_Request):
    """The JSON part of an inference request. Without ``outputs``, all outputs are requested."""

    id: RequestId | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[RequestedOutput] = Field([], max_length=16)


class ServerMetadata(_Message):
    """The answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Message):
    """A tensor of the model; -1 in its shape stands for the number of clips."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Message):
    """The answer of `GET /v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(_Message):
    """A tensor in Triton's model configuration: `dims` is its shape without the number of clips."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(_Message):
    """The answer of `GET /v2/models/{name}/config`, which Triton's tools request."""

    name: str
    platform: str
    max_batch_size: int = Field(description="Largest number of clips in one request.")
    input: list[TensorConfig]
    output: list[TensorConfig]


class ModelList(_Message):
    """The answer of `GET /v2/models`."""

    models: list[str]


class RepositoryModel(_Message):
    """A model in the answer of `POST /v2/repository/index`."""

    name: str
    version: str
    state: str
    reason: str


class Duration(_Message):
    """How many durations were measured, and their sum in nanoseconds."""

    count: int
    ns: int


class Durations(_Message):
    """Durations of predictions and their stages. Stages that are not measured separately have zeros."""

    success: Duration = Field(description="Answered predictions, from the request's arrival to the end of the answer.")
    fail: Duration = Field(description="Refused, failed and cancelled predictions.")
    queue: Duration = Field(description="Waiting for the engine.")
    compute_input: Duration = Field(description="Decoding the clips of `/predict`.")
    compute_infer: Duration = Field(description="Running the network.")
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(_Message):
    """Statistics of a model since the service started, in the form of Triton's statistics extension."""

    name: str
    version: str
    last_inference: int = Field(description="Time of the last inference in milliseconds since 1970, or 0.")
    inference_count: int = Field(description="Clips that the network has classified.")
    execution_count: int = Field(description="Batches that the network has run.")
    inference_stats: Durations
    batch_stats: list[Any] = Field(description="Always empty: durations are not measured per batch size.")


class Statistics(_Message):
    """The answer of `GET /v2/models/stats`."""

    model_stats: list[ModelStatistics]


class Live(_Message):
    """The answer of `GET /v2/health/live`."""

    live: bool


class Ready(_Message):
    """The answer of `GET /v2/health/ready`."""

    ready: bool


class ModelReady(_Message):
    """The answer of `GET /v2/models/{name}/ready`."""

    name: str
    ready: bool
