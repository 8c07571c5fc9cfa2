"""Problems: each code has its status and is answered when it should be."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from service.errors import ClipError, DeadlineExceeded, DecodersError, Overloaded
from service.http.app import create_app
from service.http.problems import KINDS, Problem, problem_of
from service.pipeline import Pipeline
from service.settings import Settings
from tests.service.http.test_predict import assert_problem, connect, until_ready

pytestmark = pytest.mark.anyio

# The statuses and codes that docs/api.md promises.
TABLE = {
    400: {"empty_body", "malformed_multipart", "missing_file", "invalid_tensor", "bad_request"},
    401: {"unauthorized"},
    403: {"origin_not_allowed"},
    404: {"not_found", "unknown_model"},
    405: {"method_not_allowed"},
    408: {"upload_timeout"},
    413: {"body_too_large"},
    415: {"unsupported_media"},
    421: {"host_not_allowed"},
    422: {
        "corrupt_clip", "no_frames", "clip_too_long", "resolution_too_large", "decode_timeout", "decoder_crashed",
        "decoder_fault", "invalid_parameter",
    },
    429: {"overloaded"},
    431: {"head_too_large"},
    500: {"internal_error"},
    503: {"not_ready", "decoders_unavailable", "draining", "too_many_connections"},
    504: {"deadline_exceeded"},
}  # fmt: skip
ORIGIN = "https://app.example"
STATUS = {code: status for status, codes in TABLE.items() for code in codes}

Send = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
REFUSED: dict[str, Send] = {
    "empty_body": lambda client: client.post("/predict"),
    "malformed_multipart": lambda client: client.post("/predict", content=b"--b", headers=FORM),
    "missing_file": lambda client: client.post("/predict", files={"video": b"x"}),
    "invalid_tensor": lambda client: client.post("/v2/models/tiny/infer", content=b"{}"),
    "not_found": lambda client: client.get("/nothing"),
    "unknown_model": lambda client: client.get("/v2/models/huge"),
    "method_not_allowed": lambda client: client.delete("/predict"),
    "body_too_large": lambda client: client.post("/predict", content=bytes(200_001)),
    "unsupported_media": lambda client: client.post("/predict", content=b"text", headers={"Content-Type": "text/css"}),
    "invalid_parameter": lambda client: client.post("/predict?top_k=0", content=b"clip"),
}
RAISED: dict[str, Exception] = {kind.code: kind("the clip is at fault") for kind in ClipError.__subclasses__()} | {
    "overloaded": Overloaded("17 clips are waiting", retry_after_s=20),
    "deadline_exceeded": DeadlineExceeded("the answer was not ready in time"),
    "decoders_unavailable": DecodersError("no decoder process can be started"),
    "internal_error": RuntimeError("secret"),
    "too_many_connections": OSError(errno.EMFILE, "secret"),
}
# These need an application with other settings or a real connection: test_api_keys, test_hosts, test_predict,
# test_under_load and test_connection test them.
ELSEWHERE = {
    "unauthorized", "origin_not_allowed", "host_not_allowed", "upload_timeout", "not_ready", "draining", "bad_request",
    "head_too_large",
}  # fmt: skip


@pytest.fixture
async def client(tiny_bundle: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(
        bundle=tiny_bundle, device="cpu", max_body_bytes=200_000, cors_origins=ORIGIN, allowed_hosts="*"
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app), connect(app) as client:
        client.headers["Origin"] = ORIGIN
        await until_ready(client)
        yield client


def test_every_code_has_its_status_and_a_test() -> None:
    assert {code: kind.status for code, kind in KINDS.items()} == STATUS
    assert STATUS.keys() == REFUSED.keys() | RAISED.keys() | ELSEWHERE


@pytest.mark.parametrize("code", REFUSED)
async def test_bad_requests_are_answered_with_their_code(client: httpx.AsyncClient, code: str) -> None:
    answer = await REFUSED[code](client)

    assert_problem(answer, STATUS[code], code)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN  # else a web application could not read it


@pytest.mark.parametrize("code", RAISED)
async def test_errors_of_the_pipeline_are_answered_with_their_code(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, clip: bytes, code: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RAISED[code]

    monkeypatch.setattr(Pipeline, "predict", fail)
    answer = await client.post("/predict", content=clip)

    assert_problem(answer, STATUS[code], code)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "secret" not in answer.text
    assert ("Retry-After" in answer.headers) == (STATUS[code] in {429, 503})


@pytest.mark.parametrize(("method", "path"), [("OPTIONS", "/predict"), ("BREW", "/model"), ("POST", "/health/live")])
async def test_unsupported_methods_are_answered_with_a_problem(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)

    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == ("POST" if path == "/predict" else "GET, HEAD")


@pytest.mark.parametrize("query", ["top_k=2&top_k=1", "top_k=1&colour=blue", "top_k=1&%ff=%00", "&&top_k=1"])
async def test_the_last_of_repeated_parameters_counts_and_unknown_ones_are_ignored(
    client: httpx.AsyncClient, clip: bytes, query: str
) -> None:
    answer = await client.post(f"/predict?{query}", content=clip)

    assert len(answer.json()["predictions"]) == 1


async def test_only_problems_under_v2_have_the_field_error(client: httpx.AsyncClient) -> None:
    of_protocol = (await client.get("/v2/models/huge")).json()
    of_others = (await client.get("/nothing")).json()

    assert of_protocol["error"] == of_protocol["detail"]
    assert "error" not in of_others


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (3.1, "4"), (None, "1")])
async def test_a_problem_can_set_its_own_retry_after(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, clip: bytes, seconds: float | None, header: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise Problem("overloaded", "17 clips are waiting", retry_after_s=seconds)

    monkeypatch.setattr(Pipeline, "predict", fail)

    assert (await client.post("/predict", content=clip)).headers["Retry-After"] == header


@pytest.mark.parametrize("host", ["[", "a b", "x" * 1000])
async def test_malformed_host_headers_are_ignored(client: httpx.AsyncClient, host: str) -> None:
    assert_problem(await client.get("/nothing", headers={"Host": host}), 404, "not_found")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "secret")])
def test_a_lack_of_memory_means_to_try_again_later(error: Exception) -> None:
    problem = problem_of(error)

    assert (problem.code, problem.kind.status) == ("overloaded", 429)
    assert "secret" not in problem.detail
