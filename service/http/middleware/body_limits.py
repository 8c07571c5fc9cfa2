"""Limits on request bodies, whichever route reads them: size, time, and memory of all bodies together."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import Problem
from service.settings import Settings

# The ASGI extension (a function without arguments) that closes a connection on which the client is still sending.
LINGER = "limelight.linger"


class BodyLimits:
    """Pure ASGI middleware that limits what requests may send. It is the outermost, so that every body passes it.

    Reading a body raises ``Problem``: ``body_too_large`` before the first byte if Content-Length exceeds the limit,
    otherwise at the first byte beyond it; ``upload_timeout`` if the client pauses too long or the request's time is
    over; ``overloaded`` if the bodies of all requests would take too much memory. A body takes memory until its request
    has ended, because clips wait for their turn.

    An answer before the end of the body, or while the service is shutting down, closes its connection. In the former
    case the close lingers if the server supports it (``LINGER``).

    Args:
        app: The application.
        settings: The limits.
        closing: Returns whether the service is shutting down.
    """

    def __init__(self, app: ASGIApp, settings: Settings, closing: Callable[[], bool]) -> None:
        self._app = app
        self._settings = settings
        self._closing = closing
        self._budget = _MemoryBudget(max(settings.upload_memory_bytes, settings.max_body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with a limited ``receive``, and close the connection after an early answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._settings, self._budget)
        linger = scope.get("extensions", {}).get(LINGER)
        lingering = False

        async def send_and_close(message: Message) -> None:
            nonlocal lingering
            if message["type"] == "http.response.start":
                if body.arriving or self._closing():
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif body.arriving and linger is not None and not message.get("more_body", False):
                lingering = True
                message = {**message, "more_body": True}  # otherwise the server closes the connection at once
            await send(message)

        with contextlib.closing(body):
            await self._app(scope, body.receive, send_and_close)
        if lingering:
            linger()


class _MemoryBudget:
    """The memory that the bodies of all requests may take together, in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """Reserve memory for a part of a body.

        Raises:
            Problem: The limit would be exceeded (``overloaded``).
        """
        if self._reserved + size > self._limit:
            raise Problem(
                "overloaded", "the requests in progress use all the memory for request bodies; try again later"
            )
        self._reserved += size

    def release(self, size: int) -> None:
        self._reserved -= size


class _Body:
    """The body of one request.

    Attributes:
        arriving: Whether more of the body may arrive, as far as is known.
    """

    def __init__(self, receive: Receive, headers: Headers, settings: Settings, budget: _MemoryBudget) -> None:
        length = headers.get("Content-Length", "")
        self._receive = receive
        self._limit = settings.max_body_bytes
        self._pause_s = settings.upload_timeout_s
        self._deadline = time.monotonic() + settings.request_timeout_s
        self._budget = budget
        self._received = 0
        self._complete = False
        self._declared = int(length) if length.isdecimal() else 0
        self.arriving = self._declared > 0 or "Transfer-Encoding" in headers

    async def receive(self) -> Message:
        """Receive the next part of the body; after its end, wait for the client to disconnect.

        Raises:
            Problem: The body exceeds a limit.
        """
        if self._complete:
            return await self._receive()
        if self._declared > self._limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(min(self._pause_s, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem(
                "upload_timeout",
                f"the request's body did not arrive in time ({self._received} bytes received); try again, or send less",
            ) from error
        size = len(message.get("body", b""))
        self.arriving = message.get("more_body", False)  # absent, hence False, if the client has disconnected
        if self._received + size > self._limit:
            raise self._too_large()
        self._budget.reserve(size)
        self._received += size
        self._complete = not self.arriving
        return message

    def close(self) -> None:
        """Release the memory. Call it once, when the request has ended."""
        self._budget.release(self._received)

    def _too_large(self) -> Problem:
        return Problem(
            "body_too_large", f"the request's body exceeds the limit of {self._limit} bytes; send a smaller one"
        )
