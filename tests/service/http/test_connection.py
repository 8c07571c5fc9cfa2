"""Uvicorn's internals that ``service.http.connection`` relies on, and what connections do on a real socket.

If a test here fails after an upgrade of uvicorn, compare ``service/http/connection.py`` with the new
``uvicorn/protocols/http/h11_impl.py`` before raising the bound in pyproject.toml.
"""

import asyncio
import contextlib
import gc
import inspect
import json
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import h11
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.http import connection
from service.http.connection import MAX_HEAD_BYTES, MAX_HEADERS, MIN_CHUNK_BYTES, ConnectionLimits, connection_factory
from service.http.listening import SEND_BUFFER_BYTES
from service.http.middleware.body_limits import LINGER, BodyLimits
from service.metrics import Metrics
from service.settings import Settings
from tests.processes import until

PATIENCE_S = 30
HEAD_TIMEOUT_S = SEND_TIMEOUT_S = 0.5
ANSWER = b"x" * 100_000


class TestInternals:
    """The attributes, methods and signatures of uvicorn that are overridden or used."""

    SIGNATURES: ClassVar = {
        "__init__": ["self", "config", "server_state", "app_state", "_loop"],
        "connection_made": ["self", "transport"],
        "connection_lost": ["self", "exc"],
        "data_received": ["self", "data"],
        "eof_received": ["self"],
        "handle_events": ["self"],
        "on_response_complete": ["self"],
        "pause_writing": ["self"],
        "resume_writing": ["self"],
        "send_400_response": ["self", "msg"],
        "shutdown": ["self"],
        "timeout_keep_alive_handler": ["self"],
        "_should_upgrade": ["self"],
        "_unset_keepalive_if_required": ["self"],
    }
    OVERRIDDEN = SIGNATURES.keys() - {"__init__", "_unset_keepalive_if_required"}

    @pytest.mark.parametrize("method", SIGNATURES)
    def test_methods_have_the_expected_signatures(self, method: str) -> None:
        assert list(inspect.signature(getattr(H11Protocol, method)).parameters) == self.SIGNATURES[method]

    def test_nothing_else_of_uvicorn_is_overridden_by_accident(self) -> None:
        added = {"_shared", "_limits", "_head_timer", "_reader_timer", "_probe_timer", "_ended"}
        ours = added | vars(connection.Connection).keys()
        inherited = {*dir(H11Protocol), *vars(self.protocol())} - {*dir(object), "__module__"}

        assert ours & inherited == self.OVERRIDDEN

    def test_the_parser_is_kept_where_ours_replaces_it(self) -> None:
        assert type(self.protocol().conn) is h11.Connection

    def test_a_new_connection_has_no_cycle_yet(self) -> None:
        attributes = vars(self.protocol())

        assert attributes["cycle"] is None
        assert attributes["timeout_keep_alive_task"] is None
        assert attributes["loop"] is not None

    def test_a_connection_keeps_its_transport_and_flow_control(self) -> None:
        protocol, transport = self.protocol(), Transport()
        protocol.connection_made(cast(asyncio.Transport, transport))

        assert protocol.transport is cast(object, transport)
        assert isinstance(protocol.flow, FlowControl)
        assert protocol in protocol.server_state.connections

    def test_a_connection_is_told_of_every_byte_that_a_client_leaves_unread(self) -> None:
        config = uvicorn.Config(answer_at_once, log_config=None, lifespan="off", ws="none")
        factory: Any = connection_factory(ConnectionLimits(1, 60, 60, 60), Metrics())
        loop, transport = asyncio.new_event_loop(), Transport()
        with contextlib.closing(loop):
            made = factory(config=config, server_state=ServerState(), app_state={}, _loop=loop)
            made.connection_made(transport)

        assert transport.called == ["set_write_buffer_limits(0)"]

    def test_flow_control_pauses_and_resumes_the_transport(self) -> None:
        transport = Transport()
        flow = FlowControl(cast(asyncio.Transport, transport))
        flow.pause_reading()
        flow.resume_reading()

        assert transport.called == ["pause_reading", "resume_reading"]

    def test_a_cycle_has_flags_for_completion_and_disconnection(self) -> None:
        parameters = inspect.signature(RequestResponseCycle).parameters
        given = dict.fromkeys(parameters) | {"conn": h11.Connection(h11.SERVER), "message_event": asyncio.Event()}
        cycle = cast(Any, RequestResponseCycle)(**given)

        assert (cycle.response_started, cycle.response_complete, cycle.disconnected) == (False, False, False)
        assert cycle.waiting_for_100_continue is False
        assert isinstance(cycle.message_event, asyncio.Event)

    @staticmethod
    def protocol() -> H11Protocol:
        config = uvicorn.Config(answer_at_once, log_config=None, lifespan="off", ws="none")
        return H11Protocol(config, ServerState(), {}, cast(asyncio.AbstractEventLoop, object()))


class Transport:
    """A substitute for a transport that records what is done to it."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int) -> None:
        self.called.append(f"set_write_buffer_limits({high})")

    def pause_reading(self) -> None:
        self.called.append("pause_reading")

    def resume_reading(self) -> None:
        self.called.append("resume_reading")


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ANSWER))]})
    await send({"type": "http.response.body", "body": ANSWER})


def answer_after(release: threading.Event) -> ASGIApp:
    """Return an application that answers once this is set."""

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        await answer_at_once(scope, receive, send)

    return wait


class Server(uvicorn.Server):
    """A uvicorn server with our connections, on a free port, in a thread."""

    def __init__(
        self,
        app: ASGIApp,
        loop: str,
        *,
        connections: int = 50,
        send_timeout_s: float = SEND_TIMEOUT_S,
        linger_s: float = PATIENCE_S,
    ) -> None:
        self.metrics = Metrics()
        limits = ConnectionLimits(connections, HEAD_TIMEOUT_S, send_timeout_s, linger_s)
        factory = connection_factory(limits, self.metrics)
        super().__init__(
            uvicorn.Config(app, http=factory, loop=loop, lifespan="off", ws="none", log_config=None, access_log=False)
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self.run, args=[[self._listener]])
        thread.start()
        try:
            yield self
        finally:
            self.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def ask(self, *parts: bytes) -> bytes:
        """Send these bytes on a connection of their own, and return everything that the server answers."""
        with self.connect() as client:
            for part in parts:
                client.sendall(part)
            return read_to_end(client)

    def refused(self, reason: str) -> float:
        """Return how many connections have been refused for this reason."""
        value = self.metrics.registry.get_sample_value("limelight_connections_refused_total", {"reason": reason})
        assert value is not None
        return value


@pytest.fixture
def loop() -> str:
    """The event loop that the server uses by default."""
    return "auto"


@pytest.fixture
def serve(loop: str) -> Iterator[Callable[..., Server]]:
    """Start a server for an application; it stops at the end of the test."""
    opened = []

    def start(app: ASGIApp, **options: Any) -> Server:
        context = Server(app, loop, **options).running()
        opened.append(context)
        return context.__enter__()

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(2**16):
        received += part
    return received


class TestHeadTimeout:
    @pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: lime"])
    def test_a_connection_whose_head_never_arrives_is_closed_and_counted_if_it_had_begun(
        self, serve: Callable[..., Server], beginning: bytes
    ) -> None:
        server = serve(answer_at_once)
        with server.connect() as client:
            client.sendall(beginning)
            started = time.monotonic()

            assert read_to_end(client) == b""
            assert time.monotonic() - started > HEAD_TIMEOUT_S / 2
        assert server.refused("head_timeout") == len(beginning[:1])

    def test_a_trickling_head_does_not_extend_the_timeout(self, serve: Callable[..., Server]) -> None:
        with serve(answer_at_once).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: ")
            client.settimeout(HEAD_TIMEOUT_S / 10)
            give_up = time.monotonic() + PATIENCE_S
            closed = False
            while not closed and time.monotonic() < give_up:
                try:
                    client.sendall(b"x")
                    closed = client.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    closed = True

        assert closed

    def test_the_head_of_a_second_request_has_the_timeout_too(self, serve: Callable[..., Server]) -> None:
        with serve(answer_at_once).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(ANSWER):
                received += client.recv(2**16)
            client.sendall(b"GET / HT")

            assert read_to_end(client) == b""

    def test_an_answer_may_take_longer_than_the_timeout(self, serve: Callable[..., Server]) -> None:
        async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(3 * HEAD_TIMEOUT_S)
            await answer_at_once(scope, receive, send)

        with serve(answer_late).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            assert read_to_end(client).endswith(ANSWER)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


async def answer_the_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class TestRequestLine:
    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            (b"http://limelight:8000/model?a=b", "/model", b"a=b"),
            (b"HTTPS://limelight/", "/", b""),
            (b"http://limelight", "/", b""),
            (b"http://limelight?a=/b", "/", b"a=/b"),
            (b"/http://limelight/", "/http://limelight/", b""),
            (b"*", "*", b""),
        ],
    )
    def test_a_target_may_begin_with_scheme_and_host(
        self, serve: Callable[..., Server], target: bytes, path: str, query: bytes
    ) -> None:
        scopes: list[Scope] = []

        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope)
            await answer_at_once(scope, receive, send)

        serve(note).ask(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)

        assert [(scope["path"], scope["query_string"]) for scope in scopes] == [(path, query)]

    def test_a_blank_line_before_a_request_is_ignored(self, serve: Callable[..., Server]) -> None:
        post = POST + b"Content-Length: 4\r\n\r\nlime\r\n"
        received = serve(answer_the_body).ask(b"\r\n" + post + post, GET + b"Connection: close\r\n\r\n")

        assert received.count(b"HTTP/1.1 200 OK") == received.count(b"HTTP/1.1") == 3

    def test_a_connection_that_sends_only_a_blank_line_is_closed(self, serve: Callable[..., Server]) -> None:
        with serve(answer_the_body).connect() as client:
            client.sendall(GET + b"\r\n")
            assert client.recv(2**16).startswith(b"HTTP/1.1 200 OK")
            client.sendall(b"\r\n")

            assert read_to_end(client) == b""


class TestChunks:
    @staticmethod
    def chunked(size: int, number: int) -> bytes:
        return CHUNKED + b"%x\r\n%s\r\n" % (size, bytes(size)) * number + b"0\r\n\r\n"

    @pytest.mark.parametrize(("size", "number"), [(1, 1000), (MIN_CHUNK_BYTES, 20_000)])
    def test_small_chunks_are_read(self, serve: Callable[..., Server], size: int, number: int) -> None:
        with serve(answer_the_body).connect() as client:
            client.sendall(self.chunked(size, number) + GET + b"Connection: close\r\n\r\n")
            received = read_to_end(client)

        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert b"content-length: %d\r\n" % (size * number) in received

    def test_a_body_of_tiny_chunks_is_refused(self, serve: Callable[..., Server]) -> None:
        answer = serve(answer_the_body).ask(self.chunked(1, 20_000))

        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert "chunks" in problem(answer)["detail"]


class TestMalformedRequests:
    """The server itself answers requests that never become requests of the application."""

    @staticmethod
    def endless(beginning: bytes, part: bytes) -> Iterator[bytes]:
        yield beginning
        yield from [part * (2**16 // len(part))] * 400  # 25 MiB

    @pytest.mark.parametrize(
        ("beginning", "part"),
        [
            (GET, b"X-Header: lime\r\n"),
            (GET + b"X-Header: ", b"lime"),
            (GET, b"\x01"),
            (b"GET /", b"lime"),
            (b"", b"lime"),
            (CHUNKED + b"0\r\n", b"X-Trailer: lime\r\n"),
            (CHUNKED + b"0\r\nX-Trailer: ", b"lime"),
            (CHUNKED + b"1;", b"extension"),
        ],
        ids=["lines", "value", "control characters", "target", "method", "trailers", "trailer", "chunk extension"],
    )
    def test_a_head_without_end_is_refused_early(
        self, serve: Callable[..., Server], beginning: bytes, part: bytes
    ) -> None:
        server, sent, received = serve(answer_the_body), 0, b""
        with server.connect() as client:
            try:
                for block in self.endless(beginning, part):
                    client.sendall(block)
                    sent += len(block)
            except ConnectionError:
                pass  # cut off, since it kept sending
            with contextlib.suppress(ConnectionError):
                received = read_to_end(client)

        assert received[9:12] in {b"400", b"431", b""}
        assert sent < 16 * 2**20  # a part of which is in the kernel's buffers
        until(lambda: server.refused("head_too_large") + server.refused("bad_request") == 1)

    @pytest.mark.parametrize(
        "head",
        [
            GET + b"A: b\r\n" * MAX_HEADERS,
            GET + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n",
            b"GET /" + b"b" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n",
        ],
        ids=["number", "header", "target"],
    )
    def test_an_oversized_head_is_answered_431(self, serve: Callable[..., Server], head: bytes) -> None:
        answer = serve(answer_at_once).ask(head + b"\r\n")

        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert problem(answer)["code"] == "head_too_large"
        assert b"connection: close" in answer

    def test_a_head_within_the_bounds_is_accepted(self, serve: Callable[..., Server]) -> None:
        head = GET + b"A: b\r\n" * (MAX_HEADERS - 3) + b"B: " + b"b" * (MAX_HEAD_BYTES - 1000) + b"\r\n"

        assert serve(answer_at_once).ask(head + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            GET + b"Content-Length: -1\r\n\r\n",
            GET + b"A : b\r\n\r\n",
            CHUNKED + b"not a length\r\n",
            POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
        ids=[
            "TLS",
            "text",
            "no host",
            "two lengths",
            "negative length",
            "blank in a name",
            "malformed chunk",
            "chunks and a length",
            "HTTP/2",
        ],
    )
    def test_what_is_not_http_is_answered_400_as_a_problem(
        self, serve: Callable[..., Server], request_bytes: bytes
    ) -> None:
        server = serve(answer_the_body)
        answer = server.ask(request_bytes)

        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"content-type: application/problem+json" in answer
        assert problem(answer)["code"] == "bad_request"
        assert f"x-request-id: {problem(answer)['request_id']}".encode() in answer
        assert server.refused("bad_request") == 1

    def test_a_malformed_body_after_the_answer_began_cuts_the_connection(self, serve: Callable[..., Server]) -> None:
        async def begin(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await receive()

        with serve(begin).connect() as client:
            client.sendall(CHUNKED)
            assert client.recv(12) == b"HTTP/1.1 200"
            client.sendall(b"no length\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in read_to_end(client)

    @pytest.mark.parametrize("together", [True, False])
    def test_the_application_does_not_wait_for_the_rest_of_a_malformed_body(
        self, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, together: bool
    ) -> None:
        received: list[Message] = []

        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            received.append(await receive())

        server = serve(note)
        with server.connect() as client:
            head = POST + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            if not together:
                client.sendall(head)
                assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(head * together + b"no length\r\n")
            assert client.recv(12) == b"HTTP/1.1 400"
            until(lambda: received, patience_s=connection.AFTER_REFUSAL.pause_s / 2)

        assert received == [{"type": "http.disconnect"}]
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    @pytest.mark.parametrize("upgrade", ["websocket", "h2c", "nonsense"])
    def test_an_upgrade_is_ignored_and_the_body_is_read(self, serve: Callable[..., Server], upgrade: str) -> None:
        head = POST + f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\n".encode()
        body = GET + b"\r\n"
        with serve(answer_the_body).connect() as client:
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            client.sendall(POST + b"Content-Length: 4\r\nConnection: close\r\n\r\nlime")
            received = read_to_end(client)

        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert body in received
        assert received.endswith(b"lime")


def problem(answer: bytes) -> dict[str, str]:
    fields: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return fields


def ask_without_reading(server: Server, client: socket.socket) -> None:
    """Pipeline requests until the server can answer no more of them."""
    client.settimeout(0.1)
    answered = -1
    while answered != server.server_state.total_requests:
        answered = server.server_state.total_requests
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:
                client.sendall((GET + b"\r\n") * 100)
        time.sleep(0.1)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])  # which differ in how they write
class TestSilentReaders:
    """Clients that do not read their answers."""

    def test_a_client_that_pipelines_and_never_reads_is_cut_off(self, serve: Callable[..., Server]) -> None:
        server = serve(answer_at_once)
        with server.connect() as client:
            ask_without_reading(server, client)
            until(lambda: server.refused("send_timeout") == 1, PATIENCE_S)

        until(lambda: not server.server_state.connections)

    def test_a_client_that_does_not_read_its_last_answer_is_cut_off(self, serve: Callable[..., Server]) -> None:
        async def answer_much(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000000")]})
            await send({"type": "http.response.body", "body": bytes(30_000_000)})

        server = serve(answer_much)
        with server.connect() as client:
            client.sendall(GET + b"Connection: close\r\n\r\n")
            until(lambda: server.refused("send_timeout") == 1, PATIENCE_S)
            with pytest.raises(ConnectionResetError):  # so that the kernel does not keep the answer
                read_to_end(client)

        until(lambda: not server.server_state.connections)

    @pytest.mark.parametrize("stopping", [False, True])
    def test_a_client_that_reads_slowly_gets_its_whole_answer(
        self, serve: Callable[..., Server], stopping: bool
    ) -> None:
        size = 2_000_000

        async def answer_much(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
            await send({"type": "http.response.body", "body": bytes(size)})

        server = serve(answer_much)
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            client.sendall(GET + b"\r\n" if stopping else GET + b"Connection: close\r\n\r\n")
            received = len(client.recv(1000))
            server.should_exit = stopping
            started = time.monotonic()
            while part := client.recv(50_000):
                received += len(part)
                time.sleep(0.05)

        assert received > size
        assert time.monotonic() - started > 2 * SEND_TIMEOUT_S

    def test_the_server_stops_in_time_although_a_client_does_not_read(self, serve: Callable[..., Server]) -> None:
        server = serve(answer_at_once)
        with server.connect() as client:
            ask_without_reading(server, client)
            server.should_exit = True
            until(lambda: not server.server_state.connections, 10 * SEND_TIMEOUT_S)


class TestNumberOfConnections:
    def test_a_new_connection_takes_the_place_of_the_one_idle_longest(self, serve: Callable[..., Server]) -> None:
        server = serve(answer_at_once, connections=2)
        with server.connect() as first, server.connect() as second:
            for client in (second, first):  # the second is now idle for longer
                client.sendall(GET + b"\r\n")
                received = b""
                while not received.endswith(ANSWER):
                    received += client.recv(2**16)
            assert server.ask(GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

            assert second.recv(1) == b""
            first.sendall(GET + b"Connection: close\r\n\r\n")
            assert read_to_end(first).startswith(b"HTTP/1.1 200")

    def test_a_new_connection_takes_the_place_of_one_whose_client_does_not_read(
        self, serve: Callable[..., Server]
    ) -> None:
        server = serve(answer_at_once, connections=1, send_timeout_s=PATIENCE_S)
        with server.connect() as silent:
            ask_without_reading(server, silent)

            assert server.ask(GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

    def test_a_connection_is_answered_503_if_all_others_are_busy(self, serve: Callable[..., Server]) -> None:
        release = threading.Event()
        server = serve(answer_after(release), connections=2)
        with server.connect() as first, server.connect() as second:
            for client in (first, second):
                client.sendall(GET + b"Connection: close\r\n\r\n")
            until(lambda: len(server.server_state.tasks) == 2)
            answer = server.ask(GET + b"\r\n")
            release.set()
            assert read_to_end(first).startswith(b"HTTP/1.1 200")

        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after: 1\r\n" in answer
        assert problem(answer)["code"] == "too_many_connections"

    def test_a_connection_that_has_been_refused_takes_no_place(self, serve: Callable[..., Server]) -> None:
        release = threading.Event()
        server = serve(answer_after(release), connections=1)
        with server.connect() as busy:
            busy.sendall(GET + b"Connection: close\r\n\r\n")
            until(lambda: server.server_state.tasks)
            with server.connect() as refused:  # its client does not close it
                assert read_to_end(refused).startswith(b"HTTP/1.1 503")
                release.set()
                assert read_to_end(busy).startswith(b"HTTP/1.1 200")
                until(lambda: len(server.server_state.connections) == 1)

                assert server.ask(GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

    def test_each_further_connection_is_answered_503_even_if_clients_do_not_close_theirs(
        self, serve: Callable[..., Server]
    ) -> None:
        release = threading.Event()
        server = serve(answer_after(release), connections=2)
        with contextlib.ExitStack() as opened:
            clients = [opened.enter_context(server.connect()) for _ in range(2)]
            for client in clients:
                client.sendall(GET + b"\r\n")
            until(lambda: len(server.server_state.tasks) == 2)
            answers = []
            for _ in range(20):
                client = opened.enter_context(server.connect())
                answers.append(read_to_end(client))
            most = len(server.server_state.connections)
            release.set()

        assert {answer[9:12] for answer in answers} == {b"503"}
        assert most <= 5

    def test_nothing_is_kept_of_a_connection_that_its_client_has_reset(self, serve: Callable[..., Server]) -> None:
        server = serve(answer_at_once)
        with server.connect() as client:
            client.sendall(GET + b"\r\n")
            received = b""
            while not received.endswith(ANSWER):
                received += client.recv(2**16)
            (made,) = map(weakref.ref, server.server_state.connections)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        until(lambda: not server.server_state.connections)
        until(lambda: [gc.collect()] and made() is None, patience_s=2)  # the keep-alive timeout is 5 s


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])  # which differ in how they change a transport's protocol
class TestLingeringClose:
    """An answer that comes while the client is still sending its body."""

    HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    LIMITED = BodyLimits(answer_at_once, Settings(), closing=lambda: False)

    @pytest.fixture
    def server(self, serve: Callable[..., Server]) -> Server:
        return serve(self.LIMITED)

    def test_the_answer_arrives_completely_although_the_client_keeps_sending(self, server: Server) -> None:
        with server.connect() as client:
            client.sendall(self.HEAD)
            for _ in range(50):
                client.sendall(bytes(100_000))
            received = read_to_end(client)

        assert received.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in received.lower()
        assert received.endswith(ANSWER)

    def test_a_client_that_pauses_is_cut_off(self, serve: Callable[..., Server]) -> None:
        server = serve(self.LIMITED, linger_s=0.5)
        with server.connect() as client:
            client.sendall(self.HEAD)
            read_to_end(client)
            closed = self.seconds_until_closed(server)

        assert closed < PATIENCE_S / 2

    def test_a_client_that_never_stops_is_cut_off(self, serve: Callable[..., Server]) -> None:
        assert self.is_cut_off(serve(self.LIMITED, linger_s=0.5))

    def test_a_client_that_never_stops_is_cut_off_when_the_server_stops(self, serve: Callable[..., Server]) -> None:
        server = serve(self.LIMITED, linger_s=1000)

        assert self.is_cut_off(server, after_the_answer=lambda: setattr(server, "should_exit", True))

    def test_a_client_that_closes_ends_the_lingering(self, server: Server) -> None:
        with server.connect() as client:
            client.sendall(self.HEAD)
            read_to_end(client)

        assert self.seconds_until_closed(server) < connection.AFTER_REFUSAL.pause_s

    def is_cut_off(self, server: Server, after_the_answer: Callable[[], None] = lambda: None) -> bool:
        """Return whether a client that never stops sending is cut off."""
        with server.connect() as client:
            client.sendall(self.HEAD)
            read_to_end(client)
            after_the_answer()
            give_up = time.monotonic() + PATIENCE_S
            while time.monotonic() < give_up:
                try:
                    client.sendall(bytes(1000))
                except OSError:
                    return True
                time.sleep(0.01)
        return False

    @staticmethod
    def seconds_until_closed(server: Server) -> float:
        """Wait until the server has forgotten the connection."""
        started = time.monotonic()
        while server.server_state.connections:
            assert time.monotonic() < started + PATIENCE_S
            time.sleep(0.01)
        return time.monotonic() - started

    def test_applications_are_offered_the_extension(self, serve: Callable[..., Server]) -> None:
        scopes: list[Scope] = []

        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope)
            await answer_at_once(scope, receive, send)

        with serve(note).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            read_to_end(client)

        assert callable(scopes[0]["extensions"][LINGER])


class TestShutdown:
    def test_a_request_on_an_idle_connection_is_still_answered_when_the_server_stops(
        self, serve: Callable[..., Server]
    ) -> None:
        answered: list[Message] = []

        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            answered.append({})
            await answer_at_once(scope, receive, send)

        server = serve(note)
        with server.connect() as client:
            give_up = time.monotonic() + PATIENCE_S
            while not server.server_state.connections:
                assert time.monotonic() < give_up
                time.sleep(0.01)
            server.should_exit = True
            time.sleep(0.3)  # uvicorn looks ten times a second
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            assert read_to_end(client).endswith(ANSWER)


def test_the_connection_is_made_with_uvicorns_own_arguments() -> None:
    factory: Any = connection_factory(ConnectionLimits(1, 1, 1, 1), Metrics())
    made = uvicorn.Config(answer_at_once, http=factory, log_config=None)
    made.load()

    assert made.http_protocol_class is factory
