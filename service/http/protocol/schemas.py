"""The messages of the Open Inference Protocol v2 (JSON over HTTP), as far as this service speaks it.

The protocol: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol; its binary tensors and
model configuration: Triton's extensions of these names. What a message holds beyond these fields is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Bounded, since they are repeated in what is said of them.
Name = Annotated[str, Field(max_length=256)]
Shape = Annotated[list[Annotated[int, Field(ge=-(2**63), lt=2**63)]], Field(max_length=16)]
Parameters = dict[str, Any]


class _Message(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), strict=True)


class RequestedOutput(_Message):
    """An output that is wanted; the parameter `binary_data` says whether after the JSON, as bytes."""

    name: Name
    parameters: Parameters = {}


class InputTensor(_Message):
    """A tensor that was sent: `data` is true where numbers were cut out of the JSON (see `tensors`)."""

    name: Name
    shape: Shape
    datatype: Name
    parameters: Parameters = {}
    data: Literal[True] | None = None


class InferenceRequest(_Message):
    """The JSON part of a request for inference; without `outputs` all are wanted."""

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
    """A tensor of the model; -1 in its shape is the number of clips."""

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
    """A tensor in Triton's words: `dims` without the number of clips."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(_Message):
    """The answer of `GET /v2/models/{name}/config`, which Triton's tools ask for."""

    name: str
    platform: str
    max_batch_size: int = Field(description="Most clips that one request may hold.")
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
