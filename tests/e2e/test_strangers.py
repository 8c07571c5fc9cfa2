"""Hostile connections to the server without a gateway: they cost neither memory nor other clients' answers."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient
from tests.processes import until

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
FILES = 256
FEW_FILES = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh"]
PAGE = b"GET /web/sample.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n"

Start = Callable[..., Server]


@pytest.fixture
def start(tiny_bundle: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a server with few file descriptors, with settings by name."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(
            running(tiny_bundle, tmp_path / "log.jsonl", settings, wrapper=FEW_FILES)
        )


def memory_mb(server: Server) -> float:
    """Return the largest memory that the server has taken so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1000


def predict(server: Server, clip: bytes) -> httpx.Response:
    headers = {"X-API-Key": KEY}
    return httpx.post(f"{server.url}/predict", content=clip, headers=headers, timeout=PATIENCE_S, trust_env=False)


def complaints(server: Server) -> list[dict[str, object]]:
    return [line for line in server.lines() if line["level"] in {"warning", "error", "critical"} or "traceback" in line]


def send_until_refused(port: int, beginning: bytes, part: bytes, megabytes: int) -> bytes:
    """Send a request that does not end, and return what the server answers before it cuts the connection off."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client, suppress(ConnectionError):
        client.sendall(beginning)
        for _ in range(16 * megabytes):
            client.sendall(part * (2**16 // len(part)))
        while data := client.recv(2**16):
            received += data
    return received


LONG_LINES = {
    "method": "X" * 20_000 + " /",
    "letters": "GET /" + "a" * 28_000,
    "quotes": "GET /" + "%22" * 9_000,
    "odd characters": "GET /" + "%E2%80%A8" * 3_000,
    "characters that take twelve": "GET /" + "%F0%9F%98%80" * 2_300,
    "bytes that are no text": "GET /" + "%FF" * 9_000,
    "model": "GET /v2/models/" + "%F0%9F%98%80" * 2_000,
    "query": "GET /?" + "a" * 28_000,
    "probe": "GET /health/" + "%FF" * 9_000,
}
LONGEST_ADDRESS = ":".join(["ffff"] * 8)
HEADERS = {
    "id": "X-Request-ID: " + "i" * 128,
    "long id": "X-Request-ID: " + "i" * 8_000,
    "control characters in the trace": "traceparent: " + "\x01" * 8_000,
    "control characters in the id": "X-Request-ID: " + "\x7f" * 8_000,
    "trace": f"traceparent: 00-{'a' * 32}-{'b' * 16}-01",
    "state of the trace": f"traceparent: 00-{'a' * 32}-{'b' * 16}-01\r\ntracestate: a={'b' * 8_000}",
    "long trace": "traceparent: 00-" + "a" * 8_000,
    "client": f"X-Forwarded-For: {LONGEST_ADDRESS}",
    "many clients": "X-Forwarded-For: " + ", ".join([LONGEST_ADDRESS] * 100),
    "client with a zone": f"X-Forwarded-For: fe80::1%{'z' * 8_000}",
    "agent": "User-Agent: " + "\xff" * 8_000,
    "media type": "Content-Type: multipart/form-data; boundary=" + "b" * 8_000,
    "coding": "Content-Encoding: " + "c" * 8_000,
}
FORM = f"--b\r\nContent-Disposition: form-data; name=file; filename={'f' * 7_000}\r\n\r\nno video\r\n--b--\r\n".encode()
BODIES = {
    ("/predict", "Content-Type: multipart/form-data; boundary=b"): FORM,
    ("/v2/models/tiny/infer", "Content-Type: application/json"): b'{"id": "%s", "inputs": []}' % (b"\\u0001" * 5_000),
}


def test_no_client_can_write_long_lines_into_the_log(start: Start) -> None:
    """A stranger whose requests made 48 kB a line could wipe a log of limited size in a second."""
    server = start(LOG_LEVEL="debug", TRUSTED_PROXIES="*")
    common = "\r\n".join(["Host: localhost", HEADERS["id"], HEADERS["trace"], HEADERS["client"]])
    heads = [f"{line} HTTP/1.1\r\n{common}\r\n\r\n" for line in LONG_LINES.values()]
    heads += [f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n" for header in HEADERS.values()]
    requests = [head.encode("latin-1") for head in heads]
    for (path, content_type), body in BODIES.items():
        head = f"POST {path} HTTP/1.1\r\n{common}\r\n{content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    before = len(server.lines())
    for request in requests:
        with RawClient(server.port) as client:
            client.send(request)
            assert client.answer().status in {200, 400, 404, 405, 415}
    until(lambda: len(server.lines()) >= before + len(requests))

    longest = max(server.log.read_text(encoding="utf-8").splitlines()[before:], key=len)
    assert len(longest) < 1024, longest
    assert LONGEST_ADDRESS in longest


class TestEndlessHeads:
    def test_header_lines_without_end_take_no_memory(self, start: Start, clip: bytes) -> None:
        server = start(API_KEYS=KEY)
        assert predict(server, clip).status_code == 200
        before, answers = memory_mb(server), []

        def attack() -> None:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
            answers.append(send_until_refused(server.port, head, b"X-Header: lime\r\n", megabytes=100))

        attackers = [threading.Thread(target=attack) for _ in range(8)]
        for attacker in attackers:
            attacker.start()
        good = [predict(server, clip).status_code for _ in range(3)]
        for attacker in attackers:
            attacker.join()

        assert good == [200] * 3
        assert memory_mb(server) - before < 20
        assert all(answer.startswith(b"HTTP/1.1 431 ") or not answer for answer in answers)
        assert sum(line.get("code") == "head_too_large" for line in server.lines()) == 8
        assert complaints(server) == []


class TestSilentReaders:
    def test_good_clients_are_served_and_the_drain_is_in_time(self, start: Start, clip: bytes) -> None:
        server = start(DRAIN_DELAY_S="0", SEND_TIMEOUT_S="2", API_KEYS=KEY)
        before = memory_mb(server)
        with ExitStack() as clients:
            for _ in range(30):
                silent = clients.enter_context(RawClient(server.port))
                threading.Thread(target=pipeline, args=(silent,), daemon=True).start()
            assert predict(server, clip).status_code == 200
            assert memory_mb(server) - before < 50
            server.process.terminate()
            started = time.monotonic()

            assert server.process.wait(PATIENCE_S) == 0
            assert time.monotonic() - started < 15
        assert complaints(server) == []


def pipeline(client: RawClient) -> None:
    """Send requests and read nothing, until the server cuts the connection off."""
    with suppress(OSError):
        while True:
            client.send(PAGE * 100)


class TestFewFileDescriptors:
    def test_good_clients_are_served_beside_many_silent_ones(self, start: Start, clip: bytes) -> None:
        server = start(API_KEYS=KEY)
        with ExitStack() as clients:
            for number in range(FILES):
                client = clients.enter_context(RawClient(server.port))
                if number % 2:
                    threading.Thread(target=pipeline, args=(client,), daemon=True).start()
            good = [predict(server, clip).status_code for _ in range(5)]

        assert good == [200] * 5
        assert complaints(server) == []

    def test_the_longest_upload_makes_room_if_all_connections_are_uploading(self, start: Start, clip: bytes) -> None:
        server = start(MAX_CONNECTIONS="20", UPLOAD_TIMEOUT_S="60")
        with ExitStack() as clients:
            uploading = [clients.enter_context(RawClient(server.port)) for _ in range(20)]
            for client in uploading:
                client.post("Content-Length: 1000", body=b"the beginning")
                number = uploading.index(client) + 1
                until(lambda number=number: arriving_clips(server) == number)  # type: ignore[misc]
            good = predict(server, clip)
            refused = uploading[0].answer()

        assert good.status_code == 200
        assert (refused.status, refused.code) == (503, "too_many_connections")
        assert int(refused.headers["retry-after"]) >= 1
        assert complaints(server) == []


def arriving_clips(server: Server) -> int:
    """Return the number of clips that are arriving, as the kernel lists the files that hold them."""
    return sum(1 for fd in Path(f"/proc/{server.process.pid}/fd").iterdir() if "memfd:clip" in str(fd.readlink()))


class TestKeepAlive:
    def test_an_idle_connection_is_closed_after_the_time_that_is_set(self, start: Start) -> None:
        server = start(KEEP_ALIVE_S="2", UPLOAD_TIMEOUT_S="1")
        with RawClient(server.port) as client:
            client.post(path="/health/live")
            assert client.answer().status == 405
            answered = time.monotonic()

            assert client.is_closed()
            assert 1.5 < time.monotonic() - answered < 10
