"""Every way a request is refused, as RFC 9457 problem details."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.pipeline import ClipError, DeadlineExceeded, Overloaded

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: the HTTP status, and a title that is the same every time."""

    status: int
    title: str
    retry_after_s: int | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "empty_body": Kind(400, "The request holds no clip"),
        "malformed_multipart": Kind(400, "The multipart body cannot be read"),
        "missing_file": Kind(400, "The form has no file named `file`"),
        "not_found": Kind(404, "There is nothing here"),
        "method_not_allowed": Kind(405, "This method is not allowed here"),
        "upload_timeout": Kind(408, "The upload took too long"),
        "body_too_large": Kind(413, "The upload is too large"),
        "unsupported_media": Kind(415, "This is not a supported video"),
        "corrupt_clip": Kind(422, "The clip is damaged"),
        "no_frames": Kind(422, "The clip holds no frames"),
        "clip_too_long": Kind(422, "The clip is too long"),
        "resolution_too_large": Kind(422, "The clip's frames are too large"),
        "decode_timeout": Kind(422, "The clip took too long to decode"),
        "decoder_crashed": Kind(422, "The clip could not be decoded"),
        "invalid_parameter": Kind(422, "A query parameter is not valid"),
        "overloaded": Kind(429, "Too many clips are waiting", retry_after_s=1),
        "internal_error": Kind(500, "The service failed"),
        "not_ready": Kind(503, "The service is not ready", retry_after_s=2),
        "draining": Kind(503, "The service is shutting down", retry_after_s=2),
        "deadline_exceeded": Kind(504, "The prediction took too long"),
    }
)


class Problem(Exception):
    """A refusal: `code` is a key of KINDS, `detail` one sentence about this very request.

    `retry_after_s` is when trying again makes sense; without it, what KINDS says.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.kind = KINDS[code]
        self.detail = detail
        self.headers = headers
        self.retry_after_s = self.kind.retry_after_s if retry_after_s is None else retry_after_s


# What `problem_of` knows. Anything else is a bug: the middleware answers `internal_error` and logs it.
EXPECTED = (Problem, ClipError, Overloaded, DeadlineExceeded, RequestValidationError, HTTPException)


def problem_of(error: Exception) -> Problem:
    """The problem that an error raised while answering amounts to."""
    match error:
        case Problem():
            return error
        case ClipError():
            code, detail = error.code, str(error)
        case Overloaded():
            return Problem("overloaded", str(error), retry_after_s=error.retry_after_s)
        case DeadlineExceeded():
            code, detail = "deadline_exceeded", str(error)
        case RequestValidationError():
            code, detail = "invalid_parameter", "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        case HTTPException(status_code=404):
            code, detail = "not_found", "no resource has this address; /docs lists those there are"
        case HTTPException(status_code=405):
            return Problem(
                "method_not_allowed", "the Allow header lists the methods that are", headers=error.headers or {}
            )
        case _:
            code, detail = "internal_error", "the service's log has the rest under this request id"
    return Problem(code, detail)


def problem_response(problem: Problem, request_id: str) -> JSONResponse:
    """The answer that carries a problem, with `Retry-After` where trying again makes sense."""
    kind = problem.kind
    body = {
        "type": f"urn:limelight:problem:{problem.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    # RFC 9110 wants whole seconds; less than one would say "at once".
    retry = {} if problem.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(problem.retry_after_s)))}
    return JSONResponse(body, kind.status, {**problem.headers, **retry}, media_type=MEDIA_TYPE)
