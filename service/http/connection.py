"""HTTP connections: uvicorn's httptools protocol with a timeout for request heads and a lingering close.

Uvicorn has no option for either: its keep-alive timeout starts only after an answer and ends with the first byte of the
next request. So its protocol is subclassed, here and nowhere else. pyproject.toml caps uvicorn below the next minor
release, and ``tests/service/http/test_connection.py`` fails if the internals used here change.
"""

import asyncio
import functools
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.middleware.body_limits import LINGER

# Seconds that an idle connection stays open after the server has stopped listening, so that a request which is already
# on its way is still answered.
IDLE_GRACE_S = 1
# Seconds for which a client may keep sending after an early answer, and for which it may pause.
LINGER_S = 5
LINGER_PAUSE_S = 1
# Size of the buffer that discarded bytes are read into. All connections share it, because allocating a buffer for each
# read costs more than copying into this one.
DISCARD_BYTES = 2**16


def connection_factory(head_timeout_s: float) -> Any:
    """Return the ``http`` argument of ``uvicorn.Config`` that makes uvicorn use ``Connection``.

    Args:
        head_timeout_s: Seconds that a client has to send the head of a request.
    """
    return cast(Any, functools.partial(Connection, head_timeout_s, bytearray(DISCARD_BYTES)))


class Connection(HttpToolsProtocol):
    """A connection that times out if a request head does not arrive, and that lingers after an early answer.

    Args:
        head_timeout_s: Seconds that a client has to send the head of a request.
        discard_buffer: Where bytes that arrive after an early answer are written and ignored.
        options: The arguments of uvicorn's protocol.
    """

    def __init__(self, head_timeout_s: float, discard_buffer: bytearray, **options: Any) -> None:
        super().__init__(**options)
        self._head_timeout_s = head_timeout_s
        self._discard_buffer = discard_buffer
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head timeout of the first request."""
        super().connection_made(transport)
        self._start_head_timer()

    def on_message_begin(self) -> None:
        """Offer the application a lingering close as an ASGI extension."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {LINGER: self._linger}

    def on_headers_complete(self) -> None:
        """Cancel the head timeout: the head is complete."""
        self._cancel_head_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Start the head timeout of the next request."""
        super().on_response_complete()
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the head timeout: the connection is gone."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection when the server stops listening: after a grace period if idle, else after the answer."""
        if self._idle:
            self.loop.call_later(IDLE_GRACE_S, super().shutdown)
        else:
            super().shutdown()

    @property
    def _idle(self) -> bool:
        return bool(getattr(self.cycle, "response_complete", True))  # the cycle is None before the first request

    def _linger(self) -> None:
        """Close the sending side now and the connection later, as RFC 9112, section 9.6 describes.

        Closing both at once would reset the connection, and the client might lose the answer. What it still sends
        bypasses parser and application, which would cost more than the rest of the refusal.
        """
        self.cycle.disconnected = True  # uvicorn does nothing more with this request
        if not self.transport.is_closing():
            self.flow.pause_reading()  # uvloop looks at the type of its protocol only when reading starts
            self.transport.set_protocol(_Discard(self, self._discard_buffer))
            self.flow.resume_reading()
            self.transport.write_eof()

    def _start_head_timer(self) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._close_if_idle)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_idle(self) -> None:
        if self._idle:
            self.transport.close()


class _Discard(asyncio.BufferedProtocol):
    """Reads and ignores what a client still sends, until it closes the connection, pauses, or exceeds ``LINGER_S``."""

    def __init__(self, connection: Connection, buffer: bytearray) -> None:
        self._connection = connection
        self._buffer = buffer
        self._deadline = connection.loop.time() + LINGER_S
        self._start_pause_timer()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the buffer that asyncio reads into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Note that the client has sent something."""
        self._received = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell uvicorn's protocol that the connection is gone."""
        self._pause_timer.cancel()
        self._connection.connection_lost(exc)

    def _start_pause_timer(self) -> None:
        self._received = False
        self._pause_timer = self._connection.loop.call_later(LINGER_PAUSE_S, self._abort_if_over)

    def _abort_if_over(self) -> None:
        if self._received and self._connection.loop.time() < self._deadline:
            self._start_pause_timer()
        else:
            self._connection.transport.abort()
