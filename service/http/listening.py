"""Where the service listens: every address of a host, or a Unix socket.

The image's health check imports this module every few seconds, so it imports nothing large.
"""

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from service.errors import ListenError

# Every user who may enter the folder may connect to the Unix socket, because gateways run as other users. Uvicorn and
# nginx use the same mode.
SOCKET_MODE = 0o666
# For port 0: a port that is free on a host's first address may be in use on another one.
PORT_ATTEMPTS = 10
# What the kernel keeps of answers that a client has not read; by default it would keep megabytes a connection.
SEND_BUFFER_BYTES = 2**18
# What binding an IPv6 address fails with where IPv6 is missing or turned off.
NOT_AVAILABLE = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class Endpoint(NamedTuple):
    """Where the service listens.

    Attributes:
        host: A name or an address. ``0.0.0.0`` is every IPv4 address of the machine, ``::`` every address.
        port: The port; 0 for a free one.
        unix_socket: Path of the Unix socket to listen on instead, if any.
    """

    host: str
    port: int
    unix_socket: str | os.PathLike[str] | None = None

    def __str__(self) -> str:
        return f"unix:{self.unix_socket}" if self.unix_socket else _with_port(self.host, self.port)

    def places(self) -> list[tuple[socket.AddressFamily, Any]]:
        """Return the family and address of each socket to bind, or to connect to.

        Raises:
            OSError: The host is not known.
            ValueError: The host cannot be the name of one.
        """
        if self.unix_socket:
            return [(socket.AF_UNIX, os.fspath(self.unix_socket))]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        places = dict.fromkeys((family, address) for family, _, _, _, address in found)  # /etc/hosts may repeat a name
        if any(address[0] == "::" for _, address in places):
            places[socket.AF_INET, ("0.0.0.0", self.port)] = None  # noqa: S104 - what `::` means to operators
        return list(places)


class Listeners:
    """The sockets that the server listens on. Creating it starts to listen.

    A Unix socket that a killed server left behind is replaced, one on which a server listens is not.

    Args:
        endpoint: Where to listen. Addresses of a family that the machine lacks are skipped if another one works.

    Raises:
        ListenError: The server cannot listen there.

    Attributes:
        sockets: The sockets.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._file: tuple[Path, os.stat_result] | None = None
        try:
            self.sockets = _listen(endpoint)
            if endpoint.unix_socket:
                path = Path(endpoint.unix_socket)
                path.chmod(SOCKET_MODE)
                self._file = path, path.stat()
        except (OSError, ValueError) as error:
            host_and_port = "--host and --port (LIMELIGHT_HOST, LIMELIGHT_PORT)"
            options = "--unix-socket (LIMELIGHT_UNIX_SOCKET)" if endpoint.unix_socket else host_and_port
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise ListenError(
                f"cannot listen on {endpoint} ({reason}); choose another address with {options}"
            ) from error

    @property
    def addresses(self) -> list[str]:
        """Each socket's address as text, such as ``127.0.0.1:8000``, ``[::1]:8000`` or ``unix:/run/limelight.sock``."""
        return [_address(listener) for listener in self.sockets]

    def remove_file(self) -> None:
        """Remove the Unix socket's file, unless another server has replaced it. Call it before closing the sockets.

        As long as the socket is open, no other file can have its inode.
        """
        if self._file is not None:
            path, ours = self._file
            self._file = None
            with contextlib.suppress(OSError):
                if os.path.samestat(path.stat(), ours):
                    path.unlink()

    def close(self) -> None:
        """Stop listening."""
        self.remove_file()
        for listener in self.sockets:
            listener.close()


def _listen(endpoint: Endpoint) -> list[socket.socket]:
    attempts = 1 if endpoint.port else PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _listen_once(endpoint)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _listen_once(endpoint: Endpoint) -> list[socket.socket]:
    """Listen at each place of the endpoint, on the same port."""
    listeners: list[socket.socket] = []
    unavailable: OSError | None = None
    with contextlib.ExitStack() as opened:
        for family, place in endpoint.places():
            if family == socket.AF_UNIX:
                _remove_stale_socket(Path(place))
            address = (place[0], listeners[0].getsockname()[1], *place[2:]) if listeners else place
            try:
                listener = socket.create_server(address, family=family)
            except OSError as error:
                if error.errno not in NOT_AVAILABLE:
                    raise
                unavailable = error
            else:
                listeners.append(opened.enter_context(listener))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
        if not listeners and unavailable:
            raise unavailable
        opened.pop_all()
    return listeners


def _remove_stale_socket(path: Path) -> None:
    """Remove a Unix socket on which nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a server whose backlog is full would keep the probe waiting
        if probe.connect_ex(str(path)) == errno.ECONNREFUSED and path.is_socket():
            path.unlink()


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return _with_port(host, port)


def _with_port(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
