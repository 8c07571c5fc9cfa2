"""Every way a request is refused, as RFC 9457 problem details."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.errors import ClipError, DeadlineExceeded, LimelightError, Overloaded

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: the HTTP status, a title that is the same every time, and an example of a detail."""

    status: int
    title: str
    example: str
    retry_after_s: int | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "empty_body": Kind(400, "The request holds no clip", "the clip is empty"),
        "malformed_multipart": Kind(
            400, "The multipart body cannot be read", "the form ends before its closing boundary"
        ),
        "missing_file": Kind(
            400,
            "The form has no file named `file`",
            "send the clip as the file `file` of a multipart form (curl -F file=@clip.mp4)",
        ),
        "invalid_tensor": Kind(
            400, "The tensors are not what the model takes", "`frames` holds 0 clips; a request may hold 1 to 17"
        ),
        "unauthorized": Kind(401, "An API key is needed", "this service asks for an API key"),
        "not_found": Kind(404, "There is nothing here", "no resource has this address"),
        "unknown_model": Kind(
            404, "There is no such model", "the model huge is not here, only limelight-ucf13, version 0.1.0"
        ),
        "method_not_allowed": Kind(
            405, "This method is not allowed here", "the Allow header lists the methods that are"
        ),
        "upload_timeout": Kind(408, "The upload took too long", "the clip did not arrive in time"),
        "body_too_large": Kind(413, "The upload is too large", "a request may carry 67108864 bytes"),
        "unsupported_media": Kind(415, "This is not a supported video", "this is an image, not a video"),
        "corrupt_clip": Kind(422, "The clip is damaged", "the clip is damaged: its container cannot be read"),
        "no_frames": Kind(422, "The clip holds no frames", "the video stream holds no frame"),
        "clip_too_long": Kind(422, "The clip is too long", "the clip lasts 912 s, more than the 600 s allowed"),
        "resolution_too_large": Kind(
            422, "The clip's frames are too large", "frames of 7680×4320 are more than the 9500000 pixels allowed"
        ),
        "decode_timeout": Kind(422, "The clip took too long to decode", "the clip takes more than 20 s to decode"),
        "decoder_crashed": Kind(422, "The clip could not be decoded", "the clip's decoder died"),
        "invalid_parameter": Kind(
            422, "A query parameter is not valid", "top_k: Input should be greater than or equal to 1"
        ),
        "overloaded": Kind(
            429, "Too many clips are waiting", "17 clips are waiting or being worked on, no more are accepted", 1
        ),
        "internal_error": Kind(500, "The service failed", "the service's log has the rest under this request id"),
        "not_ready": Kind(503, "The service is not ready", "the model is being loaded; poll /health/ready", 2),
        "draining": Kind(503, "The service is shutting down", "the service is shutting down; ask another", 2),
        "deadline_exceeded": Kind(504, "The prediction took too long", "the answer was not ready in time"),
    }
)


class Problem(LimelightError):
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


def problem_response(problem: Problem, request_id: str, path: str) -> JSONResponse:
    """The answer that carries a problem, with `Retry-After` where trying again makes sense."""
    body = problem_body(problem.code, problem.detail, request_id, path)
    # RFC 9110 wants whole seconds; less than one would say "at once".
    retry = {} if problem.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(problem.retry_after_s)))}
    return JSONResponse(body, problem.kind.status, {**problem.headers, **retry}, media_type=MEDIA_TYPE)


def problem_body(code: str, detail: str, request_id: str, path: str) -> dict[str, str | int]:
    """The problem's fields, as RFC 9457 and we name them.

    Clients of the Open Inference Protocol read the text from `error`, so paths under /v2 have that, too.
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
    """Whether a path is the Open Inference Protocol's."""
    return path == "/v2" or path.startswith("/v2/")
