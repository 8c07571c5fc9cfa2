"""Problems: every way in which a request is refused, as RFC 9457 problem details."""

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.errors import ClipError, DeadlineExceeded, DecodersError, LimelightError, Overloaded

MEDIA_TYPE = "application/problem+json"
METHOD_DETAIL = "this path does not support the request's method; the Allow header lists the methods that it supports"
INTERNAL_DETAIL = "an unexpected error occurred; the service's log has its cause under this request id"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: one row of the error table.

    Attributes:
        status: The HTTP status.
        title: A summary that is the same for every problem of this kind.
        example: An example of a detail, for the OpenAPI document.
        retry_after_s: Seconds after which to try again, or None if trying again makes no sense.
    """

    status: int
    title: str
    example: str
    retry_after_s: int | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "empty_body": Kind(
            400,
            "The request contains no clip",
            "the clip is empty; send it as the part `file` of a multipart form (curl -F file=@clip.mp4)",
        ),
        "malformed_multipart": Kind(
            400,
            "The multipart form is malformed",
            "the form cannot be parsed: it ends before its closing boundary",
        ),
        "missing_file": Kind(
            400,
            "The form contains no part named `file`",
            "the form has no part named `file`; send the clip as the part `file` of a multipart form "
            "(curl -F file=@clip.mp4)",
        ),
        "invalid_tensor": Kind(
            400, "The inference request is not valid", "`frames` contains 0 clips; a request may contain 1 to 17"
        ),
        "bad_request": Kind(
            400, "The request is not valid HTTP", "the request is not valid HTTP/1.1; correct the client"
        ),
        "unauthorized": Kind(
            401,
            "An API key is required",
            "the API key is missing or not valid; send one as `Authorization: Bearer …` or `X-API-Key: …`",
        ),
        "not_found": Kind(404, "Not found", "this path does not exist; /docs lists those that do"),
        "unknown_model": Kind(
            404,
            "The model does not exist",
            "this service does not serve the model huge; it serves limelight-ucf13, version 0.1.0",
        ),
        "origin_not_allowed": Kind(
            403,
            "Pages of this origin may not call the service",
            "pages of https://app.example may not call this service; list the origin in LIMELIGHT_CORS_ORIGINS",
        ),
        "method_not_allowed": Kind(405, "Method not allowed", METHOD_DETAIL),
        "upload_timeout": Kind(
            408,
            "The upload timed out",
            "the request's body did not arrive in time (1000 bytes received); try again, or send less",
        ),
        "body_too_large": Kind(
            413, "The upload is too large", "the request's body exceeds the limit of 67108864 bytes; send a smaller one"
        ),
        "unsupported_media": Kind(415, "This is not a supported video", "this is an image: send a video"),
        "corrupt_clip": Kind(422, "The clip is damaged", "the clip is damaged: its container cannot be read"),
        "no_frames": Kind(422, "The clip contains no frames", "the video stream holds no frame"),
        "clip_too_long": Kind(422, "The clip is too long", "the clip lasts 912 s, more than the 600 s allowed"),
        "resolution_too_large": Kind(
            422,
            "The clip's resolution is too high",
            "frames of 7680×4320 have more than the 9500000 pixels allowed",
        ),
        "decode_timeout": Kind(
            422, "The clip took too long to decode", "the clip takes more than 20 s of processor time to decode"
        ),
        "decoder_crashed": Kind(
            422,
            "The clip could not be decoded",
            "the clip's decoder died; the clip may be malformed or need too much memory",
        ),
        "decoder_fault": Kind(
            422,
            "The clip's decoder failed",
            "the clip's decoder returned an invalid answer; the clip may be malformed",
        ),
        "invalid_parameter": Kind(
            422, "A query parameter is not valid", "top_k: Input should be greater than or equal to 1"
        ),
        "host_not_allowed": Kind(
            421,
            "The service does not answer for this host",
            "this service does not answer for the host limelight.example; list it in LIMELIGHT_ALLOWED_HOSTS",
        ),
        "overloaded": Kind(
            429,
            "The service is overloaded",
            "17 clips are waiting or in progress, of at most 17; try again later",
            1,
        ),
        "head_too_large": Kind(
            431,
            "The request's head is too large",
            "the request's head exceeds the limit of 32768 bytes and 100 headers; send fewer headers",
        ),
        "internal_error": Kind(500, "Internal server error", INTERNAL_DETAIL),
        "not_ready": Kind(503, "The service is not ready", "the model is being loaded; poll /health/ready", 2),
        "decoders_unavailable": Kind(
            503,
            "No clip can be decoded now",
            "no decoder process can be started (Resource temporarily unavailable); try again later",
            2,
        ),
        "too_many_connections": Kind(
            503,
            "The service has too many connections",
            "all connections of this server are in use; try again later",
            1,
        ),
        "draining": Kind(503, "The service is shutting down", "the service is shutting down; try another instance", 2),
        "deadline_exceeded": Kind(504, "The prediction timed out", "the answer was not ready in time"),
    }
)


class Problem(LimelightError):
    """A request is refused.

    Args:
        code: A key of ``KINDS``.
        detail: What is wrong with this request and what to do, as one sentence without a capital and a full stop.
        headers: Names and values of headers that the answer needs besides ``Retry-After``.
        retry_after_s: Seconds after which to try again; the kind's own by default.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.kind = KINDS[code]
        self.detail = detail
        self.headers = headers
        self.retry_after_s = self.kind.retry_after_s if retry_after_s is None else retry_after_s


# The errors that are raised on purpose. ``AccessLog`` answers any other: a lack of memory or file descriptors as such,
# and anything else as ``internal_error``, which it logs because it is a bug.
EXPECTED = (Problem, ClipError, DecodersError, Overloaded, DeadlineExceeded, RequestValidationError, HTTPException)


def problem_of(error: Exception) -> Problem:
    """Translate an error that was raised while a request was answered into a problem."""
    match error:
        case Problem():
            return error
        case ClipError():
            code, detail = error.code, str(error)
        case Overloaded():
            return Problem("overloaded", str(error), retry_after_s=error.retry_after_s)
        case DeadlineExceeded():
            code, detail = "deadline_exceeded", str(error)
        case DecodersError():
            code, detail = "decoders_unavailable", str(error)
        case RequestValidationError():
            code, detail = "invalid_parameter", "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        case HTTPException(status_code=404):
            code, detail = "not_found", "this path does not exist; /docs lists those that do"
        case HTTPException(status_code=405):
            return Problem("method_not_allowed", METHOD_DETAIL, headers=[("Allow", _allowed(error))])
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return Problem("too_many_connections", "the service has no file descriptor left; try again later")
        case MemoryError() | OSError(errno=errno.ENOMEM):
            code, detail = "overloaded", "the service has no memory left for this request; try again later"
        case _:
            code, detail = "internal_error", INTERNAL_DETAIL
    return Problem(code, detail)


def problem_response(problem: Problem, request_id: str, path: str) -> JSONResponse:
    """Return the response that reports a problem, with ``Retry-After`` if trying again makes sense."""
    body = problem_body(problem.code, problem.detail, request_id, path)
    response = JSONResponse(body, problem.kind.status, media_type=MEDIA_TYPE)
    for name, value in problem.headers:
        response.headers.append(name, value)
    if problem.retry_after_s is not None:
        # RFC 9110 asks for whole seconds; rounding less than one down to 0 would mean "at once".
        response.headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    return response


def _allowed(error: HTTPException) -> str:
    """Return the value of the Allow header: the methods that a route names, and HEAD, which is answered like GET."""
    methods = set((error.headers or {}).get("Allow", "").split(", "))
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def problem_body(code: str, detail: str, request_id: str, path: str) -> dict[str, str | int]:
    """Return a problem's fields: those of RFC 9457, ``code`` and ``request_id``.

    Clients of the Open Inference Protocol read the text from ``error``, so problems under ``/v2`` have that field, too.
    """
    kind = KINDS[code]
    body: dict[str, str | int] = {
        "type": f"urn:limelight:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    if is_protocol(path):
        body["error"] = detail
    return body


def is_protocol(path: str) -> bool:
    """Return whether a path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")
