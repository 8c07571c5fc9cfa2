"""The OpenAPI document: adds problems, examples, security schemes and common headers to what FastAPI generates."""

import functools
import json
from collections import defaultdict
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.http.middleware.api_keys import HEADER, OPEN_PATHS
from service.http.problems import KINDS, MEDIA_TYPE, is_protocol, problem_body
from service.http.schemas import ProblemAnswer, ProtocolProblemAnswer

Document = dict[str, Any]
Responses = dict[int | str, Document]

REQUEST_ID = "5f3c0d9a7e214c8b9a6d1f0e2b3c4d5e"
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": HEADER},
}
_SCHEMAS = "#/components/schemas/{model}"
_PROBLEM_MODELS = (ProblemAnswer, ProtocolProblemAnswer)
_UNUSED_MODELS = ("HTTPValidationError", "ValidationError")  # FastAPI's; the service answers with problems instead


def problem_responses(*codes: str, under: str = "/") -> Responses:
    """Describe the problems that a route may answer with: one response per status, one example per code.

    Args:
        codes: Keys of ``KINDS``.
        under: The route's path or its prefix. Problems under ``/v2`` have one field more.
    """
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in codes:
        by_status[KINDS[code].status].append(code)
    return {status: _problem_response(of_status, under) for status, of_status in by_status.items()}


def example_response(example: Any, media_type: str = "application/json") -> Responses:
    """Describe the answer of a successful request by an example."""
    return {200: {"content": {media_type: {"example": example}}}}


class DescribedAPI(FastAPI):
    """A FastAPI application with a complete OpenAPI document at ``/openapi.json``.

    Args:
        requires_key: Whether the document asks for an API key on every path that is not open.
        options: The arguments of ``FastAPI``.
    """

    def __init__(self, *, requires_key: bool, **options: Any) -> None:
        super().__init__(openapi_url=None, **options)
        self._requires_key = requires_key
        self.add_route("/openapi.json", self._answer_document, include_in_schema=False)

    def openapi(self) -> Document:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = self._complete(super().openapi())
        return self.openapi_schema

    async def _answer_document(self, request: Request) -> Response:
        """Answer with the document. FastAPI's own route would write its 100 kB anew for each request."""
        return Response(self._json, media_type="application/json")

    @functools.cached_property
    def _json(self) -> bytes:
        return json.dumps(self.openapi(), ensure_ascii=False).encode()

    def _complete(self, document: Document) -> Document:
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas |= {model.__name__: model.model_json_schema(ref_template=_SCHEMAS) for model in _PROBLEM_MODELS}
        for name in _UNUSED_MODELS:
            schemas.pop(name, None)
        if self._requires_key:
            components["securitySchemes"] = SECURITY
        for path, operations in document["paths"].items():
            for operation in operations.values():
                self._complete_operation(path, operation)
        return document

    def _complete_operation(self, path: str, operation: Document) -> None:
        responses = operation["responses"]
        if "HTTPValidationError" in str(responses.get("422")):
            del responses["422"]
        codes = ["internal_error"]
        if self._requires_key and path not in OPEN_PATHS:
            operation["security"] = [{name: []} for name in SECURITY]
            codes.append("unauthorized")
        responses |= {str(status): response for status, response in problem_responses(*codes, under=path).items()}
        for response in responses.values():
            response.setdefault("headers", {})["X-Request-ID"] = {
                "description": "The id that the request sent, or a new one. Log lines about the request carry it.",
                "schema": {"type": "string"},
                "required": True,
            }


def _problem_response(codes: list[str], path: str) -> Document:
    """Describe the response of one status."""
    model = ProtocolProblemAnswer if is_protocol(path) else ProblemAnswer
    kinds = {code: KINDS[code] for code in codes}
    content = {
        "schema": {"$ref": _SCHEMAS.format(model=model.__name__)},
        "examples": {
            code: {"summary": kind.title, "value": problem_body(code, kind.example, REQUEST_ID, path)}
            for code, kind in kinds.items()
        },
    }
    response: Document = {
        "description": "; ".join(f"`{code}`: {kind.title}" for code, kind in kinds.items()),
        "content": {MEDIA_TYPE: content},
    }
    if all(kind.retry_after_s is not None for kind in kinds.values()):
        retry = {
            "description": "Seconds to wait before trying again.",
            "schema": {"type": "integer", "minimum": 1},
            "required": True,
        }
        response["headers"] = {"Retry-After": retry}
    return response
