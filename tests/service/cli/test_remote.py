"""How a service is asked, and what becomes of its answers. Scripted servers take the service's place."""

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.cli.classifying import Answer, Wanted
from service.cli.clips import ClipProblem, opened
from service.cli.remote import over_http
from service.errors import CommandError
from service.http.examples import PREDICTION
from service.http.problems import problem_body


class Reply(NamedTuple):
    """What a server answers once."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    reads: bool = True  # the request's body, before it answers
    closes: bool = False  # the connection, instead of an answer


OK = Reply(200, json.dumps(PREDICTION).encode())


def refusal(code: str, status: int, retry_after: str | None = None, *, reads: bool = True) -> Reply:
    body = json.dumps(problem_body(code, "for a reason", "1", "/predict")).encode()
    headers = {"Content-Type": "application/problem+json"} | ({"Retry-After": retry_after} if retry_after else {})
    return Reply(status, body, headers, reads)


class Script(ThreadingHTTPServer):
    """A server with a reply for each request; the last one is repeated."""

    daemon_threads = False  # closing the server waits for its connections to end

    def __init__(self, *replies: Reply, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.2" if certificate else "127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.replies = [*replies]
        self.times: list[float] = []
        self.bodies: list[int] = []
        self.url = f"https://127.0.0.2:{self.server_port}" if certificate else f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that ends an upload early."""


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        self.server.times.append(time.monotonic())
        reply = self.server.replies[0] if len(self.server.replies) == 1 else self.server.replies.pop(0)
        if reply.closes:
            self.close_connection = True
            return
        if reply.reads:
            self.server.bodies.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()
        if not reply.reads:  # as servers that linger: they take what is sent, and throw it away
            taken = 0
            with suppress(OSError):  # the client has closed the connection with an answer unread
                while piece := self.connection.recv(2**16):
                    taken += len(piece)
            self.server.bodies.append(taken)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(*replies: Reply, certificate: Path | None = None) -> Iterator[Script]:
    with Script(*replies, certificate=certificate) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def self_signed(folder: Path, address: str) -> Path:
    """Write a certificate for an IP address and its key into one file."""
    file = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    options = ["-subj", "/CN=test", "-addext", f"subjectAltName=IP:{address}", "-keyout", str(file)]
    subprocess.run([*command, *options, "-out", str(folder / "c")], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (folder / "c").read_bytes())
    return file


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"a clip")
    return file


def ask(url: str, clip: Path, *, key: str | None = None, times: int = 1, **options: Any) -> Answer:
    """Ask for a clip so many times. Return the last answer."""
    with ExitStack() as stack:
        classify = stack.enter_context(over_http(url, key, Wanted(), **options))
        file = stack.enter_context(opened(str(clip)))
        return [classify(file) for _ in range(times)][-1]


def refused(clip: Path, *replies: Reply, **options: Any) -> tuple[CommandError, int]:
    """Ask for a clip in vain. Return the error, and the number of requests."""
    with scripted(*replies) as server, pytest.raises(CommandError) as error:
        ask(server.url, clip, **options)
    return error.value, len(server.times)


class TestWaiting:
    """A service or gateway that is busy is asked again when it says so."""

    @pytest.mark.parametrize(
        "refused",
        [
            refusal("overloaded", 429, "1"),
            refusal("overloaded", 429, "1", reads=False),
            refusal("not_ready", 503, "1"),
            Reply(429, b"<h1>nginx", {"Retry-After": "1"}),
            Reply(502, b"<h1>nginx"),
            Reply(504, b""),
        ],
        ids=["429", "429 early", "503", "gateway 429", "gateway 502", "gateway 504"],
    )
    def test_the_clip_is_sent_again_after_the_time_that_was_asked_for(self, clip_file: Path, refused: Reply) -> None:
        with scripted(refused, OK) as server:
            answer = ask(server.url, clip_file)

        assert answer.ranking == [("Basketball", 0.98)]
        assert server.times[1] - server.times[0] > 0.9
        assert server.bodies[-1] == len(b"a clip")

    def test_a_service_that_answers_nothing_for_the_longest_wait_cannot_be_used(self, clip_file: Path) -> None:
        error, requests = refused(clip_file, refusal("overloaded", 429, "1"), max_wait_s=1.5)

        assert not isinstance(error, ClipProblem)
        assert "is busy or not ready (429 Too Many Requests); try again later, or wait longer with --max-wait" in str(
            error
        )
        assert requests == 2

    def test_a_wait_beyond_the_longest_is_not_begun(self, clip_file: Path) -> None:
        began = time.monotonic()
        refused(clip_file, refusal("not_ready", 503, "3600"))

        assert time.monotonic() - began < 30

    @pytest.mark.parametrize(
        ("code", "status"),
        [("corrupt_clip", 422), ("body_too_large", 413), ("upload_timeout", 408), ("internal_error", 500)],
    )
    def test_what_does_not_pass_is_told_at_once(self, clip_file: Path, code: str, status: int) -> None:
        problem, requests = refused(clip_file, refusal(code, status, "1"))

        assert isinstance(problem, ClipProblem)
        assert (problem.code, requests) == (code, 1)

    def test_a_service_that_has_answered_may_be_gone_for_a_while(self, clip_file: Path) -> None:
        with scripted(OK, Reply(0, b"", closes=True), OK) as server:
            ask(server.url, clip_file, times=2)

        assert len(server.times) == 3

    @pytest.mark.parametrize("first", [(), (OK,)])
    def test_one_that_has_never_answered_or_is_gone_for_too_long_is_no_service(
        self, clip_file: Path, first: Sequence[Reply]
    ) -> None:
        error, requests = refused(clip_file, *first, Reply(0, b"", closes=True), times=2, max_wait_s=1.5)

        assert not isinstance(error, ClipProblem)
        assert str(error).startswith("no service answers at http://127.0.0.1:")
        assert requests == (3 if first else 1)


class TestEarlyAnswers:
    def test_the_upload_ends_when_the_answer_has_come(self, tmp_path: Path) -> None:
        large = tmp_path / "large.mp4"
        with large.open("wb") as file:
            file.truncate(2**30)
        with scripted(refusal("body_too_large", 413, reads=False)) as server, pytest.raises(ClipProblem) as error:
            ask(server.url, large)

        assert str(error.value).endswith("(413 body_too_large)")
        assert server.bodies[0] < 2**26

    def test_that_holds_for_tls_whose_tickets_come_before_the_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate = self_signed(tmp_path, "127.0.0.2")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        large = tmp_path / "large.mp4"
        with large.open("wb") as file:
            file.truncate(2**30)
        with scripted(OK, refusal("body_too_large", 413, reads=False), certificate=certificate) as server:
            assert ask(server.url, certificate).ranking
            with pytest.raises(ClipProblem) as error:
                ask(server.url, large)

        assert str(error.value).endswith("(413 body_too_large)")
        assert server.bodies[1] < 2**26

    def test_a_gateways_limit_is_the_clips_problem_too(self, clip_file: Path) -> None:
        problem, _ = refused(clip_file, Reply(413, b"<h1>413 Request Entity Too Large"))

        assert isinstance(problem, ClipProblem)
        assert (problem.code, problem.status) == ("body_too_large", 413)

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 421])
    def test_what_every_clip_would_be_answered_ends_the_command(self, clip_file: Path, status: int) -> None:
        error, _ = refused(clip_file, refusal("unauthorized", status))

        assert not isinstance(error, ClipProblem)


class TestFilesThatChange:
    def test_one_that_vanishes_is_sent(self, clip_file: Path) -> None:
        with scripted(OK) as server, over_http(server.url, None, Wanted()) as classify, opened(str(clip_file)) as clip:
            clip_file.unlink()

            assert classify(clip).ranking

    def test_one_that_changes_is_told(self, clip_file: Path) -> None:
        with scripted(OK) as server, over_http(server.url, None, Wanted()) as classify, opened(str(clip_file)) as clip:
            clip_file.write_bytes(b"another")
            with pytest.raises(ClipProblem, match="changed while it was read"):
                classify(clip)


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PROXY", "junk://x"), ("ALL_PROXY", "socks5://127.0.0.1:1"), ("NO_PROXY", "[::1")]
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    for this_machine in ("http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        with over_http(this_machine, None, Wanted()):
            pass  # it is asked without the proxy
    with (
        pytest.raises(CommandError, match=f"the proxy that the environment names cannot be used.*{name}"),
        over_http("http://example.org", None, Wanted()),
    ):
        pass


class TestForeignAnswers:
    """Answers of proxies and other servers, instead of the service's."""

    @pytest.mark.parametrize(
        ("status", "body", "told"),
        [
            (502, b"<html>\r\n<h1>nginx</h1>" + b"." * 10_000, "502 Bad Gateway: <html> <h1>nginx</h1>."),
            (503, b'{"message": "no upstream"}', '503 Service Unavailable: {"message": "no upstream"}'),
            (200, b"<p>Please log in", "200 OK: <p>Please log in"),
            (302, b"\xff\x1b[2J", "302 Found: "),
            (504, b"", "504 Gateway Timeout"),
        ],
    )
    def test_the_status_and_the_beginning_of_the_text_are_told(self, status: int, body: bytes, told: str) -> None:
        sentence = self.refused(status, body, None)

        assert f"(status {status}) is not Limelight's, but `{told}" in sentence
        assert len(sentence) < 400

    def test_the_text_is_not_told_if_it_repeats_the_key(self) -> None:
        sentence = self.refused(500, b"." * 100 + b"Authorization: Bearer s3cret", "s3cret")

        assert "but `500 Internal Server Error`; check" in sentence

    @staticmethod
    def refused(status: int, body: bytes, key: str | None) -> str:
        """Return what is said about an answer to a request with this key."""
        error, _ = refused(Path(__file__), Reply(status, body), key=key, max_wait_s=0)
        assert not isinstance(error, ClipProblem)
        return str(error)
