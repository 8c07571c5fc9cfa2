"""HTTP connections: uvicorn's h11 protocol with bounds on what a client may send, leave unread and hold open.

h11 is a strict parser that handles one request of a connection at a time. Uvicorn's faster parser, httptools, buffers
heads, trailers and pipelined requests without a bound.

Uvicorn has no option for these bounds. So its protocol is subclassed, here and nowhere else. pyproject.toml caps
uvicorn below the next minor release, and ``tests/service/http/test_connection.py`` fails if the internals used here
change.
"""

import asyncio
import functools
import http
import itertools
import logging
import re
import socket
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service.http.middleware.body_limits import LINGER
from service.http.problems import Problem, problem_response
from service.metrics import Metrics

# Bounds of a request's head: its size in bytes, and its lines after the first. The trailers of a chunked body have the
# same bound in bytes.
MAX_HEAD_BYTES = 2**15
MAX_HEADERS = 100
# Size that the chunks of a body must have on average, and the number of bytes by which those of one body may fall short
# of it altogether. Parsing a megabyte that consists of tiny chunks would take a second.
MIN_CHUNK_BYTES = 64
MAX_SHORTFALL_BYTES = 2**18
# What a client must read of an answer within ``ConnectionLimits.send_timeout_s``, unless less is left. A limit on
# silence alone would let a client hold a connection for as long as it likes by reading single bytes.
MIN_READ_BYTES = 4096
# Seconds that an idle connection stays open after the server has stopped listening, so that a request which is already
# on its way is still answered.
IDLE_GRACE_S = 1
# Seconds for which the event loop looks once more at a client whose time is over.
LAST_LOOK_S = 0.1
# How each answer begins. The bytes are sent early, one by one, to a client that has ended its sending side: those of a
# client that is gone are answered with a reset. The first pause between two of them in seconds; each is twice as long
# as the one before.
BEGINNING = b"HTTP/1.1 "
PROBE_PAUSE_S = 0.2
# Size of the pieces that h11 gets. It copies them, and a megabyte takes ten times as long in pieces of more than 128
# KiB, for which the C library asks the kernel for memory each time.
PIECE_BYTES = 2**16
# Size of the buffer that discarded bytes are read into. All connections share it, because allocating a buffer for each
# read costs more than copying into this one.
DISCARD_BYTES = 2**16

_RESET = struct.pack("ii", 1, 0)  # the value of SO_LINGER that makes ``close`` discard what has not been sent
_BLANK_LINE = re.compile(rb"\n\r?\n")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_ORIGIN = re.compile(rb"https?://([^/?]*)", re.IGNORECASE)

logger = logging.getLogger(__name__)


class Lingering(NamedTuple):
    """What a client may still send after an early answer.

    Attributes:
        seconds: For how long.
        pause_s: Seconds for which it may pause.
        most_bytes: How much.
    """

    seconds: float
    pause_s: float = 5
    most_bytes: int = 2**30


# A client that sends no valid request gets little. One that has begun to send a clip gets the time in which it could
# have sent it (``ConnectionLimits.linger_s``), because many clients read only when they have sent everything.
AFTER_REFUSAL = Lingering(seconds=5, pause_s=1, most_bytes=2**18)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        connections: Number of open connections. When it is reached, a new one takes the place of one whose client does
            not read, else of an idle one, else of one that is uploading: of that which has been so for the longest
            time. If there is none, the new one is answered 503.
        head_timeout_s: Seconds that a client has to send the head of a request.
        send_timeout_s: Seconds in which a client has to read ``MIN_READ_BYTES`` of its answer.
        linger_s: Seconds for which a client that is sending a body may go on after an early answer.
    """

    connections: int
    head_timeout_s: float
    send_timeout_s: float
    linger_s: float


def connection_factory(limits: ConnectionLimits, metrics: Metrics) -> Any:
    """Return the ``http`` argument of ``uvicorn.Config`` that makes uvicorn use ``Connection``."""
    return cast(Any, functools.partial(Connection, _Shared(limits, metrics)))


@dataclass
class _Shared:
    """What all connections of a server share.

    Attributes:
        limits: The limits of all connections.
        metrics: Where connections are counted.
        silent: The connections whose client has not read all of its answers, the longest first.
        idle: The connections without a request in progress, the longest first.
        uploading: The connections on which a request's body is arriving, the longest first.
        lingering: The connections that are answered and only linger, the longest first.
        discarded: Where bytes that arrive after an early answer are written and ignored.
    """

    limits: ConnectionLimits
    metrics: Metrics
    silent: dict["Connection", None] = field(default_factory=dict)
    idle: dict["Connection", None] = field(default_factory=dict)
    uploading: dict["Connection", None] = field(default_factory=dict)
    lingering: dict["Connection", None] = field(default_factory=dict)
    discarded: bytearray = field(default_factory=lambda: bytearray(DISCARD_BYTES))


class Connection(H11Protocol):
    """A connection that refuses oversized heads, does not wait for silent clients, and lingers after an early answer.

    Args:
        shared: What it shares with the server's other connections.
        options: The arguments of uvicorn's protocol.
    """

    def __init__(self, shared: _Shared, **options: Any) -> None:
        super().__init__(**options)
        self.conn: _Parser = _Parser(h11.SERVER, MAX_HEAD_BYTES)
        self._shared = shared
        self._limits = shared.limits
        self._head_timer: _Timeout | None = None
        self._reader_timer: _Timeout | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._ended = False  # whether the client has ended its sending side
        self._stopping = False  # whether the server has stopped listening
        self._discard: _Discard | None = None  # which reads while the connection lingers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection or refuse it; start the head timeout of the first request."""
        super().connection_made(transport)
        self._shared.metrics.connections.inc()
        transport.set_write_buffer_limits(0)  # so that ``pause_writing`` tells whether anything is unread
        if self._has_place():
            self._start_head_timer()
            self._shared.idle[self] = None
        else:
            self._refuse_for_lack_of_place()

    def _has_place(self) -> bool:
        """Make room for this connection if there are too many. Return whether it may stay."""
        shared, limit = self._shared, self._limits.connections
        if len(self.connections) > 2 * limit:
            _cut_first(shared.lingering)
        if len(self.connections) - len(shared.lingering) <= limit or _cut_first(shared.silent, shared.idle):
            return True
        slowest = next(iter(shared.uploading), None)
        if slowest is not None:
            slowest._refuse_for_lack_of_place()
        return slowest is not None

    def _refuse_for_lack_of_place(self) -> None:
        lingering = self._after_upload if self in self._shared.uploading else AFTER_REFUSAL
        self._refuse("too_many_connections", "all connections of this server are in use; try again later", lingering)

    def data_received(self, data: bytes) -> None:
        """Parse what arrives, and start or cancel the head timeout accordingly."""
        for start in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():  # the client reset the connection before it was refused
                return
            # What follows the last request of a connection is ignored (RFC 9112, section 9.6).
            if self not in self._shared.lingering and self.conn.their_state is not h11.MUST_CLOSE:
                super().data_received(data[start : start + PIECE_BYTES])
        self._follow()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Note that the client sends nothing more. Return whether the connection stays open, to answer a request."""
        self._ended = True
        return self._answers_after_end()

    def handle_events(self) -> None:
        """Handle the parser's events, and offer the application a lingering close as an ASGI extension."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            linger = functools.partial(self._linger, self.cycle, self._after_upload)
            cast(dict[str, Any], self.cycle.scope)["extensions"] = {LINGER: linger}  # its task has not begun

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed."""
        self._refuse(*self.conn.problem)

    def on_response_complete(self) -> None:
        """Note that the connection is idle, unless the next request has arrived already."""
        self._shared.idle[self] = None
        super().on_response_complete()
        if self._ended and not self.transport.is_closing() and not self._answers_after_end():
            self.transport.close()
        self._follow()

    def timeout_keep_alive_handler(self) -> None:
        """Close the idle connection, unless the next request arrives at the last moment."""
        self.timeout_keep_alive_task = self.loop.call_later(LAST_LOOK_S, super().timeout_keep_alive_handler)

    def _should_upgrade(self) -> bool:
        return False  # the request is answered as if it did not ask for an upgrade (RFC 9110, section 7.8)

    def pause_writing(self) -> None:
        """Start to watch whether the client reads: a part of its answer is unread."""
        super().pause_writing()
        self._shared.silent[self] = None
        self._watch_reader()

    def resume_writing(self) -> None:
        """Stop watching: the client has read everything."""
        super().resume_writing()
        self._cancel_reader_timer()
        self._shared.silent.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeouts: the connection is gone."""
        self._cancel_head_timer()
        self._cancel_reader_timer()
        self._cancel_probe_timer()
        self._unset_keepalive_if_required()  # which uvicorn does not do if the client has reset the connection
        self._leave_groups()
        self._shared.lingering.pop(self, None)
        self._shared.metrics.connections.dec()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection when the server stops listening: after a grace period if idle, else after the answer."""
        self._stopping = True
        if self._discard is not None:
            self._discard.hurry()
        elif self._idle:
            _Timeout(self.loop, IDLE_GRACE_S, self._shut_down_if_idle)
        else:
            self._shut_down_if_idle()

    def _shut_down_if_idle(self) -> None:
        if self._idle:
            self.transport.close()  # once the client has read the last answer
        else:
            self.cycle.keep_alive = False

    @property
    def _idle(self) -> bool:
        return bool(getattr(self.cycle, "response_complete", True))  # the cycle is None before the first request

    def _follow(self) -> None:
        """Keep the head timeout and the groups of connections up to date."""
        if not self._idle and self.cycle.more_body:
            self._shared.uploading.setdefault(self, None)
        else:
            self._shared.uploading.pop(self, None)
        if not self._idle:
            self._cancel_head_timer()
            self._shared.idle.pop(self, None)
        elif self._head_timer is None and (self.conn.trailing_data[0] or self.timeout_keep_alive_task is None):
            self._start_head_timer()

    def _answers_after_end(self) -> bool:
        """Return whether a complete request is being answered; refuse one that the client has left incomplete."""
        if not self._idle and not self.cycle.more_body:
            self.cycle.waiting_for_100_continue = False
            if self._probe_timer is None:
                self._probe(PROBE_PAUSE_S)
            return True
        incomplete = self.conn.trailing_data[0].strip() if self._idle else not self.cycle.response_started
        if incomplete:
            detail = "the connection ended before the request did; send all of the request"
            self._write_problem(Problem("bad_request", detail), uuid.uuid4().hex)
            _abandon(self.cycle)
        return False

    def _probe(self, pause_s: float) -> None:
        """Send the next byte of the answer's beginning, which fails if the client has reset the connection.

        A client that has closed its connection and one that only sends nothing more look the same until something is
        sent to them. The former's work is then cancelled, the latter waits for its answer.
        """
        self._cancel_probe_timer()
        sent = self.conn.sent_early
        if not self._idle and not self.cycle.response_started and sent < len(BEGINNING):
            self.transport.write(BEGINNING[sent : sent + 1])
            self.conn.sent_early += 1
            self._probe_timer = self.loop.call_later(pause_s, self._probe, 2 * pause_s)

    def cut(self) -> None:
        """Close the connection at once, whether or not the client has read everything."""
        if self.transport.get_write_buffer_size():
            # The client loses a part of its answer anyway; the kernel need not keep the rest for it.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _refuse(self, code: str, detail: str, lingering: Lingering = AFTER_REFUSAL) -> None:
        """Answer with a problem instead of the application, and close the connection."""
        request_id = uuid.uuid4().hex
        self._count(code)
        client = self.client[0] if self.client else None
        logger.info("connection refused", extra={"request_id": request_id, "client": client, "code": code})
        answering = not self._idle and self.cycle.response_started  # while the client is sending a malformed body
        if answering:
            self.transport.abort()
            return
        self._write_problem(Problem(code, detail), request_id)
        self._linger(self.cycle, lingering)

    def _write_problem(self, problem: Problem, request_id: str) -> None:
        response = problem_response(problem, request_id, self.conn.path)
        status = http.HTTPStatus(response.status_code)
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        head = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *(b"%s: %s" % header for header in headers)]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))

    def _linger(self, cycle: RequestResponseCycle | None, lingering: Lingering) -> None:
        """Close the sending side now and the connection later, as RFC 9112, section 9.6 describes.

        Closing both at once would reset the connection, and the client might lose the answer. What it still sends
        bypasses parser and application, which would cost more than the rest of the refusal.
        """
        _abandon(cycle)
        if not self.transport.is_closing():
            self._leave_groups()
            self._shared.lingering[self] = None
            self.flow.pause_reading()  # uvloop looks at the type of its protocol only when reading starts
            self._discard = _Discard(self, self._shared.discarded, lingering)
            if self._stopping:
                self._discard.hurry()
            self.transport.set_protocol(self._discard)
            self.flow.resume_reading()
            self.transport.write_eof()

    @property
    def _after_upload(self) -> Lingering:
        return Lingering(self._limits.linger_s)

    def _leave_groups(self) -> None:
        for group in (self._shared.silent, self._shared.idle, self._shared.uploading):
            group.pop(self, None)

    def _count(self, reason: str) -> None:
        self._shared.metrics.connections_refused.labels(reason).inc()

    def _start_head_timer(self) -> None:
        if not self.transport.is_closing():
            self._head_timer = _Timeout(self.loop, self._limits.head_timeout_s, self._end_waiting_for_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_waiting_for_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._count("head_timeout")
        self.transport.close()

    def _watch_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        check = functools.partial(self._check_reader, unread)
        self._reader_timer = _Timeout(self.loop, self._limits.send_timeout_s, check)

    def _cancel_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _cancel_probe_timer(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def _check_reader(self, before: int) -> None:
        """Cut the connection off if the client has read too little since ``before`` bytes were unread."""
        if before - self.transport.get_write_buffer_size() < min(MIN_READ_BYTES, before):
            self._count("send_timeout")
            self.cut()
        else:
            self._watch_reader()


def _abandon(cycle: RequestResponseCycle | None) -> None:
    """End a request for uvicorn and the application, which would otherwise wait for the rest of its body."""
    if cycle is not None:
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()


def _cut_first(*groups: dict[Connection, None]) -> bool:
    """Close the first of these connections at once. Return whether there is one."""
    first = next(itertools.chain(*groups), None)
    if first is not None:
        for group in groups:
            group.pop(first, None)
        first.cut()
    return first is not None


class _Timeout:
    """Calls a function after a time, unless it is cancelled. It gives clients the time in which the server was stopped.

    A server can be stopped (by ``docker pause``, a migration or swapping) while clients send and read. What they have
    done shows when the event loop has polled their connections, so it polls them once more when the time is over. If
    that is noticed late, the client gets as much time again, at most the whole time.

    Args:
        loop: The event loop.
        seconds: The time.
        action: The function.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._action = action
        self._due = loop.time() + seconds
        self._timer = loop.call_at(self._due, self._look_again)

    def cancel(self) -> None:
        """Do not call the function."""
        self._timer.cancel()

    def _look_again(self) -> None:
        late = self._loop.time() - self._due
        self._timer = self._loop.call_later(max(LAST_LOOK_S, min(late, self._seconds)), self._action)


class _Parser(h11.Connection):
    """h11's parser, with exact bounds and a little more of RFC 9112. h11 only bounds what it has to buffer.

    Attributes:
        problem: Code and detail of the problem that the last error stands for.
        path: The path of the last request.
        sent_early: Number of bytes of the next answer that have been sent already: some of ``BEGINNING``.
    """

    problem = ("bad_request", "the request is not valid HTTP/1.1; correct the client")
    path = "/"
    sent_early = 0
    _shortfall = 0  # of the chunks of the current body, in bytes

    def send(self, event: Any) -> Any:
        """Return the bytes to send for an event, without those that have been sent early."""
        data = super().send(event)
        if isinstance(event, h11.Response):
            data = data[self.sent_early :]
            self.sent_early = 0
        return data

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: The client sent something that is not HTTP, or that is too large.
        """
        try:
            if self.their_state is h11.IDLE:
                self._check_head()
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._shortfall = 0
                event = _checked(event)
                self.path = unquote(event.target.partition(b"?")[0].decode("ascii"))
                self._check_path()
            elif isinstance(event, h11.Data):
                self._check_chunk(event)
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                bounds = f"{MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
                detail = f"the request's head exceeds the limit of {bounds}; send fewer headers"
                self.problem = ("head_too_large", detail)
            raise
        return event

    def _check_head(self) -> None:
        """Check the bounds of a head before it is parsed, which takes long if it has many lines."""
        received = self.trailing_data[0]
        if received.startswith(b"\r\n"):  # which some clients send after a body; see RFC 9112, section 2.2
            self._receive_buffer.maybe_extract_next_line()
            received = received[2:]
        end = _BLANK_LINE.search(received, 0, MAX_HEAD_BYTES)
        too_large = received.count(b"\n", 0, end.start()) > MAX_HEADERS if end else len(received) > MAX_HEAD_BYTES
        if too_large:
            raise h11.RemoteProtocolError("head too large", error_status_hint=431)

    def _check_path(self) -> None:
        """Check whether the path has control characters. Starlette, for example, ignores a line feed at its end."""
        if _CONTROL_CHARACTER.search(self.path):
            self.problem = ("bad_request", "the path contains control characters; correct the client")
            raise h11.RemoteProtocolError("control characters")

    def _check_chunk(self, data: h11.Data) -> None:
        """Check whether a body consists of tiny chunks."""
        expected = MIN_CHUNK_BYTES if data.chunk_start else 0
        self._shortfall = max(0, self._shortfall + expected - len(data.data))
        if self._shortfall > MAX_SHORTFALL_BYTES:
            self.problem = ("bad_request", "the body consists of too many tiny chunks; send larger ones")
            raise h11.RemoteProtocolError("tiny chunks")


def _checked(request: h11.Request) -> h11.Request:
    """Check what h11 leaves to the application, and return the request with a target that begins with its path.

    The host of a target that begins with a scheme replaces the header ``Host`` (RFC 9112, section 3.2.2).
    """
    names = {name for name, _ in request.headers}
    if request.http_version >= b"2" or {b"content-length", b"transfer-encoding"} <= names:
        raise h11.RemoteProtocolError("another version of HTTP, or an ambiguous length")  # RFC 9112, section 6.3
    origin = _ORIGIN.match(request.target)
    if not origin:
        return request
    target = request.target[origin.end() :]
    return h11.Request(
        method=request.method,
        headers=[(b"host", origin[1]), *((name, value) for name, value in request.headers if name != b"host")],
        target=target if target.startswith(b"/") else b"/" + target,
        http_version=request.http_version,
    )


class _Discard(asyncio.BufferedProtocol):
    """Reads and ignores what a client still sends, until it closes the connection, pauses, or sends too much."""

    def __init__(self, connection: Connection, buffer: bytearray, lingering: Lingering) -> None:
        self._connection = connection
        self._buffer = buffer
        self._left = lingering.most_bytes
        self._pause_s = min(lingering.pause_s, lingering.seconds)
        self._pauses = round(lingering.seconds / self._pause_s)  # the clock goes on while the server is stopped
        self._start_pause_timer()

    def hurry(self) -> None:
        """End the connection after the pause that is being timed, whether or not the client goes on."""
        self._pauses = 1

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the buffer that asyncio reads into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Note that the client has sent something, and end the connection if that is too much."""
        self._received = True
        self._left -= nbytes
        if self._left < 0:
            self._connection.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell uvicorn's protocol that the connection is gone."""
        self._pause_timer.cancel()
        self._connection.connection_lost(exc)

    def _start_pause_timer(self) -> None:
        self._received = False
        self._pause_timer = _Timeout(self._connection.loop, self._pause_s, self._abort_if_over)

    def _abort_if_over(self) -> None:
        self._pauses -= 1
        if self._received and self._pauses > 0:
            self._start_pause_timer()
        else:
            self._connection.transport.abort()
