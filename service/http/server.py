"""The server process: listening, signals, and an orderly shutdown."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from service.errors import ListenError
from service.http.app import create_app
from service.http.connection import connection_factory
from service.http.logs import configure_logging
from service.http.serving import Serving
from service.settings import Settings
from service.tracing import tracing

# Seconds that shutdown may take beyond the time of the last request; if it takes longer, something hangs.
SHUTDOWN_MARGIN_S = 15

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer the accepted requests, and return.

    SIGHUP loads the bundle again.

    Raises:
        ListenError: The server cannot listen on its address.
        BundleError: The bundle is missing, damaged or of another schema.
        EngineError: The network cannot run as configured.
        DecodersError: The decoder processes cannot be started.
        SystemExit: The engine died.
    """
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    configure_logging(settings.log_level)
    listener = _listen(settings.host, settings.port)
    running = contextlib.ExitStack()
    app = create_app(settings, on_failure=stop, tracer=running.enter_context(tracing()))
    server = _Server(
        uvicorn.Config(
            app,
            http=connection_factory(settings.upload_timeout_s),
            lifespan="on",
            ws="none",
            access_log=False,  # ``AccessLog`` writes a more useful line
            log_config=None,
            server_header=False,
            proxy_headers=False,  # ``TrustedProxies`` knows whom to believe
            timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 1,
        ),
        app.state.serving,
    )
    signal.signal(signal.SIGHUP, server.handle_reload)
    _announce(listener, page=settings.ui)
    with running:
        server.run(sockets=[listener])
    if failures:
        raise failures[0]
    if server.engine_died:
        raise SystemExit(1)


class _Server(uvicorn.Server):
    """Uvicorn's server, with a delay before it stops listening, reloading, and an end when the engine dies."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self.engine_died = False
        self._serving = serving
        self._stop_listening_at = math.inf  # on the clock of ``time.monotonic()``
        self._reload_requested = False
        self._reloading: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Report "not ready" at once and stop listening later; exit at once on a second signal.

        Uvicorn's own handler raises the signal again at the end, and the process would not exit with 0.
        """
        serving = self._serving
        if serving.draining:
            os._exit(1)
        # Gateways send nothing to a service that was not ready, and at a terminal (SIGINT) there is no gateway: neither
        # needs the delay.
        delay = serving.settings.drain_delay_s if sig == signal.SIGTERM and serving.ready else 0
        self._stop_listening_at = time.monotonic() + delay
        serving.draining = True

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Load the bundle again, after a reload that is already running."""
        self._reload_requested = True

    async def on_tick(self, counter: int) -> bool:
        """Start a requested reload, and return whether to shut down. Uvicorn calls this ten times a second."""
        pipeline = self._serving.pipeline
        if pipeline is not None and not pipeline.alive:
            logger.critical("the engine died; shutting down")
            self.engine_died = self.should_exit = True
        elif pipeline is not None and self._reload_requested and (self._reloading is None or self._reloading.done()):
            self._reload_requested = False
            self._reloading = asyncio.create_task(self._serving.reload(pipeline))
        self.should_exit |= time.monotonic() >= self._stop_listening_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and answer the accepted requests; end the process if that takes too long."""
        self._serving.draining = self._serving.closed = True
        watchdog = threading.Timer(self._serving.settings.request_timeout_s + SHUTDOWN_MARGIN_S, _exit_hung)
        watchdog.daemon = True
        watchdog.start()
        await super().shutdown(sockets)


def _exit_hung() -> None:
    logger.critical("shutdown did not finish in time; exiting without it")
    os._exit(1)


def _announce(listener: socket.socket, *, page: bool) -> None:
    """Log the server's address; on a terminal, also print the page's URL."""
    host, port = listener.getsockname()[:2]
    facts = {"address": f"{host}:{port}"}
    if page:
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        facts["page"] = f"http://{name}:{port}/"
        if sys.stderr.isatty():
            sys.stderr.write(f"Open {facts['page']} in a browser\n")
    logger.info("listening", extra=facts)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another address with --host and --port"
        ) from error
