"""What the gateway itself refuses: in the form of the service's errors, with a title and code of its own each."""

import json
import socket
import subprocess
import threading
from contextlib import closing, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.deploy.gateway import Gateway
from tests.deploy.replicas import Fleet

MIB = 2**20
HEAD = b"Host: localhost\r\nConnection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n" + HEAD + b"\r\n"
# Each request that is refused, with the answer's status, code and title.
REFUSED = {
    "no version of HTTP": (b"GET / HTTP/x\r\n\r\n", 400, "bad_request", "Bad request"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", "Bad request"),
    "a control character": (b"GET /\x01 HTTP/1.1\r\n" + HEAD + b"\r\n", 400, "bad_request", "Bad request"),
    "a broken chunk": (b"POST /predict HTTP/1.1\r\n" + CHUNKED + b"zz\r\n", 400, "bad_request", "Bad request"),
    "a broken second chunk": (
        b"POST /predict HTTP/1.1\r\n" + CHUNKED + b"3\r\nabc\r\nzz\r\n",
        *(400, "bad_request", "Bad request"),
    ),
    "a broken chunk elsewhere": (
        b"POST /grafana/ HTTP/1.1\r\n" + CHUNKED + b"zz\r\n",
        400,
        "bad_request",
        "Bad request",
    ),
    "metrics": (b"GET /metrics HTTP/1.1\r\n" + HEAD + b"\r\n", 404, "not_found", "Not found"),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "method_not_allowed", "Method not allowed"),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "method_not_allowed", "Method not allowed"),
    "a large body": (
        b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n" % (64 * MIB + 1) + HEAD + b"\r\n",
        *(413, "body_too_large", "The upload is too large"),
    ),
    "a large chunk": (
        b"POST /predict HTTP/1.1\r\n" + CHUNKED + b"%x\r\nabc" % (64 * MIB + 1),
        *(413, "body_too_large", "The upload is too large"),
    ),
    "a large body for Grafana": (
        b"POST /grafana/ HTTP/1.1\r\nContent-Length: 20000000\r\n" + HEAD + b"\r\n",
        *(413, "body_too_large", "The upload is too large"),
    ),
    "a long path": (
        b"GET /" + 9000 * b"a" + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
        *(414, "uri_too_long", "The address is too long"),
    ),
    "a long header": (
        b"GET / HTTP/1.1\r\nCookie: " + 9000 * b"a" + b"\r\n" + HEAD + b"\r\n",
        *(431, "head_too_large", "The request's head is too large"),
    ),
    "many headers": (
        b"GET / HTTP/1.1\r\n" + 10 * (b"X: " + 4000 * b"a" + b"\r\n") + HEAD + b"\r\n",
        *(431, "head_too_large", "The request's head is too large"),
    ),
    "a transfer encoding": (
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip\r\n" + HEAD + b"\r\n",
        *(501, "not_implemented", "Unknown transfer encoding"),
    ),
    "a version": (
        b"GET / HTTP/2.0\r\n" + HEAD + b"\r\n",
        *(505, "version_not_supported", "HTTP version not supported"),
    ),
}


def exchange(connection: socket.socket, request: bytes) -> tuple[HTTPResponse, bytes]:
    """Send bytes on a connection of their own; return the answer and its body."""
    with closing(connection):
        connection.sendall(request)
        return read(connection)


def read(connection: socket.socket) -> tuple[HTTPResponse, bytes]:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer, answer.read()


def check_problem(answer: HTTPResponse, body: bytes, status: int, code: str, title: str) -> None:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["title"]) == (status, code, title)
    assert problem["type"] == f"urn:limelight:problem:{code}"
    assert problem["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_is_a_problem_with_a_title_of_its_own(plain: Gateway, why: str) -> None:
    request, status, code, title = REFUSED[why]
    answer, body = exchange(plain.connect(), request)

    check_problem(answer, body, status, code, title)
    assert answer.headers["Strict-Transport-Security"] is None


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_over_tls_tells_browsers_to_stay_with_https(secure: Gateway, why: str) -> None:
    request, status, code, title = REFUSED[why]
    answer, body = exchange(secure.connect_with_tls(), request)

    check_problem(answer, body, status, code, title)
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_a_refused_method_comes_with_those_that_are_allowed(plain: Gateway) -> None:
    answer, _ = exchange(plain.connect(), REFUSED["TRACE"][0])

    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def test_plain_http_on_the_https_port_is_told_to_use_https(secure: Gateway) -> None:
    answer, body = exchange(secure.connect(), b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")

    check_problem(answer, body, 400, "https_required", "HTTPS required")
    assert answer.headers["Strict-Transport-Security"] is None  # RFC 6797: not over plain HTTP


@pytest.mark.parametrize("path", ["/", "/model", "/health/ready", "/nothing"])
def test_every_answer_over_tls_tells_browsers_to_stay_with_https(secure: Gateway, path: str) -> None:
    with secure.client() as client:
        answer = client.get(path)

    assert answer.headers.get_list("Strict-Transport-Security") == ["max-age=31536000"]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["--data-binary", "@large", "/predict"], 413, "body_too_large"),
        (["--data-binary", "@large", "-H", "Content-Length:", "/predict"], 413, "body_too_large"),
        (["--data-binary", "@large", "/"], 413, "body_too_large"),
        (["--data-binary", "@large", "/grafana/"], 413, "body_too_large"),
        (["-X", "TRACE", "/"], 405, "method_not_allowed"),
        (["/metrics"], 404, "not_found"),
    ],
)
def test_a_refusal_over_http2_is_the_same(
    secure: Gateway, tmp_path: Path, arguments: list[str], status: int, code: str
) -> None:
    (tmp_path / "large").write_bytes(bytes(64 * MIB + 1))
    *options, path = arguments
    command = ["curl", "-sk", "-i", "--http2", *options, secure.url + path]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout

    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/2 {status} ")
    assert "content-type: application/problem+json\r\n" in head
    assert "strict-transport-security: max-age=31536000\r\n" in head
    assert json.loads(body)["code"] == code


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ["/", "/predict/", "/model", "/nothing", "/metrics", "/grafana/x", "/v2/models/m"])
def test_an_upload_to_another_path_is_refused_and_stored_nowhere(plain: Gateway, path: str, chunked: bool) -> None:
    spool = plain.folder / "client"
    before = spool.stat().st_mtime_ns
    size = 20 * MIB
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    with closing(plain.connect()) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\n%s\r\n%s\r\n" % (path.encode(), framing, HEAD))
        sender = threading.Thread(target=_send, args=(connection, size, chunked))
        sender.start()
        answer, _ = read(connection)
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()

    assert answer.status in (404, 405, 413)
    assert spool.stat().st_mtime_ns == before  # changes whenever nginx makes a file there


def _send(connection: socket.socket, size: int, chunked: bool) -> None:
    """Send a body until the gateway stops reading it."""
    piece = bytes(MIB)
    with suppress(OSError):
        for _ in range(size // MIB):
            connection.sendall(b"%x\r\n%s\r\n" % (MIB, piece) if chunked else piece)


def test_a_body_one_byte_too_long_is_refused_before_it_is_asked_for(plain: Gateway, replicas: Fleet) -> None:
    head = b"POST /predict HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n%s\r\n" % (64 * MIB + 1, HEAD)
    with closing(plain.connect()) as connection:
        connection.sendall(head)
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_body_of_the_largest_size_arrives(plain: Gateway) -> None:
    with plain.client("10.0.0.1") as client:
        answer = client.post("/predict", content=bytes(64 * MIB))

    assert (answer.status_code, answer.json()["received"]) == (200, 64 * MIB)


@pytest.mark.parametrize(
    "path",
    [
        "/prefix/predict",
        "/v2/models/tiny/infer",
        "/v2/models/tiny/versions/1/infer",
        "/v2/models/group/tiny/infer",
        "/prefix/v2/models/group%2Ftiny/infer",
    ],
)
def test_a_body_arrives_on_every_path_of_predictions(plain: Gateway, path: str) -> None:
    with plain.client("10.0.0.2") as client:
        answer = client.post(path, content=bytes(MIB))

    assert (answer.status_code, answer.json()["received"]) == (200, MIB)


def test_a_redirect_names_neither_host_nor_port(plain: Gateway) -> None:
    """Clients reach the gateway at another port than that inside the container."""
    with plain.client() as client:
        assert client.get("/grafana").headers["Location"] == "/grafana/"
