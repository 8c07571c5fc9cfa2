"""What clients do with their connections: upgrades, pipelining, half-closes, and framing without an end."""

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import stopped_decoder
from tests.processes import decoders, until

pytestmark = pytest.mark.slow

KEY = "secret"
TIMEOUT_S = 2.0  # of everything that a client may delay
LIMIT = 2_000_000

HEAD = f"Host: localhost\r\nX-API-Key: {KEY}\r\n".encode()
POST = b"POST /predict?attention=false HTTP/1.1\r\n" + HEAD
GET = b"GET /model HTTP/1.1\r\n" + HEAD
LAST = GET + b"Connection: close\r\n\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\n" + HEAD


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "API_KEYS": KEY,
        "MAX_BODY_BYTES": str(LIMIT),
        "UPLOAD_TIMEOUT_S": str(TIMEOUT_S),
        "SEND_TIMEOUT_S": str(TIMEOUT_S),
        "KEEP_ALIVE_S": str(TIMEOUT_S),
        "DECODE_WORKERS": "1",
        "DECODE_TIMEOUT_S": "300",
    }
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[socket.socket]:
    with connect(server) as client:
        yield client


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(2**16):
        received += part
    return received


def statuses(received: bytes) -> list[int]:
    """Return the status of each answer."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


class TestUpgrades:
    """Protocols that the server does not speak."""

    HEADERS = pytest.mark.parametrize(
        "upgrade",
        [
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
            b"Connection: keep-alive, Upgrade\r\nUpgrade: a/1, b\r\nUpgrade: TLS/1.0\r\n",
            b"Upgrade: nonsense\r\n",
        ],
        ids=["h2c", "websocket", "several", "without an option"],
    )

    @HEADERS
    @pytest.mark.parametrize("framing", [with_length, in_chunks])
    @pytest.mark.parametrize("pieces", [1, 3])
    def test_the_body_is_read_and_each_request_answered_once(  # type: ignore[no-untyped-def]
        self, client: socket.socket, clip: bytes, upgrade: bytes, framing, pieces: int
    ) -> None:
        sent = (POST + upgrade + framing(clip)) * 2 + LAST
        for start in range(0, len(sent), size := len(sent) // pieces + 1):
            client.sendall(sent[start : start + size])

        assert statuses(read_to_end(client)) == [200, 200, 200]

    @HEADERS
    def test_a_request_inside_the_body_is_not_answered(self, client: socket.socket, upgrade: bytes) -> None:
        client.sendall(POST + upgrade + with_length(LAST) + LAST)

        assert statuses(read_to_end(client)) in ([415], [415, 200])

    @HEADERS
    def test_a_client_that_waits_for_100_continue_gets_it(
        self, client: socket.socket, clip: bytes, upgrade: bytes
    ) -> None:
        client.sendall(POST + upgrade + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(clip))
        assert client.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(clip + LAST)

        assert statuses(read_to_end(client)) == [200, 200]

    @HEADERS
    def test_http_1_0_does_not_know_upgrades(self, client: socket.socket, clip: bytes, upgrade: bytes) -> None:
        client.sendall(POST.replace(b"HTTP/1.1", b"HTTP/1.0") + upgrade + with_length(clip))

        assert statuses(read_to_end(client)) == [200]

    def test_connect_opens_no_tunnel(self, client: socket.socket) -> None:
        client.sendall(b"CONNECT localhost:443 HTTP/1.1\r\n" + HEAD + b"\r\n" + LAST)

        assert statuses(read_to_end(client)) == [404, 200]

    def test_the_preface_of_http_2_is_refused(self, client: socket.socket) -> None:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")

        assert statuses(read_to_end(client)) == [400]

    @pytest.mark.parametrize("options", [["-F", "file=@{}"], ["--data-binary", "@{}", "-H", "Content-Type: video/mp4"]])
    def test_curl_may_offer_http_2(self, server: Server, clip: bytes, tmp_path: Path, options: list[str]) -> None:
        file = tmp_path / "clip.mp4"
        file.write_bytes(clip)
        sent = [option.format(file) for option in options]
        command = ["curl", "-sS", "--http2", "-H", f"X-API-Key: {KEY}", "-w", "\n%{http_code}", *sent]
        done = subprocess.run([*command, f"{server.url}/predict"], capture_output=True, text=True, check=True)

        assert done.stdout.endswith("\n200")

    @pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
    def test_javas_http_client_offers_http_2(self, server: Server, clip: bytes, tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(clip)
        (tmp_path / "Post.java").write_text(JAVA, encoding="utf-8")
        command = ["java", f"{tmp_path}/Post.java", f"{server.url}/predict", f"{tmp_path}/clip.mp4", KEY]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        assert done.stdout.split() == ["200", "200"]


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.Path;

public class Post {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("X-API-Key", arguments[2])
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1])))
                .build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


class TestPipelining:
    """Requests whose client does not wait for answers."""

    @pytest.fixture(autouse=True)
    def no_error_lines(self, server: Server) -> Iterator[None]:
        yield
        assert not [line for line in server.lines() if line["level"] in {"error", "critical"}]

    ANONYMOUS = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    LARGE = POST + with_length(bytes(LIMIT + 1))

    @pytest.mark.parametrize(
        ("sent", "answered"),
        [
            ((ANONYMOUS + with_length(b"lime")) * 3, [401]),
            ((ANONYMOUS + in_chunks(b"lime")) * 3, [401]),
            (LARGE + LAST, [413]),
            (GET + b"\r\n" + ANONYMOUS + with_length(b"lime") + LAST, [200, 401]),
            (GET.replace(b"GET", b"HEAD") + with_length(b"lime") + LAST, [200]),
        ],
        ids=["key", "chunked", "length", "second", "HEAD"],
    )
    @pytest.mark.parametrize("end", ["reads", "half-closes", "resets"])
    def test_a_refusal_before_the_end_of_the_body_is_the_last_answer(
        self, server: Server, client: socket.socket, sent: bytes, answered: list[int], end: str
    ) -> None:
        before = len(server.lines())
        client.sendall(sent)
        if end == "half-closes":
            client.shutdown(socket.SHUT_WR)
        if end == "resets":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        else:
            assert statuses(read_to_end(client)) == answered
            until(lambda: [line["status"] for line in server.lines()[before:]] == answered)

    def test_what_follows_the_last_request_is_ignored(self, server: Server, clip: bytes) -> None:
        with stopped_decoder(server, f"X-API-Key: {KEY}"), connect(server) as client:
            client.sendall(POST + b"Connection: close\r\n" + with_length(clip))
            until(lambda: server.metric("queue_depth") == 1)
            client.sendall(b"\r\n" + GET + b"\r\n")
            resume(server)

            assert statuses(read_to_end(client)) == [200]


def resume(server: Server) -> None:
    for pid in decoders(server.process.pid):
        os.kill(pid, signal.SIGCONT)


def test_a_client_that_resets_the_connection_before_it_is_refused_causes_no_error(server: Server) -> None:
    body = bytes(100_000)  # more than the server parses at a time
    for _ in range(20):
        with connect(server) as client:
            client.sendall(b"POST /predict HTTP/2.0\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: server.metric("connections_refused_total", reason="bad_request") >= 20)

    assert [line for line in server.lines() if line["logger"] == "asyncio"] == []


class TestHalfClose:
    """Clients that end their sending side, and clients that are gone, which look the same at first."""

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
    @pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"])
    def test_a_complete_request_is_answered(
        self, client: socket.socket, clip: bytes, version: bytes, extra: bytes
    ) -> None:
        client.sendall(POST.replace(b"HTTP/1.1", version) + extra + with_length(clip))
        client.shutdown(socket.SHUT_WR)
        received = read_to_end(client)

        assert [status for status in statuses(received) if status != 100] == [200]
        assert received.endswith(b"}}")

    def test_it_is_answered_although_it_has_to_wait(self, server: Server, clip: bytes) -> None:
        with stopped_decoder(server, f"X-API-Key: {KEY}"), connect(server) as client:
            client.sendall(POST + with_length(clip))
            client.shutdown(socket.SHUT_WR)
            until(lambda: server.metric("queue_depth") == 1)
            early = client.recv(9)  # sent to find out whether the client is still there
            resume(server)

            assert b"HTTP/1.1 ".startswith(early)
            assert statuses(early + read_to_end(client)) == [200]

    def test_all_pipelined_requests_are_answered(self, client: socket.socket, clip: bytes) -> None:
        client.sendall((POST + with_length(clip) + b"\r\n" + GET + b"\r\n") * 2)
        client.shutdown(socket.SHUT_WR)

        assert statuses(read_to_end(client)) == [200] * 4

    def test_what_follows_the_last_request_is_ignored(self, client: socket.socket) -> None:
        client.sendall(DOCUMENT + b"Connection: close\r\n\r\n" + GET)
        client.shutdown(socket.SHUT_WR)

        assert statuses(read_to_end(client)) == [200]

    @pytest.mark.parametrize("request_bytes", [GET, POST + b"Content-Length: 9\r\n\r\nlime", GET + b"\r\n" + GET])
    def test_an_incomplete_request_is_refused_at_once(self, client: socket.socket, request_bytes: bytes) -> None:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(TIMEOUT_S / 2)

        assert statuses(read_to_end(client))[-1] == 400

    @pytest.mark.parametrize("request_bytes", [b"", b"\r\n", GET + b"\r\n"])
    def test_an_idle_connection_is_closed(self, client: socket.socket, request_bytes: bytes) -> None:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(TIMEOUT_S / 2)

        assert statuses(read_to_end(client)) == [200] * request_bytes.count(b"GET")

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
    @pytest.mark.parametrize("half_closed", [False, True])
    def test_the_work_of_a_client_that_is_gone_is_cancelled(
        self, server: Server, clip: bytes, version: bytes, half_closed: bool
    ) -> None:
        with stopped_decoder(server, f"X-API-Key: {KEY}"):
            with connect(server) as client:
                client.sendall(POST.replace(b"HTTP/1.1", version) + with_length(clip))
                until(lambda: server.metric("queue_depth") == 1)
                if half_closed:
                    client.shutdown(socket.SHUT_WR)
            until(lambda: server.metric("queue_depth") == 0)
            until(lambda: server.lines()[-1].get("status") == 499)


class TestStoppedServer:
    """The server is stopped for longer than a client may take, while the client does what it has to do."""

    @staticmethod
    @contextmanager
    def stopped(server: Server) -> Iterator[None]:
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            yield
            time.sleep(TIMEOUT_S + 1)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

    def test_the_rest_of_a_head_arrives(self, server: Server, client: socket.socket) -> None:
        before = server.metric("connections_refused_total", reason="head_timeout")
        client.sendall(LAST[:20])
        until(lambda: server.metric("connections") == 2)
        with self.stopped(server):
            client.sendall(LAST[20:])

        assert statuses(read_to_end(client)) == [200]
        assert server.metric("connections_refused_total", reason="head_timeout") == before

    def test_a_request_arrives_on_an_idle_connection(self, server: Server, client: socket.socket) -> None:
        client.sendall(GET.replace(b"GET", b"HEAD") + b"\r\n")
        assert client.recv(2**16).endswith(b"\r\n\r\n")
        with self.stopped(server):
            client.sendall(LAST)

        assert statuses(read_to_end(client)) == [200]

    def test_the_answers_are_read(self, server: Server) -> None:
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            client.sendall((DOCUMENT + b"\r\n") * 20 + LAST)
            until(lambda: waits_for_reader(server, client))
            read = threading.Event()
            received: list[bytes] = []

            def read_all() -> None:
                received.append(client.recv(2**16))
                read.set()
                received.append(read_to_end(client))

            with self.stopped(server):
                reader = threading.Thread(target=read_all)
                reader.start()
                assert read.wait(PATIENCE_S)
            reader.join(PATIENCE_S)

        assert statuses(b"".join(received)) == [200] * 21

    def test_the_rest_of_a_refused_body_arrives(self, server: Server, client: socket.socket) -> None:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
        assert client.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 413"
        with self.stopped(server):
            client.sendall(bytes(2**16))
        client.sendall(bytes(LIMIT + 1 - 2**16))

        assert b"body_too_large" in read_to_end(client)

    @pytest.mark.parametrize("beginning", [b"", GET])
    def test_a_client_that_stays_silent_is_still_cut_off(
        self, server: Server, client: socket.socket, beginning: bytes
    ) -> None:
        client.sendall(beginning)
        until(lambda: server.metric("connections") == 2)
        with self.stopped(server):
            pass
        client.settimeout(2 * TIMEOUT_S + 5)

        assert read_to_end(client) == b""


def waits_for_reader(server: Server, client: socket.socket) -> bool:
    """Return whether the kernel takes no more of the server's answers to the client."""

    def unread() -> int:
        rows = [
            line.split()
            for line in Path(f"/proc/{server.process.pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
        ]
        ends = [f":{port:04X}" for port in (client.getpeername()[1], client.getsockname()[1])]
        # Another connection may come from the same port to another server.
        (queued,) = (row[4].partition(":")[0] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1]))
        return int(queued, 16)

    before = unread()
    time.sleep(0.2)
    return before > 2**18 and unread() == before


class TestEndlessFraming:
    """What surrounds a body has no end: the memory of the server stays as it is."""

    @pytest.mark.parametrize(
        ("beginning", "part"),
        [
            (b"0\r\n", b"X-Trailer: lime\r\n"),
            (b"0\r\nX-Trailer: ", b"lime"),
            (b"0\r\nX-Trailer: lime\r\n", b" folded\r\n"),
            (b"1;", b"extension"),
            (b'1;a="', b'\\"'),
            (b"", b"0"),
        ],
        ids=["trailers", "trailer", "folded trailer", "extension", "quoted extension", "digits of a size"],
    )
    def test_a_client_is_refused_early(
        self, server: Server, client: socket.socket, beginning: bytes, part: bytes
    ) -> None:
        before, sent, received = peak_memory(server), 0, b""
        client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + beginning)
        block = part * (2**20 // len(part))
        with suppress(OSError):
            while sent < 2**28:
                client.sendall(block)
                sent += len(block)
        with suppress(OSError):
            received = read_to_end(client)

        assert statuses(received) in ([400], [413], [431], [])
        assert sent < 2**24
        assert peak_memory(server) < before + 2**24


def peak_memory(server: Server) -> int:
    """Return the most memory that the server has used, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
