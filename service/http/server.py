"""The process: it listens, obeys signals, and ends in good order."""

import asyncio
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.app import create_app, reload_model
from service.http.guard import LINGER
from service.http.logs import configure_logging
from service.http.routes import Serving
from service.settings import Settings

# What may still come on idle connections when no new ones are accepted any more is told to go elsewhere.
GRACE_S = 1
# How long a client that was answered early may go on sending, and pause meanwhile.
LINGER_S = 5
PAUSE_S = 1
# What is thrown away at a time: in the processor's cache, and already there, for fresh memory costs more than the copy.
WASTE_BYTES = 2**16
# Beyond what the last request may take; then something hangs.
STOP_S = 15

logger = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on. One sentence with the remedy."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer what was accepted, and return.

    SIGHUP loads the bundle again. Raises ListenError, BundleError, EngineError or DecodersError where it cannot start,
    and SystemExit where the engine dies.
    """
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    configure_logging(settings.log_level)
    listener = _listen(settings.host, settings.port)
    app = create_app(settings, on_failure=give_up)
    server = _Server(
        uvicorn.Config(
            app,
            http=cast(Any, functools.partial(_Connection, settings.upload_timeout_s, bytearray(WASTE_BYTES))),
            lifespan="on",
            ws="none",
            access_log=False,  # `Observe` writes a better line
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nobody asks who the client is
            timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 1,
        ),
        app.state.serving,
    )
    signal.signal(signal.SIGHUP, server.handle_reload)
    _announce(listener, page=settings.ui)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
    if server.engine_died:
        raise SystemExit(1)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self.engine_died = False
        self._serving = serving
        self._listen_until = math.inf
        self._reload_asked = False
        self._reloading: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Look away at once, stop listening later; a second signal does not wait.

        Uvicorn's own raises the signal again in the end; here an orderly end is a success.
        """
        serving = self._serving
        if serving.draining:
            os._exit(1)
        # Nobody sends anything to a service that was not ready, and nobody wants to wait at a terminal.
        delay = serving.settings.drain_delay_s if sig == signal.SIGTERM and serving.ready else 0
        self._listen_until = time.monotonic() + delay
        serving.draining = True

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Load the bundle again, as soon as it has been loaded that is being loaded now."""
        self._reload_asked = True

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn calls ten times a second: whether to stop."""
        pipeline = self._serving.pipeline
        if pipeline is not None and not pipeline.alive:
            logger.critical("the engine has died, and the process ends with it")
            self.engine_died = self.should_exit = True
        elif pipeline is not None and self._reload_asked and (self._reloading is None or self._reloading.done()):
            self._reload_asked = False
            self._reloading = asyncio.create_task(reload_model(self._serving, pipeline))
        self.should_exit |= time.monotonic() >= self._listen_until
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish what was accepted."""
        self._serving.draining = self._serving.closed = True
        watchdog = threading.Timer(self._serving.settings.request_timeout_s + STOP_S, _abandon)
        watchdog.daemon = True
        watchdog.start()
        await super().shutdown(sockets)


class _Connection(HttpToolsProtocol):
    """Uvicorn's, but a client has `head_s` to send the head of a request, and may send on after an early answer.

    What it sends then is written to `waste`.
    """

    def __init__(self, head_s: float, waste: bytearray, **options: Any) -> None:
        super().__init__(**options)
        self._head_s = head_s
        self._waste = waste
        self._overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is to come."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """The application may ask for what ASGI has no message for."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {LINGER: self._linger}

    def on_response_complete(self) -> None:
        """So is another."""
        super().on_response_complete()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Here it is."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """It will not come."""
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Called when no more connections are accepted."""
        if self._idle:
            self.loop.call_later(GRACE_S, super().shutdown)
        else:
            super().shutdown()

    @property
    def _idle(self) -> bool:
        return bool(getattr(self.cycle, "response_complete", True))  # there is no cycle before the first request

    def _linger(self) -> None:
        """Close the connection as RFC 9112, section 9.6 has it; at once it would be reset, and the answer perhaps lost.

        What still comes does not go through parser and ASGI, which would cost more than all the rest of a refusal.
        """
        self.cycle.disconnected = True  # uvicorn has nothing more to do with it
        if not self.transport.is_closing():
            self.flow.pause_reading()  # uvloop asks what kind of protocol it has when it begins to read
            self.transport.set_protocol(_Rest(self, self._waste))
            self.flow.resume_reading()
            self.transport.write_eof()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._overdue = self.loop.call_later(self._head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if self._idle:
            self.transport.close()


class _Rest(asyncio.BufferedProtocol):
    """What a client still sends, until it closes the connection or pauses, or its time is over: written to `waste`."""

    def __init__(self, connection: _Connection, waste: bytearray) -> None:
        self._connection = connection
        self._waste = waste
        self._until = connection.loop.time() + LINGER_S
        self._wait()

    def get_buffer(self, sizehint: int) -> bytearray:
        """See asyncio's documentation."""
        return self._waste

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio's documentation."""
        self._heard = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has closed it, or we have."""
        self._pause.cancel()
        self._connection.connection_lost(exc)

    def _wait(self) -> None:
        self._heard = False
        self._pause = self._connection.loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._heard and self._connection.loop.time() < self._until:
            self._wait()
        else:
            self._connection.transport.abort()


def _abandon() -> None:
    logger.critical("something hangs; the process ends all the same")
    os._exit(1)


def _announce(listener: socket.socket, *, page: bool) -> None:
    """Log the address, and tell whoever sits at the terminal where the page is."""
    host, port = listener.getsockname()[:2]
    facts = {"address": f"{host}:{port}"}
    if page:
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        facts["page"] = f"http://{name}:{port}/"
        if sys.stderr.isatty():
            sys.stderr.write(f"The page: {facts['page']}\n")
    logger.info("listening", extra=facts)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise ListenError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose others with --host and --port"
        ) from error
