"""Uvicorn's internals that ``service.http.connection`` relies on, and what connections do on a real socket.

If a test here fails after an upgrade of uvicorn, compare ``service/http/connection.py`` with the new
``uvicorn/protocols/http/httptools_impl.py`` before raising the bound in pyproject.toml.
"""

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.http import connection
from service.http.connection import connection_factory
from service.http.middleware.body_limits import LINGER, BodyLimits
from service.settings import Settings

PATIENCE_S = 30
HEAD_TIMEOUT_S = 0.5
ANSWER = b"x" * 100_000


class TestInternals:
    """The attributes, methods and signatures of uvicorn that are overridden or used."""

    SIGNATURES: ClassVar = {
        "__init__": ["self", "config", "server_state", "app_state", "_loop"],
        "connection_made": ["self", "transport"],
        "connection_lost": ["self", "exc"],
        "on_message_begin": ["self"],
        "on_headers_complete": ["self"],
        "on_response_complete": ["self"],
        "shutdown": ["self"],
    }

    @pytest.mark.parametrize("method", SIGNATURES)
    def test_overridden_methods_have_the_expected_signatures(self, method: str) -> None:
        assert list(inspect.signature(getattr(HttpToolsProtocol, method)).parameters) == self.SIGNATURES[method]

    def test_nothing_else_of_uvicorn_is_overridden_by_accident(self) -> None:
        ours = {"_head_timeout_s", "_discard_buffer", "_head_timer", *vars(connection.Connection)}
        inherited = {*dir(HttpToolsProtocol), *vars(self.protocol())} - {*dir(object), "__module__"}

        assert ours & inherited == self.SIGNATURES.keys() - {"__init__"}

    def test_a_new_connection_has_no_cycle_yet(self) -> None:
        attributes = vars(self.protocol())

        assert attributes["cycle"] is None
        assert attributes["loop"] is not None

    def test_a_connection_keeps_its_transport_and_flow_control(self) -> None:
        protocol, transport = self.protocol(), Transport()
        protocol.connection_made(cast(asyncio.Transport, transport))

        assert protocol.transport is cast(object, transport)
        assert isinstance(protocol.flow, FlowControl)
        assert protocol in protocol.server_state.connections

    def test_the_scope_of_a_request_is_a_new_dictionary_that_may_be_extended(self) -> None:
        protocol = self.protocol()
        protocol.on_message_begin()
        first = protocol.scope
        protocol.on_message_begin()

        assert type(first) is dict
        assert first is not protocol.scope
        assert "extensions" not in first

    def test_flow_control_pauses_and_resumes_the_transport(self) -> None:
        transport = Transport()
        flow = FlowControl(cast(asyncio.Transport, transport))
        flow.pause_reading()
        flow.resume_reading()

        assert transport.called == ["pause_reading", "resume_reading"]

    def test_a_cycle_has_flags_for_completion_and_disconnection(self) -> None:
        parameters = inspect.signature(RequestResponseCycle).parameters
        cycle = cast(Any, RequestResponseCycle)(**dict.fromkeys(parameters))

        assert (cycle.response_complete, cycle.disconnected) == (False, False)

    @staticmethod
    def protocol() -> HttpToolsProtocol:
        config = uvicorn.Config(answer_at_once, log_config=None, lifespan="off", ws="none")
        return HttpToolsProtocol(config, ServerState(), {}, cast(asyncio.AbstractEventLoop, object()))


class Transport:
    """A substitute for a transport that records what is done to it."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        self.called.append("pause_reading")

    def resume_reading(self) -> None:
        self.called.append("resume_reading")


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ANSWER))]})
    await send({"type": "http.response.body", "body": ANSWER})


class Server(uvicorn.Server):
    """A uvicorn server with our connections, on a free port, in a thread."""

    def __init__(self, app: ASGIApp, loop: str) -> None:
        factory = connection_factory(HEAD_TIMEOUT_S)
        super().__init__(
            uvicorn.Config(app, http=factory, loop=loop, lifespan="off", ws="none", log_config=None, access_log=False)
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
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


@pytest.fixture
def loop() -> str:
    """The event loop that the server uses by default."""
    return "auto"


@pytest.fixture
def serve(loop: str) -> Iterator[Callable[[ASGIApp], Server]]:
    """Start a server for an application; it stops at the end of the test."""
    opened = []

    def start(app: ASGIApp) -> Server:
        context = Server(app, loop).running()
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
    def test_a_connection_whose_head_never_arrives_is_closed(
        self, serve: Callable[[ASGIApp], Server], beginning: bytes
    ) -> None:
        with serve(answer_at_once).connect() as client:
            client.sendall(beginning)
            started = time.monotonic()

            assert read_to_end(client) == b""
            assert time.monotonic() - started > HEAD_TIMEOUT_S / 2

    def test_a_trickling_head_does_not_extend_the_timeout(self, serve: Callable[[ASGIApp], Server]) -> None:
        with serve(answer_at_once).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: ")
            client.settimeout(HEAD_TIMEOUT_S / 10)
            until = time.monotonic() + PATIENCE_S
            closed = False
            while not closed and time.monotonic() < until:
                try:
                    client.sendall(b"x")
                    closed = client.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    closed = True

        assert closed

    def test_the_head_of_a_second_request_has_the_timeout_too(self, serve: Callable[[ASGIApp], Server]) -> None:
        with serve(answer_at_once).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(ANSWER):
                received += client.recv(2**16)
            client.sendall(b"GET / HT")

            assert read_to_end(client) == b""

    def test_an_answer_may_take_longer_than_the_timeout(self, serve: Callable[[ASGIApp], Server]) -> None:
        async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(3 * HEAD_TIMEOUT_S)
            await answer_at_once(scope, receive, send)

        with serve(answer_late).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            assert read_to_end(client).endswith(ANSWER)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])  # which differ in how they change a transport's protocol
class TestLingeringClose:
    """An answer that comes while the client is still sending its body."""

    HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"

    @pytest.fixture
    def server(self, serve: Callable[[ASGIApp], Server]) -> Server:
        return serve(BodyLimits(answer_at_once, Settings(), closing=lambda: False))

    def test_the_answer_arrives_completely_although_the_client_keeps_sending(self, server: Server) -> None:
        with server.connect() as client:
            client.sendall(self.HEAD)
            for _ in range(50):
                client.sendall(bytes(100_000))
            received = read_to_end(client)

        assert received.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in received.lower()
        assert received.endswith(ANSWER)

    def test_a_client_that_pauses_is_cut_off(self, server: Server) -> None:
        with server.connect() as client:
            client.sendall(self.HEAD)
            read_to_end(client)
            closed = self.seconds_until_closed(server)

        assert closed < connection.LINGER_PAUSE_S + connection.LINGER_S

    def test_a_client_that_never_stops_is_cut_off(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "LINGER_S", 0.5)
        monkeypatch.setattr(connection, "LINGER_PAUSE_S", 0.2)
        with server.connect() as client:
            client.sendall(self.HEAD)
            until, refused = time.monotonic() + PATIENCE_S, False
            while not refused and time.monotonic() < until:
                try:
                    client.sendall(bytes(1000))
                except OSError:
                    refused = True
                time.sleep(0.01)

        assert refused

    def test_a_client_that_closes_ends_the_lingering(self, server: Server) -> None:
        with server.connect() as client:
            client.sendall(self.HEAD)
            read_to_end(client)

        assert self.seconds_until_closed(server) < connection.LINGER_PAUSE_S

    @staticmethod
    def seconds_until_closed(server: Server) -> float:
        """Wait until the server has forgotten the connection."""
        started = time.monotonic()
        while server.server_state.connections:
            assert time.monotonic() < started + PATIENCE_S
            time.sleep(0.01)
        return time.monotonic() - started

    def test_applications_are_offered_the_extension(self, serve: Callable[[ASGIApp], Server]) -> None:
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
        self, serve: Callable[[ASGIApp], Server]
    ) -> None:
        answered: list[Message] = []

        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            answered.append({})
            await answer_at_once(scope, receive, send)

        server = serve(note)
        with server.connect() as client:
            until = time.monotonic() + PATIENCE_S
            while not server.server_state.connections:
                assert time.monotonic() < until
                time.sleep(0.01)
            server.should_exit = True
            time.sleep(0.3)  # uvicorn looks ten times a second
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            assert read_to_end(client).endswith(ANSWER)


def test_the_connection_is_made_with_uvicorns_own_arguments() -> None:
    factory: Any = connection_factory(HEAD_TIMEOUT_S)
    made = uvicorn.Config(answer_at_once, http=factory, log_config=None)
    made.load()

    assert made.http_protocol_class is factory
