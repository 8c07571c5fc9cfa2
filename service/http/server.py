import logging
import math
import socket
from types import FrameType

import uvicorn

from service.http.app import create_app
from service.http.logs import configure_logging
from service.settings import Settings

logger = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on. One sentence with the remedy."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new connections, answer what was accepted, and return.

    Raises ListenError, BundleError, EngineError or DecodersError where it cannot start.
    """
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    configure_logging(settings.log_level)
    listener = _listen(settings.host, settings.port)
    server = _Server(
        uvicorn.Config(
            create_app(settings, on_failure=give_up),
            lifespan="on",
            ws="none",
            access_log=False,  # `Observe` writes a better line
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 1,
        )
    )
    logger.info("listening", extra={"address": "{}:{}".format(*listener.getsockname()[:2])})
    server.run(sockets=[listener])
    if failures:
        raise failures[0]


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down. Uvicorn's own raises the signal again afterwards; here an orderly shutdown is a success."""
        self.force_exit = self.should_exit  # a second signal does not wait
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise ListenError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose others with --host and --port"
        ) from error
