"""All that relies on the insides of uvicorn's HTTP protocol: a timeout for request heads, and lingering close.

Uvicorn offers no option for either, so its httptools protocol is subclassed here and nowhere else. pyproject.toml caps
uvicorn below the next minor release, and ``tests/service/http/test_connection.py`` fails where the attributes and
methods relied on have changed.
"""

import asyncio
import functools
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.middleware.body_limits import LINGER

# How long an idle connection stays open after the server has stopped listening: a request on its way is still answered.
GRACE_S = 1
# How long a client that was answered early may go on sending, and how long it may pause meanwhile.
LINGER_S = 5
PAUSE_S = 1
# Size of the buffer that discarded bytes are read into. It is reused: fresh memory costs more than the copy.
DISCARD_BYTES = 2**16


def connection_factory(head_timeout_s: float) -> Any:
    """The ``http`` argument of ``uvicorn.Config`` that makes uvicorn use ``Connection``.

    Args:
        head_timeout_s: Seconds that a client has to send the head of a request.
    """
    return cast(Any, functools.partial(Connection, head_timeout_s, bytearray(DISCARD_BYTES)))


class Connection(HttpToolsProtocol):
    """Uvicorn's, but a client has `head_s` to send the head of a request, and may send on after an early answer.

    What it sends then is written to `waste`.
    """

    def __init__(self, head_s: float, waste: bytearray, **options: Any) -> None:
        super().__init__(**options)
        self._head_s = head_s
        self._waste = waste
        self._overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is to come."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """The application may ask for what ASGI has no message for."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {LINGER: self._linger}

    def on_response_complete(self) -> None:
        """So is another."""
        super().on_response_complete()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Here it is."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """It will not come."""
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Called when no more connections are accepted."""
        if self._idle:
            self.loop.call_later(GRACE_S, super().shutdown)
        else:
            super().shutdown()

    @property
    def _idle(self) -> bool:
        return bool(getattr(self.cycle, "response_complete", True))  # there is no cycle before the first request

    def _linger(self) -> None:
        """Close the connection as RFC 9112, section 9.6 has it; at once it would be reset, and the answer perhaps lost.

        What still comes does not go through parser and ASGI, which would cost more than all the rest of a refusal.
        """
        self.cycle.disconnected = True  # uvicorn has nothing more to do with it
        if not self.transport.is_closing():
            self.flow.pause_reading()  # uvloop asks what kind of protocol it has when it begins to read
            self.transport.set_protocol(_Discard(self, self._waste))
            self.flow.resume_reading()
            self.transport.write_eof()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._overdue = self.loop.call_later(self._head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if self._idle:
            self.transport.close()


class _Discard(asyncio.BufferedProtocol):
    """What a client still sends, until it closes the connection or pauses, or its time is over: written to `waste`."""

    def __init__(self, connection: Connection, waste: bytearray) -> None:
        self._connection = connection
        self._waste = waste
        self._until = connection.loop.time() + LINGER_S
        self._wait()

    def get_buffer(self, sizehint: int) -> bytearray:
        """See asyncio's documentation."""
        return self._waste

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio's documentation."""
        self._heard = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has closed it, or we have."""
        self._pause.cancel()
        self._connection.connection_lost(exc)

    def _wait(self) -> None:
        self._heard = False
        self._pause = self._connection.loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._heard and self._connection.loop.time() < self._until:
            self._wait()
        else:
            self._connection.transport.abort()
