"""Stand-ins for replicas, and for Docker's name server that tells the gateway which replicas there are."""

import json
import secrets
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NXDOMAIN = 3
DOCKERS_TTL_S = 600


class Replica(ThreadingHTTPServer):
    """Answers as the service does, as far as the gateway can tell the difference.

    Attributes:
        ready: Whether ``/health/ready`` answers 200 instead of 503, as do all other requests but predictions.
        running: Cleared while the replica accepts connections and answers nothing, as a paused container does.
        busy_s: How long every answer takes, in seconds, as on a machine with too much to do.
        prediction_s: How much longer a prediction takes, in seconds.
        requests: Method, path and headers of each request, in order; headers as they came, also the same one twice.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), _Handler)
        self.ready = True
        self.running = threading.Event()
        self.running.set()
        self.busy_s = 0.0
        self.prediction_s = 0.0
        self.requests: list[tuple[str, str, Message]] = []

    @property
    def address(self) -> str:
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the gateway closes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def do_GET(self) -> None:
        self._seen()
        unready = self.path != "/health/live" and not self.server.ready
        self._answer(503 if unready else 404 if self.path == "/nothing" else 200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._seen()
        if not self.path.endswith(("/predict", "/infer")):
            return self._answer(405)  # like the service, before it reads the body
        received = self._read()
        time.sleep(self.server.prediction_s)
        return self._answer(200, received=received)

    def _seen(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers))
        self.server.running.wait()
        time.sleep(self.server.busy_s)

    def _read(self) -> int:
        if "Content-Length" in self.headers:
            return len(self.rfile.read(int(self.headers["Content-Length"])))
        received = 0
        while size := int(self.rfile.readline(), 16):
            received += len(self.rfile.read(size + 2)) - 2
        self.rfile.readline()
        return received

    def _answer(self, status: int, **content: object) -> None:
        body = json.dumps({"replica": self.server.address, **content}).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output short."""


class NameServer(socketserver.ThreadingUDPServer):
    """Answers each question for ``limelight`` with the addresses of the replicas, or that the name does not exist."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Question)
        self.addresses: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Question(socketserver.BaseRequestHandler):
    server: NameServer

    def handle(self) -> None:
        query, client = self.request
        end = query.index(b"\0", 12) + 5  # the name ends with an empty label; type and class follow
        known = query[12:end].startswith(b"\x09limelight\0") and self.server.addresses
        addresses = self.server.addresses if known else []
        head = query[:2] + struct.pack("!HHHHH", 0x8180 | (0 if known else NXDOMAIN), 1, len(addresses), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, DOCKERS_TTL_S, 4)  # the name of the question, A, Internet
        records = b"".join(record + socket.inet_aton(address) for address in addresses)
        client.sendto(head + query[12:end] + records, self.client_address)


class Fleet:
    """Replicas that all listen on ``port``, each on a loopback address of its own."""

    def __init__(self, names: NameServer, stack: ExitStack) -> None:
        with socket.create_server(("", 0)) as probe:  # a port that is free on every address
            self.port: int = probe.getsockname()[1]
        self.names = names
        self.replicas: list[Replica] = []
        self._stack = stack
        self._network = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}"

    def add(self, *, ready: bool = True) -> Replica:
        """Start a replica, and let the name server know it."""
        replica = Replica(f"{self._network}.{len(self.replicas) + 1}", self.port)
        replica.ready = ready
        self._stack.enter_context(_serving(replica))
        self.replicas.append(replica)
        self._name_replicas()
        return replica

    def remove(self, replica: Replica) -> None:
        """End a replica as Docker does: it stops listening, and its name is gone a little later."""
        replica.shutdown()
        replica.server_close()
        self.replicas.remove(replica)
        self._name_replicas()

    def _name_replicas(self) -> None:
        self.names.addresses = [str(one.server_address[0]) for one in self.replicas]


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        if isinstance(server, Replica):
            server.running.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def fleet(replicas: int) -> Iterator[Fleet]:
    """Run replicas, and a name server that knows them, for the block."""
    with ExitStack() as stack:
        names = NameServer()
        stack.enter_context(_serving(names))
        made = Fleet(names, stack)
        for _ in range(replicas):
            made.add()
        yield made
