"""OpenTelemetry: traces of requests, sent to a collector if one is configured.

Only ``limelight serve`` starts it, so no other command and no decoder process has its thread. The variables of the
OpenTelemetry specification configure it (``OTEL_EXPORTER_OTLP_ENDPOINT`` and others, see docs/operations.md).
"""

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AnyValue

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NAME = "limelight"
PROTOCOL = "http/protobuf"
# Seconds for sending the last spans when the server stops.
FLUSH_S = 2

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def tracing() -> Iterator[Tracer]:
    """Provide a tracer until the block ends. It makes spans only if the environment names a collector for them.

    What keeps spans from being sent is logged as a warning. It does not stop the service: the variables are often set
    for all programs of a machine or cluster.
    """
    provider = None
    try:
        provider = _configured_provider()
    except Exception as error:
        logger.warning("requests are not traced: %s", error)
    if provider is None:
        yield NoOpTracer()
        return
    try:
        yield provider.get_tracer(NAME, version("limelight"))
    finally:
        # A collector that does not answer would hold ``shutdown`` up for half a minute.
        flush = threading.Thread(target=provider.shutdown, name="flush", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


def _configured_provider() -> "TracerProvider | None":
    """Start sending spans as the environment says; ``None`` if it names no collector or turns tracing off.

    Raises:
        Exception: Spans cannot be sent as the environment says. The error's text says why.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value.strip()]:
        del os.environ[name]  # an empty variable counts as not set, but the SDK refuses some that are empty
    endpoint = _variable("ENDPOINT")
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if endpoint is None or exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter}; set it to otlp or none")
    if (protocol := _variable("PROTOCOL") or PROTOCOL) != PROTOCOL:
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; set it to {PROTOCOL}, on the collector's port 4318"
        )
    collector = _host_and_port(endpoint)
    if not all(_is_header(entry.strip()) for entry in (_variable("HEADERS") or "").split(",")):
        raise ValueError("a header in OTEL_EXPORTER_OTLP_HEADERS is not valid; write each as name=value, URL-encoded")
    try:
        _check_proxy(endpoint)
        provider = _start()
    except ImportError as error:
        raise ImportError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed; install limelight[otel]"
        ) from error
    logger.info("requests are traced", extra={"collector": collector})
    return provider


def _host_and_port(endpoint: str) -> str:
    """Return the host and port of a URL. Its query would be logged whenever the collector does not answer.

    Raises:
        ValueError: It is not a URL, or has a query. The text holds no part of it.
    """
    with contextlib.suppress(ValueError):
        url = urlsplit(endpoint)
        if url.scheme in {"http", "https"} and url.hostname and not url.query:
            return f"{url.hostname}:{url.port}"
    raise ValueError(
        "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL, or has a query; set it to one such as http://collector:4318, and "
        "secrets in OTEL_EXPORTER_OTLP_HEADERS"
    )


def _is_header(entry: str) -> bool:
    """Return whether the SDK can read and send an entry of the variable for headers; otherwise it logs its value."""
    name_and_value = r"[\w!#$%&'*+.^`|~-]+[ \t]*=[ -~]*"
    readable = not re.search(r'[";\\]', entry)
    return not entry or (readable and re.fullmatch(name_and_value, unquote(entry), re.ASCII) is not None)


def _check_proxy(endpoint: str) -> None:
    """Check the proxy through which the environment has spans sent. One that cannot be parsed would be logged.

    Raises:
        ValueError: It is not a URL. The text holds no part of it.
    """
    from requests.utils import get_environ_proxies, select_proxy
    from urllib3.util import parse_url

    proxy = select_proxy(endpoint, get_environ_proxies(endpoint))
    if proxy is None:
        return
    with contextlib.suppress(ValueError):
        url = parse_url(proxy)
        if url.host and "@" not in f"{url.path}{url.query}{url.fragment}":  # of a password with / or ? or #
            return
    raise ValueError(
        "the proxy that the environment names is not a URL; correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, and "
        "URL-encode its password, or add the collector to NO_PROXY"
    )


def _variable(suffix: str) -> str | None:
    """Return a variable of the exporter: the one for traces or the one for all signals."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{suffix}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{suffix}")


def _start() -> "TracerProvider":
    """Start the thread that sends spans. The SDK reads the other variables: sampler, headers, timeouts and so on."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes: dict[str, AnyValue] = {
        "service.name": NAME,
        "service.version": version("limelight"),
        "service.instance.id": socket.gethostname(),
    }
    attributes |= {name: value for name, value in OTELResourceDetector().detect().attributes.items() if value}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    session = requests.Session()
    # The status says enough. What follows the headers may be endless, as from a server that is no collector.
    session.stream = True
    session.hooks["response"] = [lambda answer, **_: answer.close()]
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=session)))
    return provider


class Trace:
    """The trace of one request.

    Its spans are made from measured times. The server span is made once ``begin`` is called, so a request that is
    refused before that costs nothing.

    Args:
        tracer: Makes the spans.
        parent: Holds the caller's span, if it is known.
        arrived: When the request arrived, on the clock of ``time.monotonic()``.
    """

    def __init__(self, tracer: Tracer, parent: Context, arrived: float) -> None:
        self._tracer = tracer
        self._parent = parent
        self._arrived = arrived
        self._offset_ns = 0  # from the clock of ``time.monotonic()`` to the time of day, the same for all spans
        self._begun = False
        self._span = get_current_span(parent)

    @property
    def id(self) -> str | None:
        """The trace's id in hexadecimal digits; ``None`` if the request belongs to no trace."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The label that refers to the trace in the metrics, if the trace is sampled."""
        sampled = self._span.get_span_context().trace_flags.sampled
        return {"trace_id": self.id} if sampled and self.id else None

    @property
    def recording(self) -> bool:
        """Whether spans are made: ``begin`` has been called, and the trace is sampled."""
        return self._span.is_recording()

    def begin(self) -> None:
        """Make the server span. Further calls do nothing."""
        if not self._begun:
            self._begun = True
            self._offset_ns = time.time_ns() - time.monotonic_ns()
            self._span = self._tracer.start_span(
                "request", self._parent, SpanKind.SERVER, start_time=self._time_ns(self._arrived)
            )

    def end(
        self,
        name: str,
        attributes: Mapping[str, AnyValue],
        children: Mapping[str, tuple[float, float]],
        *,
        failed: bool,
    ) -> None:
        """End the server span and make its children. Call it only while ``recording``.

        Args:
            name: The server span's name.
            attributes: The server span's attributes.
            children: When each child span began and how many seconds it took, by name.
            failed: Whether the server is to blame for a failure.
        """
        within = set_span_in_context(self._span)
        for child, (began, seconds) in children.items():
            span = self._tracer.start_span(child, within, start_time=self._time_ns(began))
            span.end(self._time_ns(began + seconds))
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._time_ns(time.monotonic()))

    def _time_ns(self, moment: float) -> int:
        return self._offset_ns + int(moment * 1e9)
