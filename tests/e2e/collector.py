"""An OTLP/HTTP receiver, which stands for an OpenTelemetry collector."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import until


@dataclass(frozen=True)
class Span:
    """A received span; times in nanoseconds since 1970, ids in hexadecimal digits ("" if there is none)."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has been received."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, request_id: str) -> tuple[Span, list[Span]]:
        """Wait for the spans of a request; return the server span and its children in order."""
        until(lambda: any(span.attributes.get("limelight.request_id") == request_id for span in self.spans), 20)
        (server,) = (span for span in self.spans if span.attributes.get("limelight.request_id") == request_id)
        children = [span for span in self.spans if span.trace_id == server.trace_id and span is not server]
        return server, sorted(children, key=lambda span: span.start)

    def receive(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans += [_span(span, resource) for span in scope.spans]


@contextmanager
def collecting(*, hanging: bool = False, endless: bool = False) -> Iterator[Collector]:
    """Run a collector until the block ends.

    Args:
        hanging: Whether it accepts connections and never answers.
        endless: Whether its answers never end.
    """
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if hanging:
                collector.paths.append(self.path)
                collector.released.wait(120)
                return
            collector.receive(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "99999999999" if endless else "0")
            self.end_headers()
            with suppress(ConnectionError):
                while endless:
                    self.wfile.write(bytes(2**20))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector.port = server.server_port
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield collector
        collector.released.set()
        server.shutdown()


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=span.status.code,
        attributes=_values(span.attributes),
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
