"""Gives every request an id, an access line, its place in the metrics, and an answer even if the service fails."""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.logs import request_id as current_request_id
from service.http.logs import shortened
from service.http.problems import problem_of, problem_response
from service.http.proxies import TrustedProxies
from service.metrics import Metrics
from service.pipeline import Stages
from service.tracing import Trace

# Request ids of clients that are safe to repeat in a header and in the log.
_SAFE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
# Characters of a method and a path in the access line, escapes included: the line has less than 1 KiB.
MAX_METHOD = 32
MAX_PATH = 256
# Probes and scrapes come every few seconds; their access lines are logged at level ``debug``.
PROBES = ("/health/", "/metrics", "/v2/health/")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """What is known about one request. Routes fill it in; ``AccessLog`` logs and counts it at the end.

    Attributes:
        request_id: The id that the client sent, or a new one.
        trace: The trace that the request belongs to.
        client: The client's address, if it is known.
        is_prediction: Whether a route of predictions answers the request.
        arrived: When the request arrived, on the clock of ``time.monotonic()``.
        stages: Seconds spent in each stage.
        answered: When the answer was complete and only had to be sent, on the same clock.
        status: The answer's HTTP status.
        code: The problem's code, if the request was refused.
    """

    request_id: str
    trace: Trace
    client: str | None
    is_prediction: bool
    arrived: float = field(default_factory=time.monotonic)
    stages: Stages = field(default_factory=Stages)
    answered: float | None = None
    status: int | None = None
    code: str | None = None

    def end_receive(self, metrics: Metrics) -> None:
        """End the stage ``receive``: the request's body has been read."""
        self.stages.receive = time.monotonic() - self.arrived
        self.stages.began["receive"] = self.arrived
        self.stages.exemplar = self.trace.exemplar
        metrics.stage_seconds.labels("receive").observe(self.stages.receive, self.stages.exemplar)

    def server_timing(self) -> str:
        """Return the value of the Server-Timing header: the stages so far in milliseconds (W3C Server Timing)."""
        return ", ".join(f"{stage};dur={duration:.3f}" for stage, duration in self.stages.milliseconds().items())


def record_of(request: Request) -> RequestRecord:
    """Return the record that ``AccessLog`` opened for this request."""
    record: RequestRecord = request.state.record
    return record


class AccessLog:
    """Pure ASGI middleware that records every request, logs it, and counts predictions in the metrics.

    It also answers errors that no route handled, as problems.

    Args:
        app: The application.
        metrics: Where predictions are counted.
        predictions: The routes of predictions.
        proxies: The proxies whose ``X-Forwarded-For`` is trusted.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, predictions: Sequence[BaseRoute], proxies: TrustedProxies
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._predictions = predictions
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open a record, let the application answer, then log and count the record."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["state"]  # which ``Tracing`` has put the trace into
        counted = any(route.matches(scope)[0] is Match.FULL for route in self._predictions)
        client = self._proxies.client_of(scope)
        record = RequestRecord(_request_id(Headers(scope=scope)), state["trace"], client, counted)
        state["record"] = record
        token = current_request_id.set(record.request_id)
        if counted:
            self._metrics.in_flight_requests.inc()
        try:
            await self._answer(scope, receive, send, record)
        finally:
            if counted:
                self._metrics.in_flight_requests.dec()
                self._count(record)
            _log(scope, record)
            current_request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        """Call the application; if it raises before it has answered, answer with a problem."""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            problem = problem_of(error)
            if problem.code == "internal_error" or isinstance(error, MemoryError):  # which a bug may cause, too
                logger.exception("unhandled error")
            if record.status is not None:
                raise  # part of an answer has been sent, so the server has to close the connection
            record.code = problem.code
            await problem_response(problem, record.request_id, scope["path"])(scope, receive, send_with_id)

    def _count(self, record: RequestRecord) -> None:
        now, exemplar = time.monotonic(), record.trace.exemplar
        self._metrics.request_seconds.labels(str(record.status)).observe(now - record.arrived, exemplar)
        if record.answered is not None:
            self._metrics.stage_seconds.labels("respond").observe(now - record.answered, exemplar)
        if record.code is not None:
            self._metrics.rejected.labels(record.code).inc()


def _request_id(headers: Headers) -> str:
    sent = headers.get("X-Request-ID", "")
    return sent if _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex


def _log(scope: Scope, record: RequestRecord) -> None:
    facts = {
        "method": shortened(scope["method"], MAX_METHOD),
        "path": shortened(scope["path"], MAX_PATH),
        "status": record.status,
        "duration_ms": round(1000 * (time.monotonic() - record.arrived), 3),
        "stages_ms": record.stages.milliseconds(),
        "client": record.client,
    }
    if record.trace.id is not None:
        facts["trace_id"] = record.trace.id
    if record.code is not None:
        facts["code"] = record.code
    level = logging.DEBUG if scope["path"].startswith(PROBES) else logging.INFO
    logger.log(level, "request", extra=facts)
