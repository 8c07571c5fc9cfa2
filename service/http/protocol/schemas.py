"""Messages of the Open Inference Protocol v2 (JSON over HTTP) that the service understands and sends.

The protocol: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol. Binary tensors and
model configuration are Triton's extensions of these names. Unknown fields of requests are ignored. Docstrings and
descriptions of answers go into the OpenAPI document, so they are Markdown.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Bounded, because the details of problems repeat them.
Name = Annotated[str, Field(max_length=256)]
Shape = Annotated[list[Annotated[int, Field(ge=-(2**63), lt=2**63)]], Field(max_length=16)]
Parameters = dict[str, Any]


class _Message(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), strict=True)


class RequestedOutput(_Message):
    """A requested output. Its parameter ``binary_data`` asks for the numbers as bytes after the JSON."""

    name: Name
    parameters: Parameters = {}


class InputTensor(_Message):
    """An input tensor. ``data`` is true if an array of numbers was cut out of the JSON (see ``tensors``)."""

    name: Name
    shape: Shape
    datatype: Name
    parameters: Parameters = {}
    data: Literal[True] | None = None


class InferenceRequest(_Message):
    """The JSON part of an inference request. Without ``outputs``, all outputs are requested."""

    id: str | None = None
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
