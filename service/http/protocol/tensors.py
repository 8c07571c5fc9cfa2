"""Parses inference requests into arrays and writes arrays as answers: JSON, and Triton's binary tensors after it.

A clip is 6 MB of numbers, or about 20 MB of JSON. Parsing that at once would make millions of Python objects, up to
twenty times the text's size, so the numbers are cut out of the JSON and parsed in pieces. No single call works through
all of the text for long, because it would hold the interpreter lock and stall the event loop. Time and memory depend on
what a body contains, not on what it claims: nothing is made for a claimed shape before the text is long enough for it.
"""

import itertools
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
MAX_FIELDS = 2**12  # of the JSON, with arrays and objects: each becomes a Python object or two
PIECE_BYTES = 2**16
# Makes zlib detect gzip and zlib headers; HTTP calls the zlib format "deflate".
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_DATA = re.compile(rb'"data"\s*:\s*(?=\[)')
_BLANKS, _DIGITS = b" \t\r\n", b"0123456789"
_DIGITS_TO_ZERO = bytes.maketrans(_DIGITS, b"0" * len(_DIGITS))
_BRACKETS_TO_BLANKS = bytes.maketrans(b"[]", b"  ")
_MEMORY = "shared_memory_region"
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})

Body = bytes | bytearray
Frames = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the model accepts and returns.

    Attributes:
        clip: Shape of one clip, ``(frames, height, width, 3)``.
        max_clips: Largest number of clips in one request.
        outputs: Names of the model's outputs.
    """

    clip: tuple[int, ...]
    max_clips: int
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A parsed inference request.

    Attributes:
        id: The request's id, to be repeated in the answer.
        frames: uint8 ``(clips, *clip)``, RGB.
        outputs: The requested outputs, each with whether it is requested as bytes.
        timeout_s: Seconds after which the client no longer needs the answer, or None.
    """

    id: str | None
    frames: Frames
    outputs: dict[str, bool]
    timeout_s: float | None


def check_codings(codings: Sequence[str]) -> None:
    """Check whether ``inflate`` can undo the codings of a body.

    Raises:
        Problem: It cannot (``unsupported_media``).
    """
    if unknown := [coding for coding in codings if coding not in _CODINGS]:
        raise Problem(
            "unsupported_media",
            f"the content encoding {', '.join(unknown)} is not supported; use gzip, deflate or none",
        )
    if len(codings) > 1:
        raise Problem("unsupported_media", f"the body is compressed {len(codings)} times; compress it once or not")


def inflate(body: Body, codings: Sequence[str], max_bytes: int) -> Body:
    """Decompress a body.

    Args:
        body: The body as it was sent.
        codings: What it is compressed with, as ``check_codings`` allows: gzip, deflate or nothing.
        max_bytes: Largest size of the decompressed body.

    Raises:
        Problem: The body is damaged (``invalid_tensor``), or the decompressed body is too large (``body_too_large``).
    """
    if not codings:
        return body
    (coding,) = codings
    inflated = bytearray()
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for part in _inflated_pieces(inflater, body):
            inflated += part
            if len(inflated) > max_bytes:
                raise Problem(
                    "body_too_large", f"the decompressed body exceeds the limit of {max_bytes} bytes; send fewer clips"
                )
    except zlib.error as error:
        raise Problem(
            "invalid_tensor", f"the body is not valid {coding}, which its Content-Encoding declares"
        ) from error
    if not inflater.eof or inflater.unused_data:
        raise Problem("invalid_tensor", f"the {coding} body is truncated, or has extra bytes after its end")
    return inflated


def _inflated_pieces(inflater: "zlib._Decompress", body: Body) -> Iterator[bytes]:
    """Decompress a body piece by piece, until its end or the end of the compressed data."""
    for start in range(0, len(body), PIECE_BYTES):
        part, left = b"", body[start : start + PIECE_BYTES]
        while left or len(part) == PIECE_BYTES:  # a full part may have more after it
            part = inflater.decompress(left, PIECE_BYTES)
            yield part
            if inflater.unused_data:
                return
            left = inflater.unconsumed_tail


def read_request(body: Body, header_length: str | None, spec: TensorSpec) -> TensorRequest:
    """Parse the body of an inference request.

    Args:
        body: The decompressed body.
        header_length: The Inference-Header-Content-Length header, or None if no binary tensors follow the JSON.
        spec: What the model accepts.

    Raises:
        Problem: The body cannot be parsed, or does not match the model (``invalid_tensor``).
    """
    if header_length is None:
        header, numbers = _cut_numbers(body)
        binary = memoryview(b"")
    else:
        size = _header_length(header_length, len(body))
        header, numbers = _without(body, range(size, len(body))), None
        binary = memoryview(body)[size:]
    request = _parse(header)
    tensor, shape = _check_input(request, spec)
    outputs = _requested_outputs(request, spec.outputs)
    if (binary_size := tensor.parameters.get("binary_data_size")) is not None:
        frames = _from_bytes(binary, binary_size, shape)
    elif numbers is None or tensor.data is None:
        raise _invalid(
            f"`{INPUT}` has neither an array `data` nor a `binary_data_size` with bytes after the JSON; send one"
        )
    else:
        frames = _from_json(body, numbers, shape)
    return TensorRequest(request.id, frames, outputs, _timeout_s(request))


def write_answer(
    outputs: Arrays, requested: dict[str, bool], *, model: str, version: str, request_id: str | None
) -> tuple[bytes, int | None]:
    """Write the body of an answer.

    Args:
        outputs: The model's outputs by name, float32.
        requested: The requested outputs, each with whether it is requested as bytes.
        model: The model's name.
        version: The model's version.
        request_id: The request's id, if it has one.

    Returns:
        The body, and the length of its JSON in bytes, or None if no binary tensors follow the JSON.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_bytes in requested.items():
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


def _cut_numbers(body: Body) -> tuple[Body, range | None]:
    """Replace the first array named ``data`` by ``true``. Return the JSON and the array's place in the body, if any."""
    found = _DATA.search(body, 0, MAX_HEADER_BYTES)
    start = found.end() if found else len(body)
    # An array of numbers contains neither quotes nor braces, so it ends before the next of either.
    limits = [at for at in (body.find(b'"', start), body.find(b"}", start)) if at >= 0]
    end = body.rfind(b"]", start, min(limits, default=len(body))) + 1
    if not end:
        return _without(body, range(0)), None
    return _without(body, range(start, end), b"true"), range(start, end)


def _without(body: Body, cut: range, instead: bytes = b"") -> Body:
    """Return the JSON that is left of a body if a part of it is cut out.

    Raises:
        Problem: It is too long, or has too many fields (``invalid_tensor``).
    """
    if len(body) - len(cut) > MAX_HEADER_BYTES:
        raise _invalid(f"the JSON exceeds {MAX_HEADER_BYTES} bytes, not counting the tensor's numbers")
    header = body[: cut.start] + instead + body[cut.stop :]
    if sum(map(header.count, (b"[", b"{", b":"))) > MAX_FIELDS:
        raise _invalid(f"the JSON has more than {MAX_FIELDS} fields, arrays and objects; send fewer parameters")
    return header


def _parse(header: Body) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _invalid(f"the request's JSON is not valid: {where}{': ' if where else ''}{first['msg']}") from error


def _header_length(text: str, body_length: int) -> int:
    # The length of the text is limited because ``int()`` is slow on thousands of digits, or refuses them.
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= body_length):
        raise _invalid(
            f"Inference-Header-Content-Length must be the length of the JSON in bytes, 0 to {body_length} for this body"
        )
    return int(text)


def _check_input(request: InferenceRequest, spec: TensorSpec) -> tuple[InputTensor, tuple[int, ...]]:
    """Return the request's only input and its shape, once both match the model."""
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT]:
        raise _invalid(f"the request's inputs are {_listed(names)}; send exactly one, `{INPUT}`")
    tensor = request.inputs[0]
    if tensor.datatype != DATATYPE:
        raise _invalid(f"`{INPUT}` has the datatype {tensor.datatype}; the model requires {DATATYPE}")
    clips, *clip = tensor.shape or [0]
    if tuple(clip) != spec.clip:
        raise _invalid(
            f"`{INPUT}` has the shape {tensor.shape}; the model requires [clips, {', '.join(map(str, spec.clip))}]"
        )
    if not 1 <= clips <= spec.max_clips:
        raise _invalid(f"`{INPUT}` contains {clips} clips; a request may contain 1 to {spec.max_clips}")
    if _MEMORY in tensor.parameters:
        raise _invalid("tensors in shared memory are not supported; send `data` or bytes after the JSON")
    return tensor, (clips, *clip)


def _requested_outputs(request: InferenceRequest, available: Sequence[str]) -> dict[str, bool]:
    """Return each requested output, with whether it is requested as bytes."""
    by_default = request.parameters.get("binary_data_output", False)
    requested: dict[str, Any] = {}
    for output in request.outputs:
        if output.name not in available:
            raise _invalid(f"the model has no output `{output.name}`; it has {_listed(available)}")
        if output.name in requested:
            raise _invalid(f"the output `{output.name}` is requested twice; request it once")
        unsupported = {"classification", _MEMORY} & output.parameters.keys()
        if unsupported:
            raise _invalid(f"the parameter `{unsupported.pop()}` of outputs is not supported; leave it out")
        requested[output.name] = output.parameters.get("binary_data", by_default)
    requested = requested or dict.fromkeys(available, by_default)
    if not all(isinstance(as_bytes, bool) for as_bytes in requested.values()):
        raise _invalid("`binary_data` and `binary_data_output` must be true or false")
    return requested


def _timeout_s(request: InferenceRequest) -> float | None:
    """Return Triton's parameter ``timeout``, which is in microseconds, in seconds. 0 means none, as in Triton."""
    timeout = request.parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise _invalid("`timeout` must be a whole number of microseconds, or 0 for none")
    return timeout / 1e6 if timeout else None


def _from_bytes(binary: memoryview, size: Any, shape: tuple[int, ...]) -> Frames:
    expected = math.prod(shape)
    if type(size) is not int or size != expected or len(binary) != expected:
        raise _invalid(
            f"`{INPUT}` requires {expected} bytes after the JSON and a `binary_data_size` of that number; "
            f"the body has {len(binary)}"
        )
    return np.frombuffer(binary, np.uint8).reshape(shape)


def _from_json(body: Body, text: range, shape: tuple[int, ...]) -> Frames:
    """Parse a JSON array in the body, flat or nested in row-major order, piece by piece."""
    size, numbers = math.prod(shape), bytearray()
    misshapen = _invalid(f"`data` of `{INPUT}` must be integers, as many as its shape requires, flat or nested")
    if len(text) < 2 * size + 1:  # a number takes a digit, and a comma or the last bracket
        raise misshapen
    nested = body.find(b"[", text.start + 1, min(text.stop, text.start + 2 * PIECE_BYTES)) >= 0
    outline, separator = _Outline(_nested_outline(shape) if nested else _flat_outline(size)), b""
    for piece in _pieces(body, text):
        found = separator + piece.translate(None, _DIGITS + _BLANKS)
        separator = b","
        if found != outline.take(len(found)) or _has_misplaced_number(piece):
            raise misshapen
        try:
            numbers += bytes(orjson.loads(b"[" + piece.translate(_BRACKETS_TO_BLANKS) + b"]"))
        except (TypeError, ValueError) as error:
            raise _invalid(f"`data` of `{INPUT}` must be integers from 0 to 255") from error
    if len(numbers) != size or outline.take(1):
        raise misshapen
    return np.frombuffer(numbers, np.uint8).reshape(shape)


class _Outline:
    """The brackets and commas of an array, made only as far as they are asked for.

    Args:
        pieces: Its consecutive pieces.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._ahead = bytearray()

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or fewer at the end."""
        while len(self._ahead) < size and (piece := next(self._pieces, b"")):
            self._ahead += piece
        taken = bytes(self._ahead[:size])
        del self._ahead[:size]
        return taken


def _flat_outline(size: int) -> Iterable[bytes]:
    """Return the outline of a JSON array of ``size`` numbers in pieces."""
    pieces, rest = divmod(size - 1, PIECE_BYTES)
    return itertools.chain([b"["], itertools.repeat(b"," * PIECE_BYTES, pieces), [b"," * rest + b"]"])


def _nested_outline(shape: Sequence[int]) -> Iterable[bytes]:
    """Return the outline of a JSON array of this shape in pieces. A long outline repeats those of its elements."""
    pieces = [b""]
    for size in reversed(shape):
        pieces = [b"[", *([*pieces, b","] * (size - 1)), *pieces, b"]"]
        if sum(map(len, pieces)) <= PIECE_BYTES:
            pieces = [b"".join(pieces)]
    return pieces


def _has_misplaced_number(piece: Body) -> bool:
    """Return whether a number is missing or on the wrong side of a bracket, which the outline does not show."""
    marks = b"," + piece.translate(_DIGITS_TO_ZERO, _BLANKS) + b","
    return any(wrong in marks for wrong in (b"0[", b"]0", b"[,", b",]"))


def _pieces(body: Body, text: range) -> Iterator[Body]:
    """Split the text at commas, which are left out, into pieces that take about a millisecond each.

    Raises:
        Problem: Two commas are too far apart (``invalid_tensor``).
    """
    start = text.start
    while start <= text.stop:
        end = body.find(b",", start + PIECE_BYTES, text.stop)
        end = text.stop if end < 0 else end
        if end - start > 2 * PIECE_BYTES:
            raise _invalid(f"`data` of `{INPUT}` contains more than a number between two commas")
        yield body[start:end]
        start = end + 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _invalid(detail: str) -> Problem:
    return Problem("invalid_tensor", detail)
