"""Starting OpenTelemetry as the environment says, without a server."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping

import pytest
from opentelemetry.trace import NoOpTracer

from service.tracing import tracing

ENDPOINT = "http://127.0.0.1:1"

Set = Callable[..., None]


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Set:
    """Set OpenTelemetry's variables, by names without the prefix ``OTEL_``, and log from level ``info`` on."""
    caplog.set_level(logging.INFO)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_{name}", value)

    return set_variables


def exporters() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]


@pytest.mark.parametrize("name", ["EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_thread_sends_spans_while_tracing_is_on(set_variables: Set, name: str) -> None:
    set_variables(**{name: ENDPOINT})

    with tracing() as tracer:
        assert len(exporters()) == 1
        assert not isinstance(tracer, NoOpTracer)
    assert exporters() == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"EXPORTER_OTLP_ENDPOINT": "", "EXPORTER_OTLP_TRACES_ENDPOINT": " "},
        {"EXPORTER_OTLP_ENDPOINT": ENDPOINT, "SDK_DISABLED": "True"},
        {"EXPORTER_OTLP_ENDPOINT": ENDPOINT, "TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_when_disabled_no_thread_is_started(
    set_variables: Set, caplog: pytest.LogCaptureFixture, variables: Mapping[str, str]
) -> None:
    set_variables(**variables)

    with tracing() as tracer:
        assert isinstance(tracer, NoOpTracer)
        assert exporters() == []
    assert caplog.text == ""


def test_empty_variables_count_as_not_set(set_variables: Set, caplog: pytest.LogCaptureFixture) -> None:
    names = ("TRACES_SAMPLER", "BSP_SCHEDULE_DELAY", "BSP_MAX_QUEUE_SIZE", "TRACES_EXPORTER", "EXPORTER_OTLP_PROTOCOL")
    set_variables(EXPORTER_OTLP_ENDPOINT=ENDPOINT, **dict.fromkeys(names, ""))

    with tracing():
        assert len(exporters()) == 1
    assert [record.getMessage() for record in caplog.records] == ["requests are traced"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL"),
        ({"EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL"),
        ({"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:99999"}, "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL"),
        ({"EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is grpc"),
        ({"TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is zipkin"),
        ({"BSP_MAX_QUEUE_SIZE": "-1"}, "max_queue_size must be a positive integer"),
    ],
)
def test_what_cannot_be_used_is_a_warning_and_turns_tracing_off(
    set_variables: Set, caplog: pytest.LogCaptureFixture, variables: Mapping[str, str], reason: str
) -> None:
    set_variables(**{"EXPORTER_OTLP_ENDPOINT": ENDPOINT, **variables})

    with tracing() as tracer:
        assert isinstance(tracer, NoOpTracer)
    assert f"requests are not traced: {reason}" in caplog.text
    assert exporters() == []


@pytest.mark.parametrize(
    "variables",
    [
        {"EXPORTER_OTLP_ENDPOINT": "http://user:7f3a/x@collector:4318"},
        {"EXPORTER_OTLP_ENDPOINT": "http://collector:4318/?key=7f3a"},
        {"EXPORTER_OTLP_HEADERS": "7f3a"},
        {"EXPORTER_OTLP_HEADERS": "a=b,key=7f3a é"},
        {"EXPORTER_OTLP_HEADERS": "key=%E2%82%AC7f3a"},
        {"EXPORTER_OTLP_TRACES_HEADERS": "key=a%0A7f3a"},
        {"EXPORTER_OTLP_TRACES_HEADERS": "key=a;7f3a"},
    ],
)
def test_a_secret_that_cannot_be_used_is_not_logged(
    set_variables: Set, caplog: pytest.LogCaptureFixture, variables: Mapping[str, str]
) -> None:
    set_variables(**{"EXPORTER_OTLP_ENDPOINT": ENDPOINT, "BSP_SCHEDULE_DELAY": "1", **variables})

    with tracing() as tracer:
        tracer.start_span("any").end()
    assert "requests are not traced: " in caplog.text
    assert "7f3a" not in caplog.text


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:7f3a@proxy:99999",
        "http://user:7f3a/x@proxy:8080",
        "http://user:1/7f3a@proxy:8080",
        "http://user:7f3a?x@proxy:8080",
        "user:7f3a#x@proxy:8080",
        "http://user:7f3a@",
    ],
)
def test_a_proxy_that_cannot_be_used_is_not_logged(
    set_variables: Set, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, proxy: str
) -> None:
    set_variables(EXPORTER_OTLP_ENDPOINT="http://collector.invalid:4318", BSP_SCHEDULE_DELAY="1")
    monkeypatch.setenv(name, proxy)

    with tracing() as tracer:
        tracer.start_span("any").end()
    assert "requests are not traced: the proxy that the environment names is not a URL; correct" in caplog.text
    assert "7f3a" not in caplog.text


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTP_PROXY": "http://user:p%2F7f3a@proxy:8080"},
        {"HTTP_PROXY": "192.0.2.1:8080"},
        {"HTTP_PROXY": "http://user:7f3a/x@proxy:8080", "NO_PROXY": "127.0.0.1"},
        {"HTTPS_PROXY": "http://user:7f3a/x@proxy:8080"},
    ],
)
def test_a_proxy_that_can_be_used_or_is_not_needed_is_accepted(
    set_variables: Set, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]
) -> None:
    set_variables(EXPORTER_OTLP_ENDPOINT=ENDPOINT)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with tracing() as tracer:
        assert not isinstance(tracer, NoOpTracer)


def test_headers_that_the_sdk_can_read_are_accepted(set_variables: Set) -> None:
    set_variables(EXPORTER_OTLP_ENDPOINT=ENDPOINT, EXPORTER_OTLP_HEADERS=" key = a%20b= , api-key=Bearer 7f3a,")

    with tracing() as tracer:
        assert not isinstance(tracer, NoOpTracer)


def test_without_the_sdk_the_warning_names_the_extra(
    set_variables: Set, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_variables(EXPORTER_OTLP_ENDPOINT=ENDPOINT)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with tracing() as tracer:
        assert isinstance(tracer, NoOpTracer)
    assert "install limelight[otel]" in caplog.text
