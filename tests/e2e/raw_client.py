"""An HTTP client that does what no library lets one do: stall, go away, keep on sending."""

import json
import socket
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Self

from tests.e2e.process import PATIENCE_S


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """Of the problem, if it is one."""
        code: str | None = json.loads(self.body).get("code")
        return code


class RawClient:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def post(self, *headers: str, path: str = "/predict", body: bytes = b"") -> None:
        """Send the head of a request, and as much of its body as there is here."""
        self.send("\r\n".join([f"POST {path} HTTP/1.1", "Host: limelight", *headers, "", ""]).encode() + body)

    def answer(self) -> Answer:
        """Wait for an answer, and read all of it."""
        response = HTTPResponse(self._socket, method="POST")
        response.begin()
        return Answer(response.status, dict(response.headers.items()), response.read())

    def is_closed(self) -> bool:
        """Wait for the server to say something more; True where it closes the connection instead."""
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
