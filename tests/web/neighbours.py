"""Small servers around the service: an ingress with a prefix, an application elsewhere, a network that loses data."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length"}


@contextmanager
def ingress(port: int, prefix: str, *, strips: bool) -> Iterator[str]:
    """Run a reverse proxy that forwards paths under the prefix to a port of this machine. Yields its address."""

    class Proxy(_Handler):
        def answer(self) -> None:
            if not self.path.startswith(prefix):
                self.reply(404, {}, b"the ingress knows nothing here")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix(prefix) if strips else self.path
            with closing(HTTPConnection("127.0.0.1", port)) as upstream:
                upstream.request(self.command, path or "/", body, dict(self.headers.items()))
                answer = upstream.getresponse()
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in OF_THE_CONNECTION}
                self.reply(answer.status, headers, answer.read())

    with _running(Proxy) as url:
        yield url


@contextmanager
def other_site() -> Iterator[str]:
    """Run a server with an empty page, on another origin than the service. Yields its address."""

    class Site(_Handler):
        def answer(self) -> None:
            self.reply(200, {"Content-Type": "text/html"}, b"<!doctype html><link rel=icon href=data:,>")

    with _running(Site) as url:
        yield url


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        with suppress(ConnectionError):  # the browser has left the page
            self.answer()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def losing_network(port: int, most: int) -> Iterator[str]:
    """Run a relay to a port of this machine that loses what a client sends after ``most`` bytes of a connection.

    Yields its address.
    """

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                back = threading.Thread(target=pass_on, args=(upstream, self.request), daemon=True)
                back.start()
                pass_on(self.request, upstream, most)
                back.join()

    def pass_on(source: socket.socket, target: socket.socket, most: int | None = None) -> None:
        passed = 0
        with suppress(OSError):  # either end has closed the connection
            while data := source.recv(65536):
                target.sendall(data if most is None else data[: max(0, most - passed)])
                passed += len(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True  # browsers keep connections open
    with _serving(server) as url:
        yield url


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url


@contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[str]:
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
