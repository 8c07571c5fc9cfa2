"""What every request gets: an id, an access line, its place in the metrics, and an answer even when we fail."""

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.logs import request_id as current_request_id
from service.http.problems import EXPECTED, problem_of, problem_response
from service.metrics import Metrics
from service.pipeline import Stages

# What may be echoed into a header and a log without a second thought.
_CLEAN_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_CHATTER = ("/health/", "/metrics", "/v2/health/")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request. The routes add to it; the middleware logs and counts it in the end.

    Times are in seconds on the clock of `time.monotonic()`; `stages` holds durations.
    """

    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    stages: Stages = field(default_factory=Stages)
    answered: float | None = None  # when the answer was complete and only its sending was left
    status: int | None = None
    code: str | None = None  # of the problem, if it is one

    def end_receive(self, metrics: Metrics) -> None:
        """Note that the request's body has been read: the end of the stage ``receive``."""
        self.stages.receive = time.monotonic() - self.arrived
        metrics.stage_seconds.labels("receive").observe(self.stages.receive)


def record_of(request: Request) -> RequestRecord:
    """The record that ``AccessLog`` opened for this request."""
    record: RequestRecord = request.state.record
    return record


class AccessLog:
    """Pure ASGI middleware around the app. Requests to `measured` paths are predictions and count in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, measured: re.Pattern[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._measured = measured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope)))
        scope.setdefault("state", {})["record"] = record
        measured = self._measured.fullmatch(scope["path"]) is not None
        token = current_request_id.set(record.request_id)
        if measured:
            self._metrics.in_flight_requests.inc()
        try:
            await self._answer(scope, receive, send, record)
        finally:
            if measured:
                self._metrics.in_flight_requests.dec()
                self._count(record)
            _log(scope, record)
            current_request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if not isinstance(error, EXPECTED):
                logger.exception("unhandled error")
            if record.status is not None:
                raise  # half an answer is out: the server has to cut the connection
            problem = problem_of(error)
            record.code = problem.code
            await problem_response(problem, record.request_id, scope["path"])(scope, receive, send_with_id)

    def _count(self, record: RequestRecord) -> None:
        now = time.monotonic()
        self._metrics.request_seconds.labels(str(record.status)).observe(now - record.arrived)
        if record.answered is not None:
            self._metrics.stage_seconds.labels("respond").observe(now - record.answered)
        if record.code is not None:
            self._metrics.rejected.labels(record.code).inc()


def _request_id(headers: Headers) -> str:
    sent = headers.get("X-Request-ID", "")
    return sent if _CLEAN_ID.fullmatch(sent) else uuid.uuid4().hex


def _log(scope: Scope, record: RequestRecord) -> None:
    facts = {
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "duration_ms": round(1000 * (time.monotonic() - record.arrived), 3),
        "stages_ms": record.stages.milliseconds(),
    }
    if record.code is not None:
        facts["code"] = record.code
    # Probes and scrapes come every few seconds and say nothing.
    level = logging.DEBUG if scope["path"].startswith(_CHATTER) else logging.INFO
    logger.log(level, "request", extra=facts)
