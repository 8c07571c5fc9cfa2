"""Traces requests with OpenTelemetry: one server span each, with a child span for each stage."""

import time
from typing import Any

from opentelemetry.trace import NoOpTracer, Tracer
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.access_log import PROBES, RequestRecord, record_of
from service.http.proxies import TrustedProxies
from service.tracing import Trace


class Tracing:
    """Pure ASGI middleware that traces requests, except for probes and for what is refused before its body is read.

    Place it around ``AccessLog``, which logs the trace's id and whose record has the times of the stages.

    Args:
        app: The application.
        tracer: Makes the spans.
        proxies: The proxies whose ``traceparent`` is trusted.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer, proxies: TrustedProxies) -> None:
        self._app = app
        self._tracer = tracer
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open a trace, let the application answer, then make the spans from the times that it recorded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tracer = NoOpTracer() if scope["path"].startswith(PROBES) else self._tracer
        trace = Trace(tracer, self._proxies.parent_of(scope), time.monotonic())
        state = scope.setdefault("state", {})
        state["trace"] = trace

        async def receive_and_begin() -> Message:
            message = await receive()
            if message.get("body"):
                trace.begin()
            return message

        async def send_and_begin(message: Message) -> None:
            # What another middleware answers, such as a CORS preflight, has no record.
            if message["type"] == "http.response.start" and "record" in state and _is_answered(message["status"]):
                trace.begin()
            await send(message)

        try:
            await self._app(scope, receive_and_begin, send_and_begin)
        finally:
            if trace.recording:
                _end(trace, scope)


def _is_answered(status: int) -> bool:
    """Return whether a status says that the request was not simply refused."""
    return status < 400 or status == 500


def _end(trace: Trace, scope: Scope) -> None:
    """End a trace with names and attributes of OpenTelemetry's semantic conventions for HTTP."""
    record = record_of(Request(scope))
    route = getattr(scope.get("route"), "path_format", None)
    failed = record.status is None or record.status >= 500
    attributes: dict[str, Any] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": record.status,
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
        "client.address": record.client,
        "error.type": (record.code or "_OTHER") if failed else None,
        "limelight.code": record.code,
        "limelight.request_id": record.request_id,
    }
    trace.end(
        f"{scope['method']} {route}" if route else scope["method"],
        {name: value for name, value in attributes.items() if value is not None},
        _children(record),
        failed=failed,
    )


def _children(record: RequestRecord) -> dict[str, tuple[float, float]]:
    """Return when each stage began and how many seconds it took."""
    stages = record.stages
    children = {stage: (stages.began[stage], seconds) for stage, seconds in stages.seconds().items()}
    if record.answered is not None:
        children["respond"] = (record.answered, time.monotonic() - record.answered)
    return children
