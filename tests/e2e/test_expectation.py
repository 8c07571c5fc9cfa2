"""``Expect: 100-continue``: nothing of a clip that its request's head refuses is sent."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.curl import curl
from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient, stopped_decoder
from tests.processes import until

pytestmark = pytest.mark.slow

LIMIT = 2_000_000
KEY = "expecting-7f3a"
EXPECTING = "Expect: 100-continue"
KEYED = f"X-API-Key: {KEY}"
SMALL, LARGE = "Content-Length: 9", f"Content-Length: {LIMIT + 1}"
FORM = "Content-Type: multipart/form-data"
REFUSED = [
    (401, "/predict", [SMALL]),
    (401, "/predict", [SMALL, "X-API-Key: wrong"]),
    (401, "/predict", [LARGE, "X-API-Key: wrong"]),
    (413, "/predict", [LARGE, KEYED]),
    (413, "/predict", [LARGE, KEYED, f"{FORM}; boundary=b"]),
    (415, "/predict", [SMALL, KEYED, "Content-Encoding: gzip"]),
    (415, "/predict", [SMALL, KEYED, "Content-Type: text/html"]),
    (400, "/predict", [SMALL, KEYED, FORM]),
    (422, "/predict?top_k=0", [SMALL, KEYED]),
    (404, "/none", [SMALL, KEYED]),
    (405, "/model", [SMALL, KEYED]),
    (404, "/v2/models/huge/infer", [SMALL, KEYED]),
    (413, "/v2/models/tiny/infer", [LARGE, KEYED]),
]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"API_KEYS": KEY, "MAX_BODY_BYTES": str(LIMIT), "MAX_QUEUE": "0", "DECODE_TIMEOUT_S": "300"}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


def first_answer(server: Server, path: str, *headers: str) -> bytes:
    """Return the version and status of the first answer to the head of a request that expects 100."""
    with RawClient(server.port) as client:
        client.post(EXPECTING, *headers, path=path)
        return client.receive()


def curl_sends(server: Server, key: str, clip: Path) -> list[str]:
    """Send a clip with curl. Return the status, and how many bytes of the clip were sent."""
    headers = [f"X-API-Key: {key}", EXPECTING, "Content-Type: video/mp4"]
    options = ["-o", os.devnull, "-w", "%{http_code} %{size_upload}", "--expect100-timeout", PATIENCE_S]
    options += [part for header in headers for part in ("-H", header)]
    return curl(*options, "--data-binary", f"@{clip}", f"{server.url}/predict").split()


@pytest.mark.parametrize(("status", "path", "headers"), REFUSED)
def test_a_request_that_its_head_refuses_gets_no_100(
    server: Server, status: int, path: str, headers: list[str]
) -> None:
    assert first_answer(server, path, *headers) == b"HTTP/1.1 %d" % status


def test_a_full_queue_gets_no_100(server: Server, clip_file: Path) -> None:
    with stopped_decoder(server, KEYED):
        framings = (SMALL, "Transfer-Encoding: chunked")
        answers = [first_answer(server, "/predict", KEYED, framing) for framing in framings]
        sent = curl_sends(server, KEY, clip_file)
    until(lambda: not server.metric("admitted_clips"))  # else the next test's clip could be refused

    assert (answers, sent) == ([b"HTTP/1.1 429"] * 2, ["429", "0"])


def test_curl_sends_nothing_of_a_clip_that_is_refused(server: Server, tmp_path: Path) -> None:
    clip = tmp_path / "large.mp4"
    with clip.open("wb") as file:
        file.truncate(LIMIT + 1)

    assert curl_sends(server, "wrong", clip) == ["401", "0"]
    assert curl_sends(server, KEY, clip) == ["413", "0"]


def test_a_request_that_its_head_does_not_refuse_gets_100_but_not_with_http_1_0(server: Server) -> None:
    assert first_answer(server, "/predict", KEYED, SMALL) == b"HTTP/1.1 100"
    with RawClient(server.port) as client:
        client.send(f"POST /predict HTTP/1.0\r\n{EXPECTING}\r\n{KEYED}\r\n{SMALL}\r\n\r\nno video!".encode())

        assert client.receive() == b"HTTP/1.1 415"
