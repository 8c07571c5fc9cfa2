"""What holds for the body of every request, whatever is done with it: how much may come, and for how long."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import Problem
from service.settings import Settings

# The ASGI extension by which a server closes a connection on which the client still sends: a function.
LINGER = "limelight.linger"


class BodyLimits:
    """Pure ASGI middleware, the outermost, so that nothing reads a body but through it.

    Reading raises Problem: `body_too_large` before the first byte where Content-Length says so, else with the byte that
    is one too many; `upload_timeout` where the client falls silent or the request's time is over; `overloaded` where
    what arrives just now would take too much memory. An answer that comes before the whole body has, or while
    `closing()`, is the connection's last; after the former the server lingers, where it can.
    """

    def __init__(self, app: ASGIApp, settings: Settings, closing: Callable[[], bool]) -> None:
        self._app = app
        self._settings = settings
        self._closing = closing
        self._memory = _Memory(max(settings.upload_memory_bytes, settings.max_body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._settings, self._memory)
        linger = scope.get("extensions", {}).get(LINGER)
        lingering = False

        async def send_knowing_the_body(message: Message) -> None:
            nonlocal lingering
            if message["type"] == "http.response.start":
                if body.arriving or self._closing():
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif body.arriving and linger is not None and not message.get("more_body", False):
                lingering = True
                message = {**message, "more_body": True}  # at the end the server would close the connection
            await send(message)

        with contextlib.closing(body):
            await self._app(scope, body.receive, send_knowing_the_body)
        if lingering:
            linger()


class _Memory:
    """Bytes of the bodies that are just arriving, all together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises Problem where there is not so much."""
        if self._taken + size > self._most:
            raise Problem("overloaded", "too much is being uploaded at this moment")
        self._taken += size

    def free(self, size: int) -> None:
        self._taken -= size


class _Body:
    """The body of one request. `arriving`: whether more of it is to come, as far as is known."""

    def __init__(self, receive: Receive, headers: Headers, settings: Settings, memory: _Memory) -> None:
        self._receive = receive
        self._most = settings.max_body_bytes
        self._silence_s = settings.upload_timeout_s
        self._deadline = time.monotonic() + settings.request_timeout_s
        self._memory = memory
        self._received = 0
        self._over = False
        length = headers.get("Content-Length", "")
        self._declared = int(length) if length.isdecimal() else 0
        self.arriving = self._declared > 0 or "Transfer-Encoding" in headers

    async def receive(self) -> Message:
        """The next part of the body, or after its end that the client has gone. See the ASGI specification."""
        if self._over:
            return await self._receive()
        if self._declared > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout(min(self._silence_s, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem("upload_timeout", f"the rest did not come after {self._received} bytes") from error
        size = len(message.get("body", b""))
        self.arriving = message.get("more_body", False)  # nor is anything to come if the client has gone
        if self._received + size > self._most:
            raise self._too_large()
        self._memory.take(size)
        self._received += size
        if not self.arriving:
            self.close()
        return message

    def close(self) -> None:
        """Nothing more comes, or is asked for."""
        if not self._over:
            self._memory.free(self._received)
        self._over, self.arriving = True, False

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"a request may carry {self._most} bytes")
