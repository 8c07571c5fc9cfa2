"""The server process: listening, signals, and an orderly shutdown."""

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, cast

import uvicorn
from fastapi import FastAPI

from service.http.app import create_app
from service.http.connection import ConnectionLimits, connection_factory
from service.http.listening import Endpoint, Listeners
from service.http.logs import configure_logging
from service.http.serving import Serving
from service.settings import Settings, misplaced
from service.tracing import tracing

# Seconds that shutdown may take beyond the time of the last request; if it takes longer, something hangs.
SHUTDOWN_MARGIN_S = 15
# Seconds for which a thread that computes may keep the interpreter lock while others wait for it. Python's default is
# 5 ms, and answering a clip takes the lock several times: a client that sends tensors would delay all others.
SWITCH_INTERVAL_S = 0.0005

logger = logging.getLogger(__name__)


def serve(settings: Settings, *, hung_up: Callable[[], bool] = lambda: False) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer the accepted requests, and return.

    SIGHUP loads the bundle again, unless the terminal has been closed, which stops the server like SIGINT. A bundle
    that is still being loaded when the server stops is abandoned.

    Args:
        settings: Every setting of the service.
        hung_up: Returns whether the terminal that the server must not outlive has been closed.

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

    log = configure_logging(settings.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_file_limit()
    endpoint = Endpoint(settings.host, settings.port, settings.unix_socket)
    with contextlib.closing(Listeners(endpoint)) as listeners, tracing() as tracer:
        app = create_app(settings, on_failure=stop, tracer=tracer)
        log.on_dropped = app.state.serving.metrics.log_lines_dropped.inc
        server = _Server(_configuration(app, settings), app.state.serving, listeners, hung_up)
        signal.signal(signal.SIGHUP, server.handle_reload)
        for found, remedy in misplaced(os.environ):
            logger.warning("%s; %s", found, remedy)
        logger.info("API keys: %s", settings.authentication, extra={"api_keys": len(settings.api_keys)})
        _announce(listeners, page=settings.ui)
        server.run(sockets=listeners.sockets)
    if failures:
        raise failures[0]
    exit_code = int(server.engine_died)
    if app.state.serving.loading:
        _exit(exit_code)  # the thread may be inside ONNX Runtime, which cannot be interrupted
    if exit_code:
        raise SystemExit(exit_code)


def _configuration(app: FastAPI, settings: Settings) -> uvicorn.Config:
    limits = ConnectionLimits(
        settings.max_connections,
        head_timeout_s=settings.upload_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        linger_s=settings.request_timeout_s,
    )
    return uvicorn.Config(
        app,
        http=connection_factory(limits, app.state.serving.metrics),
        backlog=min(settings.max_connections, 2048),
        timeout_keep_alive=cast(int, settings.keep_alive_s),  # uvicorn only passes it to ``call_later``
        lifespan="on",
        workers=1,  # by default uvicorn parses WEB_CONCURRENCY, which may be empty or meant for another program
        ws="none",
        access_log=False,  # ``AccessLog`` writes a more useful line
        log_config=None,
        server_header=False,
        proxy_headers=False,  # ``TrustedProxies`` reads them
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 1,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, with a delay before it stops listening, reloading, and an end when the engine dies."""

    def __init__(
        self, config: uvicorn.Config, serving: Serving, listeners: Listeners, hung_up: Callable[[], bool]
    ) -> None:
        super().__init__(config)
        self.engine_died = False
        self._serving = serving
        self._listeners = listeners
        self._hung_up = hung_up
        self._stop_listening_at = math.inf  # on the clock of ``time.monotonic()``
        self._reload_requested = False
        self._reloading: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Report "not ready" at once and stop listening later; exit at once on a second signal.

        Uvicorn's own handler raises the signal again at the end, and the process would not exit with 0.
        """
        serving = self._serving
        if serving.draining:
            _exit(1)
        # Gateways send nothing to a service that was not ready, and at a terminal (SIGINT) there is no gateway: neither
        # needs the delay.
        delay = serving.settings.drain_delay_s if sig == signal.SIGTERM and serving.ready else 0
        self._stop_listening_at = time.monotonic() + delay
        serving.draining = True

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Load the bundle again, after a reload that is already running; stop if the terminal has been closed."""
        if not self._hung_up():
            self._reload_requested = True
        elif not self._serving.draining:  # the shell and the kernel may both send the signal
            self.handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Start a requested reload, and return whether to shut down. Uvicorn calls this ten times a second."""
        pipeline = self._serving.pipeline
        if pipeline is not None and not pipeline.alive:
            logger.critical("the engine died; shutting down")
            self.engine_died = self.should_exit = True
        elif pipeline is not None and self._may_reload:
            self._reload_requested = False
            self._reloading = asyncio.create_task(self._serving.reload(pipeline))
        self.should_exit |= time.monotonic() >= self._stop_listening_at
        return await super().on_tick(counter)

    @property
    def _may_reload(self) -> bool:
        idle = self._reloading is None or self._reloading.done()
        return self._reload_requested and idle and not self._serving.draining

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and answer the accepted requests; end the process if that takes too long."""
        self._serving.draining = self._serving.closed = True
        self._listeners.remove_file()
        watchdog = threading.Timer(self._serving.settings.request_timeout_s + SHUTDOWN_MARGIN_S, _exit_hung)
        watchdog.daemon = True
        watchdog.start()
        await super().shutdown(sockets)


def _exit_hung() -> None:
    logger.critical("shutdown did not finish in time; exiting without it")
    _exit(1)


def _exit(code: int) -> NoReturn:
    """End the process without waiting for its threads, but with its log written as far as somebody reads it."""
    logging.shutdown()
    os._exit(code)


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit: it is low by default for programs that use ``select``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(listeners: Listeners, *, page: bool) -> None:
    """Log each of the server's addresses; on a terminal, also print the page's URL."""
    for address in listeners.addresses:
        facts = {"address": address}
        if page and not address.startswith("unix:"):
            host, _, port = address.rpartition(":")
            name = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104
            facts["page"] = f"http://{name}:{port}/"
        logger.info("listening", extra=facts)
    if "page" in facts and sys.stderr.isatty():
        text = f"Open {facts['page']} in a browser\n".encode()
        threading.Thread(target=os.write, args=(sys.stderr.fileno(), text), daemon=True).start()  # it may be stopped
