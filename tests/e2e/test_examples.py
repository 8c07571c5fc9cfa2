"""The programs in examples/, run unchanged against a server, and against stand-ins for a busy service and a proxy."""

import itertools
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import httpx
import pytest

from service.http.examples import PREDICTION
from tests.conftest import REPOSITORY
from tests.e2e.process import PATIENCE_S, Server, running

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"
KEY = "examples-7f3a"
MAX_BODY_BYTES = 10_000_000
# Runs a command, and then prints how much memory it took, in KiB.
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


@dataclass(frozen=True)
class Program:
    """A program of examples/.

    Attributes:
        command: How to run it.
        refused: Its exit code if the answer is not a prediction.
        unanswered: Its exit code if no service answers.
    """

    command: tuple[str, ...]
    refused: int = 1
    unanswered: int = 1

    def run(self, url: str, clip: str | bytes | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"LIMELIGHT_URL": url, "LIMELIGHT_API_KEY": KEY, "NO_PROXY": "*", "no_proxy": "*"}
        return subprocess.run(
            [*self.command, clip],
            capture_output=True,
            encoding="utf-8",
            env=environment,
            cwd=folder,
            timeout=PATIENCE_S,
            check=False,
        )


CURL = Program((str(EXAMPLES / "predict.sh"),), refused=22, unanswered=7)
PYTHON = Program((sys.executable, str(EXAMPLES / "predict.py")))
JAVASCRIPT = Program(("node", str(EXAMPLES / "predict.js")))


@pytest.fixture(params=[CURL, PYTHON, JAVASCRIPT], ids=["curl", "Python", "JavaScript"])
def program(request: pytest.FixtureRequest) -> Program:
    if request.param is CURL and not shutil.which("curl"):
        pytest.skip("needs curl")
    if request.param is JAVASCRIPT and node_version() < 20:
        pytest.skip("needs node, version 20 or newer")
    chosen: Program = request.param
    return chosen


def node_version() -> int:
    node = shutil.which("node")
    version = subprocess.check_output([node, "--version"], text=True) if node else "v0"
    return int(version.lstrip("v").split(".")[0])


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"API_KEYS": KEY, "MAX_BODY_BYTES": str(MAX_BODY_BYTES)}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server, clip: bytes) -> list[tuple[str, str]]:
    """The probability and the label of the five most likely actions."""
    answer = httpx.post(
        f"{server.url}/predict", content=clip, headers={"X-API-Key": KEY}, timeout=PATIENCE_S, trust_env=False
    )
    return actions(answer.text)


def actions(output: str) -> list[tuple[str, str]]:
    """Read what a program has printed: the API's answer, or a line for each action."""
    if output.startswith("{"):
        return [(f"{best['probability']:.4f}", best["label"]) for best in json.loads(output)["predictions"]]
    pairs = [line.split("  ") for line in output.splitlines()]
    return [(probability, label) for probability, label in pairs]


# Node reads arguments as UTF-8 only.
NAMES = [b"a clip; with, odd=name.mp4", b"-x.mp4", b"a[1-3]{x,y}\x1b[31m.mp4", b"caf\xe9.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_the_most_likely_actions_are_printed_whatever_the_clip_is_called(
    program: Program, server: Server, tmp_path: Path, clip: bytes, expected: list[tuple[str, str]], name: bytes
) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(clip)
    ended = program.run(server.url, name, tmp_path)

    if program is JAVASCRIPT and not name.isascii():
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    else:
        assert (ended.returncode, ended.stderr) == (0, "")
        assert actions(ended.stdout) == expected


def test_a_refused_clip_is_told_in_one_line(program: Program, server: Server, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video " * 100, encoding="utf-8")
    ended = program.run(server.url, "notes.mp4", tmp_path)

    assert (ended.returncode, ended.stdout) == (program.refused, "")
    assert "415" in ended.stderr
    assert "this is not a video in a supported container" in ended.stderr
    assert "unsupported_media" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_clip_that_is_too_large_is_refused_without_being_read_into_memory(
    program: Program, server: Server, tmp_path: Path
) -> None:
    clip = tmp_path / "large.mp4"
    clip.touch()
    os.truncate(clip, 30 * MAX_BODY_BYTES)
    measured = Program((sys.executable, "-c", MEASURED, *program.command), program.refused)
    ended = measured.run(server.url, clip)
    told, kib = ended.stderr.splitlines()

    assert (ended.returncode, ended.stdout) == (program.refused, "")
    assert "413" in told
    assert "body_too_large" in told
    assert int(kib) < 200_000


@pytest.mark.parametrize("name", ["none\x1b[31m.mp4", "."])
def test_a_clip_that_cannot_be_read_is_told_in_one_line(
    program: Program, server: Server, tmp_path: Path, name: str
) -> None:
    ended = program.run(server.url, name, tmp_path)

    assert ended.returncode in {1, 2}
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "\x1b" not in ended.stderr


def test_it_is_told_when_no_service_answers(program: Program, clip_file: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # without listening
        port = reserved.getsockname()[1]
        ended = program.run(f"http://127.0.0.1:{port}", clip_file)

    assert (ended.returncode, ended.stdout) == (program.unanswered, "")
    assert ended.stderr.count("\n") == 1
    assert str(port) in ended.stderr


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    """A file for servers that do not look into it."""
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"a clip")
    return file


Answer = tuple[int, dict[str, str], bytes]
JSON = {"Content-Type": "application/json"}
PREDICTED = (200, JSON, json.dumps(PREDICTION).encode())
BUSY = b'{"title": "The service is busy", "detail": "try again later", "status": 503, "code": "overloaded"}'


def test_a_busy_service_is_asked_again_when_it_says_with_the_whole_clip(program: Program, clip_file: Path) -> None:
    limit = (429, {"Retry-After": "1"}, b"<p>Slow down")  # the gateway's
    busy = (503, {"Retry-After": "in 2"}, BUSY)
    with StandIn(limit, busy, PREDICTED) as service:
        ended = program.run(service.url, clip_file)

    first, second, third = service.asked
    assert (ended.returncode, ended.stderr) == (0, "")
    assert actions(ended.stdout) == actions(json.dumps(PREDICTION))
    assert min(second - first, third - second) > 0.9  # a date has no fractions of seconds
    assert service.bodies == [b"a clip"] * 3


def test_a_service_that_is_busy_for_too_long_is_not_waited_for(program: Program, clip_file: Path) -> None:
    with StandIn((503, {"Retry-After": "86400"}, BUSY)) as service:
        ended = program.run(service.url, clip_file)

    assert len(service.asked) == 1
    assert (ended.returncode, ended.stdout) == (program.refused, "")
    assert "try again later" in ended.stderr


HTML = {"Content-Type": "text/html"}
PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<hr>\x1b[31m<center>nginx" + b" padding" * 100_000


# What proxies of other people answer in the service's place, and what a program should say about it.
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((403, HTML, PAGE), "<html> <head><title>502 Bad Gateway</title></head> <hr>"),
        ((200, HTML, b"<p>Please log in"), "<p>Please log in"),
        ((401, JSON, b'{"code": 7, "message": "no upstream"}'), '{"code": 7, "message": "no upstream"}'),
        ((404, {}, b""), ""),
    ],
    ids=["a page", "a page with a good status", "JSON", "nothing"],
)
def test_the_answer_of_a_proxy_is_told(program: Program, clip_file: Path, answer: Answer, told: str) -> None:
    with StandIn(answer) as proxy:
        ended = program.run(proxy.url, clip_file)

    status, text = ended.stderr.split(": ", 1)
    assert (ended.returncode, ended.stdout) == (program.refused, "")
    assert status.startswith(f"{answer[0]} ")
    assert text.startswith(told)
    assert len(ended.stderr) < 600
    assert "\x1b" not in ended.stderr


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("Thu, 26 Nov 2026 00:00:09 GMT", 9),
        ("Thursday, 26-Nov-26 00:00:09 GMT", 9),
        ("Thu Nov 26 00:00:09 2026", 9),
        ("Wed, 25 Nov 2026 23:59:59 GMT", 0),
        ("Sun, 06 Nov 99999999 08:49:37 GMT", 1),
        ("in a while", 1),
        ("-5", 1),
        ("1.5", 1),
        ("", 1),
        ("31536000", 31536000),
        ("9" * 5000, float("inf")),
    ],
)
def test_python_takes_every_form_of_retry_after(
    monkeypatch: pytest.MonkeyPatch, retry_after: str, seconds: float
) -> None:
    midnight = datetime(2026, 11, 26, tzinfo=UTC).timestamp()
    asked_to_wait_s = runpy.run_path(str(EXAMPLES / "predict.py"))["asked_to_wait_s"]
    asked_to_wait_s.__globals__["time"] = SimpleNamespace(time=lambda: midnight)

    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "America/New_York")
        time.tzset()
        waited = asked_to_wait_s(httpx.Response(503, headers={"Retry-After": retry_after}))
    time.tzset()

    assert waited == seconds


class StandIn:
    """A server with these answers, the last one for ever. A header such as ``in 2`` becomes a date in two seconds.

    Attributes:
        url: Its address.
        asked: The time of each request.
        bodies: The body of each request.
    """

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[float] = []
        self.bodies: list[bytes] = []
        stand_in = self
        turn = itertools.chain(answers, itertools.repeat(answers[-1]))  # `next` is atomic: requests come in threads

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which answers curl's `Expect: 100-continue`

            def do_POST(self) -> None:
                stand_in.asked.append(time.monotonic())
                stand_in.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, body = next(turn)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    seconds = value.removeprefix("in ")
                    self.send_header(
                        name, self.date_time_string(time.time() + int(seconds)) if seconds != value else value
                    )
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
