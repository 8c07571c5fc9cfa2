"""An HTTP client that can stall, disconnect, or keep sending after the answer, which libraries do not allow."""

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Self

from model_export.rendering.figure import render_clip
from tests.e2e.process import PATIENCE_S, Server
from tests.processes import decoders, until


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The problem's code, if the answer is a problem."""
        code: str | None = json.loads(self.body).get("code")
        return code


class RawClient:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def post(self, *headers: str, path: str = "/predict", body: bytes = b"") -> None:
        """Send the head of a request and the given part of its body."""
        self.send("\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body)

    def answer(self, method: str = "POST") -> Answer:
        """Wait for the answer to a request, and read all of it."""
        response = HTTPResponse(self._socket, method=method)
        response.begin()
        return Answer(response.status, dict(response.headers.items()), response.read())

    def is_answered(self) -> bool:
        """Return whether the beginning of an answer has arrived."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def receive(self, size: int = 12) -> bytes:
        """Wait for ``size`` bytes; by default an answer's HTTP version and status."""
        return self._socket.recv(size, socket.MSG_WAITALL)

    def is_closed(self) -> bool:
        """Wait until the server sends a byte or closes the connection; return whether it closed it."""
        try:
            return not self._socket.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def stopped_decoder(server: Server, *headers: str) -> Iterator[None]:
    """Keep the decoder of a client that sends these headers stopped until the block ends; it then disconnects."""
    clip = render_clip(frames=40, width=1280, height=720).data

    def stop_a_decoder() -> bool:
        for pid in decoders(server.process.pid):
            os.kill(pid, signal.SIGSTOP)
            return True
        return False

    with RawClient(server.port) as client:
        client.post(f"Content-Length: {len(clip)}", *headers, body=clip)
        until(stop_a_decoder)
        yield
