"""What the service tells of itself at /openapi.json, beyond what FastAPI sees: problems, examples, keys."""

from collections import defaultdict
from typing import Any

from fastapi import FastAPI

from service.http.middleware.api_keys import HEADER, OPEN
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
_ADDED = (ProblemAnswer, ProtocolProblemAnswer)
_NEVER_SENT = ("HTTPValidationError", "ValidationError")  # FastAPI's own, in whose place problems are answered


def problems(*codes: str, under: str = "/") -> Responses:
    """The answers by problems of these codes, for a route `under` a path: by status, with an example a code."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in codes:
        by_status[KINDS[code].status].append(code)
    return {status: _problem_answer(of_status, under) for status, of_status in by_status.items()}


def answered(example: Any, media_type: str = "application/json") -> Responses:
    """An example of the answer where all is well."""
    return {200: {"content": {media_type: {"example": example}}}}


class DescribedAPI(FastAPI):
    """FastAPI with the whole description. `guarded`: whether API keys are asked for."""

    def __init__(self, *, guarded: bool, **options: Any) -> None:
        super().__init__(**options)
        self._guarded = guarded

    def openapi(self) -> Document:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = self._complete(super().openapi())
        return self.openapi_schema

    def _complete(self, document: Document) -> Document:
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas |= {model.__name__: model.model_json_schema(ref_template=_SCHEMAS) for model in _ADDED}
        for name in _NEVER_SENT:
            schemas.pop(name, None)
        if self._guarded:
            components["securitySchemes"] = SECURITY
        for path, operations in document["paths"].items():
            for operation in operations.values():
                self._complete_operation(path, operation)
        return document

    def _complete_operation(self, path: str, operation: Document) -> None:
        answers = operation["responses"]
        if "HTTPValidationError" in str(answers.get("422")):
            del answers["422"]
        codes = ["internal_error"]
        if self._guarded and path not in OPEN:
            operation["security"] = [{name: []} for name in SECURITY]
            codes.append("unauthorized")
        answers |= {str(status): answer for status, answer in problems(*codes, under=path).items()}
        for answer in answers.values():
            answer.setdefault("headers", {})["X-Request-ID"] = {
                "description": "The request's own, or a new one; the log has it, too.",
                "schema": {"type": "string"},
                "required": True,
            }


def _problem_answer(codes: list[str], path: str) -> Document:
    model = ProtocolProblemAnswer if is_protocol(path) else ProblemAnswer
    kinds = {code: KINDS[code] for code in codes}
    content = {
        "schema": {"$ref": _SCHEMAS.format(model=model.__name__)},
        "examples": {
            code: {"summary": kind.title, "value": problem_body(code, kind.example, REQUEST_ID, path)}
            for code, kind in kinds.items()
        },
    }
    answer: Document = {
        "description": "; ".join(f"`{code}`: {kind.title}" for code, kind in kinds.items()),
        "content": {MEDIA_TYPE: content},
    }
    if all(kind.retry_after_s is not None for kind in kinds.values()):
        retry = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}, "required": True}
        answer["headers"] = {"Retry-After": retry}
    return answer
