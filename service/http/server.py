"""The process: it listens, obeys signals, and ends in good order."""

import asyncio
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

# Beyond what the last request may take; then something hangs.
STOP_S = 15

logger = logging.getLogger(__name__)


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
            http=connection_factory(settings.upload_timeout_s),
            lifespan="on",
            ws="none",
            access_log=False,  # ``AccessLog`` writes a better line
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
            self._reloading = asyncio.create_task(self._serving.reload(pipeline))
        self.should_exit |= time.monotonic() >= self._listen_until
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish what was accepted."""
        self._serving.draining = self._serving.closed = True
        watchdog = threading.Timer(self._serving.settings.request_timeout_s + STOP_S, _abandon)
        watchdog.daemon = True
        watchdog.start()
        await super().shutdown(sockets)


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
