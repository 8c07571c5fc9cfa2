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
# The ASGI extension (a function without arguments) that ``hold_body`` calls.
_HOLD = "limelight.hold_body"
# Seconds of the second look at a client that seems silent.
LOOK_S = 0.2


class BodyLimits:
    """Pure ASGI middleware that limits what requests may send. Place it around all middleware that answers requests.

    Reading a body raises ``Problem``: ``body_too_large`` before the first byte if Content-Length exceeds the limit,
    otherwise at the first byte beyond it; ``upload_timeout`` if the client pauses too long or the request's time is
    over; ``overloaded`` if the bodies of all requests take too much memory and no larger one is arriving. A body takes
    memory until its request has ended, because clips wait for their turn, or longer (``hold_body``).

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
        extensions = scope.setdefault("extensions", {})
        extensions[_HOLD] = body.hold
        linger = extensions.get(LINGER)
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


def hold_body(scope: Scope) -> Callable[[], None]:
    """Keep the memory of a request's body reserved after the request's end, because a thread still uses the body.

    Returns:
        A function that ends this; call it once.
    """
    release: Callable[[], None] = scope["extensions"][_HOLD]()
    return release


class _MemoryBudget:
    """The memory that the bodies of all requests may take together, in bytes.

    If it is used up, the largest body that is still arriving makes room, so that a few slow uploads of large clips do
    not shut everybody else out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bodies: dict[_Body, int] = {}

    def reserve(self, body: "_Body", size: int) -> None:
        """Reserve memory for a part of a body.

        Raises:
            Problem: The limit would be exceeded (``overloaded``).
        """
        reserved = self._bodies.get(body, 0) + size
        while sum(self._bodies.values()) + size > self._limit:
            others = [other for other in self._bodies if other.arriving and other is not body]
            largest = max(others, key=self._bodies.__getitem__, default=body)
            if largest is body or self._bodies[largest] <= reserved:
                raise _out_of_memory()
            del self._bodies[largest]
            largest.give_up()
        self._bodies[body] = reserved

    def release(self, body: "_Body") -> None:
        self._bodies.pop(body, None)


def _out_of_memory() -> Problem:
    return Problem("overloaded", "the requests in progress use all the memory for request bodies; try again later")


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
        self._complete = self._given_up = False
        self._holders = 1  # the request, and those who called ``hold``
        self._pause: asyncio.Timeout | None = None  # while a part is awaited
        self._timer: asyncio.TimerHandle
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
        message = await self._next_message()
        if self._given_up:
            raise _out_of_memory()
        size = len(message.get("body", b""))
        self.arriving = message.get("more_body", False)  # absent, hence False, if the client has disconnected
        if self._received + size > self._limit:
            raise self._too_large()
        self._budget.reserve(self, size)
        self._received += size
        self._complete = not self.arriving
        return message

    async def _next_message(self) -> Message:
        """Wait for a message as long as the client may pause.

        Raises:
            Problem: Nothing arrived in time (``upload_timeout``), or another body needs the memory (``overloaded``).
        """
        try:
            async with asyncio.timeout(None) as self._pause:
                self._watch(self._pause_s, looks=False)
                return await self._receive()
        except TimeoutError as error:
            if self._given_up:
                raise _out_of_memory() from error
            raise Problem(
                "upload_timeout",
                f"the request's body did not arrive in time ({self._received} bytes received); try again, or send less",
            ) from error
        finally:
            self._pause = None
            self._timer.cancel()

    def _watch(self, seconds: float, *, looks: bool) -> None:
        now = time.monotonic()
        wait_s = min(seconds, self._deadline - now)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._check, now, looks)

    def _check(self, begun: float, looks: bool) -> None:
        """End the wait for the client, but look once more before.

        The event loop handles timers before it reads from sockets. If the process stood still, or was very busy, what
        the client has sent meanwhile is read only after this. A look that itself ends late is repeated. After the
        request's time there is no further look, because there would be no answer anyway.
        """
        now = time.monotonic()
        if now < self._deadline and (not looks or now - begun > 2 * LOOK_S):
            self._watch(LOOK_S, looks=True)
        else:
            self._end_pause()

    def _end_pause(self) -> None:
        if self._pause is not None and not self._pause.expired():
            self._pause.reschedule(0)

    def hold(self) -> Callable[[], None]:
        """Keep the memory reserved until the function that is returned is called once."""
        self._holders += 1
        return self.close

    def close(self) -> None:
        """Release the memory unless somebody holds the body. Call it when the request has ended."""
        self._holders -= 1
        if not self._holders:
            self._budget.release(self)

    def give_up(self) -> None:
        """Make ``receive`` raise ``overloaded``, because another body needs the memory."""
        self._given_up = True
        self._end_pause()

    def _too_large(self) -> Problem:
        return Problem(
            "body_too_large", f"the request's body exceeds the limit of {self._limit} bytes; send a smaller one"
        )
