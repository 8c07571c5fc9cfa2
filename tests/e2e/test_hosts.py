"""The check of hosts, with a running server: what a request line says counts more than ``Host``."""

import pytest

from tests.e2e.process import Server
from tests.e2e.raw_client import RawClient


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /model HTTP/1.1\r\nHost: localhost", 200),
        ("GET /model HTTP/1.1\r\nHost: rebound.example", 421),
        ("GET /model HTTP/1.1\r\nHost: ", 421),
        ("GET /model HTTP/1.0", 200),
        ("GET /model HTTP/1.0\r\nHost: rebound.example", 421),
        ("GET /model HTTP/1.0\r\nHost: localhost\r\nHost: rebound.example", 400),
        ("GET http://localhost/model HTTP/1.1\r\nHost: rebound.example", 200),
        ("GET http://rebound.example/model HTTP/1.1\r\nHost: localhost", 421),
        ("GET HTTP://user@rebound.example/model HTTP/1.1\r\nHost: localhost", 421),
        ("GET http:///model HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://rebound.example/model HTTP/1.0", 421),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 9", 403),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: null", 403),
    ],
)
def test_other_hosts_are_refused(server: Server, head: str, status: int) -> None:
    with RawClient(server.port) as client:
        client.send(f"{head}\r\n\r\n".encode())

        assert client.answer().status == status
