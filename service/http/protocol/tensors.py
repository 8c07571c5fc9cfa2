"""Requests for inference to arrays, and arrays to answers: JSON, and Triton's binary tensors after it.

A clip is 6 MB of numbers, about 20 MB as JSON. Parsed at once they would be millions of Python objects, up to twenty
times the text's size. So they are cut out of the JSON and parsed in pieces. Nothing that takes long is done to all of
the text in one call, for the interpreter would be locked meanwhile, and the event loop with it.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import ValidationError

from service.http.problems import Problem
from service.http.protocol.schemas import InferenceRequest, InputTensor

INPUT, DATATYPE = "frames", "UINT8"
MAX_HEADER_BYTES = 2**20
PIECE_BYTES = 2**16
# zlib's name for "gzip or zlib, whichever it is"; the latter is what HTTP calls deflate.
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_DATA = re.compile(rb'"data"\s*:\s*(?=\[)')
_BLANKS, _DIGITS = b" \t\r\n", b"0123456789"
_DIGITS_TO_ZERO = bytes.maketrans(_DIGITS, b"0" * len(_DIGITS))
_BRACKETS_TO_BLANKS = bytes.maketrans(b"[]", b"  ")
_MEMORY = "shared_memory_region"

Body = bytes | bytearray
Frames = npt.NDArray[np.uint8]
Outputs = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the model takes: clips of shape `clip`, at most `max_clips` a request; and the `outputs` that it has."""

    clip: tuple[int, ...]
    max_clips: int
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """`frames` is uint8 (n, *clip). `outputs` maps each output that is wanted to whether it is wanted as bytes."""

    id: str | None
    frames: Frames
    outputs: dict[str, bool]


def inflate(body: Body, encodings: str, max_bytes: int) -> Body:
    """The body without its Content-Encoding, of gzip, deflate or none.

    Raises Problem: `unsupported_media`, `invalid_tensor` where it is damaged, `body_too_large`.
    """
    encoding = encodings.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise Problem("unsupported_media", f"the content encoding is {encoding}; gzip, deflate and none are understood")
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise Problem("invalid_tensor", f"the body is not {encoding}, as its Content-Encoding says") from error
    if len(inflated) > max_bytes:
        raise Problem("body_too_large", f"a request may carry {max_bytes} bytes, inflated")
    if not inflater.eof or inflater.unused_data:
        raise Problem("invalid_tensor", f"the {encoding} body is cut off, or followed by something else")
    return inflated


def read_request(body: Body, header_length: str | None, spec: TensorSpec) -> TensorRequest:
    """What a body asks for; `header_length` is the Inference-Header-Content-Length of bodies with binary tensors.

    Raises Problem `invalid_tensor`.
    """
    if header_length is None:
        header, numbers = _cut(body)
        binary = memoryview(b"")
    else:
        size = _header_length(header_length, len(body))
        header, numbers = body[:size], None
        binary = memoryview(body)[size:]
    if len(header) > MAX_HEADER_BYTES:
        raise _invalid(f"more than {MAX_HEADER_BYTES} bytes of JSON are left without the tensor's numbers")
    request = _parse(header)
    tensor, shape = _check_input(request, spec)
    outputs = _wanted(request, spec.outputs)
    if (binary_size := tensor.parameters.get("binary_data_size")) is not None:
        frames = _from_bytes(binary, binary_size, shape)
    elif numbers is None or tensor.data is None:
        raise _invalid(f"`{INPUT}` has neither an array `data` nor a `binary_data_size` with bytes after the JSON")
    else:
        frames = _from_json(body, numbers, shape)
    return TensorRequest(request.id, frames, outputs)


def write_answer(
    outputs: Outputs, wanted: dict[str, bool], *, model: str, version: str, request_id: str | None
) -> tuple[bytes, int | None]:
    """The body with the `wanted` outputs; and the length of its JSON, where bytes follow that."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_bytes in wanted.items():
        array = np.ascontiguousarray(outputs[name], np.dtype("<f4"))
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        if as_bytes:
            binary.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel()
        described.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        answer["id"] = request_id
    header = orjson.dumps(answer | {"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([header, *binary]), len(header) if binary else None


def _cut(body: Body) -> tuple[Body, range | None]:
    """The JSON with `true` for the first array called `data`, and where that array's text is, unless there is none."""
    found = _DATA.search(body, 0, MAX_HEADER_BYTES)
    if found is None:
        return body, None
    start = found.end()
    # In an array of numbers is neither a quote nor a brace, so it ends before the next of either.
    limits = [at for at in (body.find(b'"', start), body.find(b"}", start)) if at >= 0]
    end = body.rfind(b"]", start, min(limits, default=len(body))) + 1
    if not end:
        return body, None
    return body[:start] + b"true" + body[end:], range(start, end)


def _parse(header: Body) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _invalid(f"the request's JSON cannot be used: {where}{': ' if where else ''}{first['msg']}") from error


def _header_length(text: str, body_length: int) -> int:
    # The length of the text is limited because int() is slow on, or refuses, thousands of digits.
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= body_length):
        raise _invalid(
            f"Inference-Header-Content-Length has to be the length of the JSON, 0 to {body_length} for this body"
        )
    return int(text)


def _check_input(request: InferenceRequest, spec: TensorSpec) -> tuple[InputTensor, tuple[int, ...]]:
    """The one input, with its shape."""
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT]:
        raise _invalid(f"the inputs are {_listed(names)}; the model takes one, `{INPUT}`")
    tensor = request.inputs[0]
    if tensor.datatype != DATATYPE:
        raise _invalid(f"`{INPUT}` is of datatype {tensor.datatype}; the model takes {DATATYPE}")
    clips, *clip = tensor.shape or [0]
    if tuple(clip) != spec.clip:
        raise _invalid(
            f"`{INPUT}` is of shape {tensor.shape}; the model takes [clips, {', '.join(map(str, spec.clip))}]"
        )
    if not 1 <= clips <= spec.max_clips:
        raise _invalid(f"`{INPUT}` holds {clips} clips; a request may hold 1 to {spec.max_clips}")
    if _MEMORY in tensor.parameters:
        raise _invalid("tensors in shared memory are not supported")
    return tensor, (clips, *clip)


def _wanted(request: InferenceRequest, there: Sequence[str]) -> dict[str, bool]:
    """Each output that is wanted, and whether as bytes."""
    by_default = request.parameters.get("binary_data_output", False)
    wanted: dict[str, Any] = {}
    for output in request.outputs:
        if output.name not in there:
            raise _invalid(f"there is no output `{output.name}`; the model has {_listed(there)}")
        if output.name in wanted:
            raise _invalid(f"the output `{output.name}` is asked for twice")
        unsupported = {"classification", _MEMORY} & output.parameters.keys()
        if unsupported:
            raise _invalid(f"the parameter `{unsupported.pop()}` of outputs is not supported")
        wanted[output.name] = output.parameters.get("binary_data", by_default)
    wanted = wanted or dict.fromkeys(there, by_default)
    if not all(isinstance(as_bytes, bool) for as_bytes in wanted.values()):
        raise _invalid("`binary_data` and `binary_data_output` have to be true or false")
    return wanted


def _from_bytes(binary: memoryview, size: Any, shape: tuple[int, ...]) -> Frames:
    expected = math.prod(shape)
    if type(size) is not int or size != expected or len(binary) != expected:
        raise _invalid(
            f"`{INPUT}` takes {expected} bytes after the JSON, which `binary_data_size` says; {len(binary)} are there"
        )
    return np.frombuffer(binary, np.uint8).reshape(shape)


def _from_json(body: Body, text: range, shape: tuple[int, ...]) -> Frames:
    """The numbers in the text of a JSON array, which lies there in the body, flat or nested in row-major order."""
    size = math.prod(shape)
    outline = b",".join(piece.translate(None, _DIGITS + _BLANKS) for piece in _pieces(body, text))
    astray = any(_astray(piece) for piece in _pieces(body, text))
    if astray or all(outline != _outline(expected) for expected in ((size,), shape)):
        raise _invalid(f"the `data` of `{INPUT}` are not the whole numbers that its shape needs, flat or nested")
    numbers = bytearray()
    for piece in _pieces(body, text):
        try:
            numbers += bytes(orjson.loads(b"[" + piece.translate(_BRACKETS_TO_BLANKS) + b"]"))
        except (TypeError, ValueError) as error:
            raise _invalid(f"the `data` of `{INPUT}` are not all from 0 to 255") from error
    if len(numbers) != size:
        raise _invalid(f"the `data` of `{INPUT}` are {len(numbers)} numbers; its shape needs {size}")
    return np.frombuffer(numbers, np.uint8).reshape(shape)


def _outline(shape: Iterable[int]) -> bytes:
    """The brackets and commas of JSON in this shape."""
    text = b""
    for size in reversed(tuple(shape)):
        text = b"[" + (text + b",") * (size - 1) + text + b"]"
    return text


def _astray(piece: Body) -> bool:
    """Whether a number lies on the wrong side of a bracket, or is missing, which the outline does not tell."""
    marks = b"," + piece.translate(_DIGITS_TO_ZERO, _BLANKS) + b","
    return any(wrong in marks for wrong in (b"0[", b"]0", b"[,", b",]"))


def _pieces(body: Body, text: range) -> Iterator[Body]:
    """The text in pieces of which each takes a millisecond or so, parted at commas, which are left out.

    Raises Problem where the commas are too far apart for that.
    """
    start = text.start
    while start <= text.stop:
        end = body.find(b",", start + PIECE_BYTES, text.stop)
        end = text.stop if end < 0 else end
        if end - start > 2 * PIECE_BYTES:
            raise _invalid(f"between two commas in the `data` of `{INPUT}` is much more than a number")
        yield body[start:end]
        start = end + 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _invalid(detail: str) -> Problem:
    return Problem("invalid_tensor", detail)
