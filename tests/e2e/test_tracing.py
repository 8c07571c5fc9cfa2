"""Traces of the real server: what a collector receives, and what the log and the metrics say about them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

from tests.conftest import REPOSITORY
from tests.e2e.collector import Collector, collecting
from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient, stopped_decoder
from tests.processes import descendants, until

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, INTERNAL = 2, 1  # kinds of spans
UNSET, ERROR = 0, 2  # statuses of spans
EXEMPLARS = {"query": "limelight_request_seconds_bucket", "start": "0", "end": "9999999999"}
STAGES = ["receive", "decode_wait", "decode", "queue", "inference", "respond"]


def exporting(collector: Collector) -> dict[str, str]:
    """Return the variables of a server that traces."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_TRACES_SAMPLER": "",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # must not have FastAPI trace requests, too
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("traced") / "log.jsonl"
    settings = {"TRUSTED_PROXIES": "127.0.0.1, unix", "DECODE_WORKERS": "1", "REQUEST_TIMEOUT_S": "3"}
    with running(tiny_bundle, log, settings, variables=exporting(collector)) as server:
        yield server


class TestSpans:
    def test_a_prediction_has_a_server_span_and_a_child_for_each_stage(
        self, server: Server, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        before = time.time_ns()
        client.post("/predict?top_k=1", content=clip, headers={"X-Request-ID": "stages"})
        span, children = collector.of("stages")
        line = server.access_line("stages")

        assert (span.name, span.kind, span.status, span.parent_id) == ("POST /predict", SERVER, UNSET, "")
        assert span.trace_id == line["trace_id"]
        assert {name: value for name, value in span.attributes.items() if name != "limelight.request_id"} == {
            "http.request.method": "POST",
            "http.route": "/predict",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": "/predict",
            "network.protocol.version": "1.1",
            "client.address": "127.0.0.1",
        }
        assert span.resource["service.name"] == "limelight"
        assert span.resource["service.instance.id"] == socket.gethostname()
        assert span.resource["deployment.environment.name"] == "test"
        assert [child.name for child in children] == STAGES
        assert {(child.kind, child.parent_id) for child in children} == {(INTERNAL, span.span_id)}
        assert before <= span.start
        assert span.end <= time.time_ns()

    def test_the_children_lie_in_the_server_span_one_after_the_other(
        self, server: Server, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        client.post("/predict?frames=jpeg", content=clip, headers={"X-Request-ID": "order"})
        span, children = collector.of("order")
        times = [time for child in children for time in (child.start, child.end)]
        stages = server.access_line("order")["stages_ms"]

        assert [child.name for child in children] == [*STAGES[:3], "encode", *STAGES[3:]]
        assert [span.start, *times, span.end] == sorted([span.start, *times, span.end])
        assert isinstance(stages, dict)
        for child in children[:-1]:
            assert (child.end - child.start) / 1e6 == pytest.approx(stages[child.name], abs=0.01)

    def test_a_body_in_many_chunks_makes_no_further_spans(
        self, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        chunks = (clip[start : start + 1000] for start in range(0, len(clip), 1000))
        client.post("/predict", content=chunks, headers={"X-Request-ID": "chunks"})

        assert [child.name for child in collector.of("chunks")[1]] == STAGES

    def test_a_clip_that_is_refused_once_it_has_arrived_has_the_stages_that_it_reached(
        self, client: httpx.Client, collector: Collector
    ) -> None:
        client.post("/predict", content=b"text", headers={"X-Request-ID": "text"})
        span, children = collector.of("text")

        assert [child.name for child in children] == ["receive", "decode_wait", "decode"]
        assert (span.attributes["http.response.status_code"], span.status) == (415, UNSET)
        assert span.attributes["limelight.code"] == "unsupported_media"
        assert "error.type" not in span.attributes

    def test_a_prediction_that_is_not_ready_in_time_is_an_error(self, server: Server, collector: Collector) -> None:
        with stopped_decoder(server, "X-Request-ID: late"):
            span, _ = collector.of("late")

        assert (span.attributes["http.response.status_code"], span.status) == (504, ERROR)
        assert span.attributes["error.type"] == "deadline_exceeded"

    def test_a_client_that_disconnects_is_no_error_of_the_server(
        self, server: Server, collector: Collector, clip: bytes
    ) -> None:
        with RawClient(server.port) as vanishing:
            vanishing.post(f"Content-Length: {len(clip)}", "X-Request-ID: gone", body=clip[: len(clip) // 2])
            until(lambda: server.metric("in_flight_requests") == 1)
        span, _ = collector.of("gone")

        assert (span.attributes["http.response.status_code"], span.status) == (499, UNSET)
        assert "error.type" not in span.attributes

    def test_metadata_is_traced_by_its_route(self, client: httpx.Client, collector: Collector) -> None:
        client.get("/v2/models/tiny/versions/1", headers={"X-Request-ID": "metadata"})
        span, children = collector.of("metadata")

        assert span.name == "GET /v2/models/{name}/versions/{version}"
        assert span.attributes["url.path"] == "/v2/models/tiny/versions/1"
        assert children == []

    def test_only_traces_are_sent_and_nobody_else_makes_spans(self, collector: Collector) -> None:
        assert set(collector.paths) == {"/v1/traces"}
        assert {span.name for span in collector.spans if span.kind == INTERNAL} <= {*STAGES, "encode"}


class TestUntraced:
    @pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v2/health/live", "/metrics"])
    def test_probes_have_no_span(self, client: httpx.Client, collector: Collector, path: str) -> None:
        client.get(path, headers={"X-Request-ID": "probe", "traceparent": f"00-{TRACE}-{PARENT}-01"})

        assert "probe" not in traced(client, collector)

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ({"method": "GET", "url": "/nothing"}, 404),
            ({"method": "DELETE", "url": "/predict"}, 405),
            ({"method": "POST", "url": "/predict", "content": b"{}", "headers": {"Content-Type": "text/html"}}, 415),
            ({"method": "POST", "url": "/predict?top_k=0", "content": b"clip"}, 422),
            ({"method": "POST", "url": "/predict", "content": b""}, 400),
            ({"method": "POST", "url": "/v2/models/other/infer", "content": b"{}"}, 404),
        ],
    )
    def test_a_request_that_is_refused_by_its_head_has_no_span(
        self, client: httpx.Client, collector: Collector, request_: dict[str, Any], status: int
    ) -> None:
        headers = {"X-Request-ID": "head", **request_.get("headers", {})}

        assert client.request(**{**request_, "headers": headers}).status_code == status
        assert "head" not in traced(client, collector)

    def test_refusals_for_want_of_a_key_or_a_place_and_during_shutdown_have_no_span(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        key = "X-API-Key: secret"
        settings = {"API_KEYS": "secret", "MAX_QUEUE": "0", "DRAIN_DELAY_S": "0"}
        with (
            collecting() as collector,
            running(tiny_bundle, tmp_path / "log", settings, variables=exporting(collector)) as server,
            RawClient(server.port) as open_connection,
        ):
            with stopped_decoder(server, key, "X-Request-ID: admitted"):
                with RawClient(server.port) as client:
                    client.post("Content-Length: 4", "X-Request-ID: keyless", body=b"clip")
                    assert client.answer().status == 401
                with RawClient(server.port) as client:
                    client.post("Content-Length: 4", key, "X-Request-ID: crowded", body=b"clip")
                    assert client.answer().status == 429
                server.process.send_signal(signal.SIGTERM)
                until(server.refuses_connections)
                open_connection.post("Content-Length: 4", key, "X-Request-ID: draining", body=b"clip")
                assert open_connection.answer().code == "draining"
            assert server.process.wait(PATIENCE_S) == 0

        assert [span.attributes["limelight.request_id"] for span in collector.spans if span.kind == SERVER] == [
            "admitted"
        ]
        assert "trace_id" not in server.access_line("crowded")


def traced(client: httpx.Client, collector: Collector) -> set[object]:
    """Make another request, wait for its span, and return the ids of all requests that have spans."""
    last = uuid.uuid4().hex
    client.get("/model", headers={"X-Request-ID": last})
    collector.of(last)
    return {span.attributes.get("limelight.request_id") for span in collector.spans}


class TestPropagation:
    def test_the_span_of_a_trusted_caller_is_the_parent(
        self, server: Server, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        client.post(
            "/predict", content=clip, headers={"X-Request-ID": "child", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
        span, children = collector.of("child")

        assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
        assert {child.trace_id for child in children} == {TRACE}
        assert server.access_line("child")["trace_id"] == TRACE

    def test_a_trace_that_the_caller_does_not_sample_is_not_sent(
        self, server: Server, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        trace = "1" * 32
        headers = {"X-Request-ID": "unsampled", "traceparent": f"00-{trace}-{PARENT}-00"}
        client.post("/predict", content=clip, headers=headers)

        assert server.access_line("unsampled")["trace_id"] == trace
        assert "unsampled" not in traced(client, collector)
        assert trace not in open_metrics(server)

    def test_the_sampler_of_the_environment_decides_about_new_traces(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        sampler = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_SERVICE_NAME": "other"}
        settings = {"TRUSTED_PROXIES": "*"}
        with (
            collecting() as collector,
            running(tiny_bundle, tmp_path / "log", settings, variables=exporting(collector) | sampler) as server,
        ):
            httpx.post(f"{server.url}/predict", content=clip, trust_env=False)
            sampled = {"X-Request-ID": "sampled", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            httpx.post(f"{server.url}/predict", content=clip, headers=sampled, trust_env=False)
            span, _ = collector.of("sampled")

        assert span.resource["service.name"] == "other"
        assert {span.trace_id for span in collector.spans} == {TRACE}


class TestClientAddress:
    @pytest.mark.parametrize(
        ("forwarded", "expected"),
        [
            (b"192.0.2.1", "192.0.2.1"),
            (b"198.51.100.9, 192.0.2.1\r\nX-Forwarded-For: 127.0.0.1", "192.0.2.1"),
            (b"[2001:db8::1]:443", "2001:db8::1"),
            (b'192.0.2.1, "}\xff\t{\\u0000', "127.0.0.1"),
            (b"fe80::1%" + b"x" * 1000, "127.0.0.1"),
        ],
    )
    def test_a_trusted_peer_names_the_client(
        self, server: Server, collector: Collector, forwarded: bytes, expected: str
    ) -> None:
        name = uuid.uuid4().hex
        with RawClient(server.port) as client:
            client.send(b"GET /model HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n" % name.encode())
            client.send(b"X-Forwarded-For: " + forwarded + b"\r\n\r\n")
            assert client.answer().status == 200

        assert server.access_line(name)["client"] == expected
        assert collector.of(name)[0].attributes["client.address"] == expected

    def test_from_others_neither_client_nor_trace_are_believed(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        claims = {"X-Forwarded-For": "192.0.2.1", "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "claims"}
        with (
            collecting() as collector,
            running(
                tiny_bundle, tmp_path / "log", {"TRUSTED_PROXIES": "10.0.0.0/8"}, variables=exporting(collector)
            ) as server,
        ):
            httpx.post(f"{server.url}/predict", content=clip, headers=claims, trust_env=False)
            span, _ = collector.of("claims")
            line = server.access_line("claims")

        assert line["client"] == span.attributes["client.address"] == "127.0.0.1"
        assert line["trace_id"] == span.trace_id != TRACE
        assert span.parent_id == ""


class TestExemplars:
    def test_the_latency_histograms_refer_to_the_traces(
        self, server: Server, client: httpx.Client, collector: Collector, clip: bytes
    ) -> None:
        client.post("/predict", content=clip, headers={"X-Request-ID": "exemplar"})
        trace = server.access_line("exemplar")["trace_id"]
        families = {
            family.name: family
            for family in parse(open_metrics(server))  # type: ignore[no-untyped-call]
        }

        for name, label, values in [
            ("limelight_request_seconds", "status", {"200"}),
            ("limelight_stage_seconds", "stage", set(STAGES)),
        ]:
            found = {
                sample.labels[label]
                for sample in families[name].samples
                if sample.exemplar and sample.exemplar.labels == {"trace_id": trace}
            }
            assert found == values

    def test_prometheus_stores_the_exemplars_and_evaluates_the_rules(
        self, server: Server, client: httpx.Client, clip: bytes, tmp_path: Path
    ) -> None:
        if shutil.which("prometheus") is None:
            pytest.skip("needs prometheus (Debian: prometheus)")
        client.post("/predict", content=clip, headers={"X-Request-ID": "stored"})
        trace = str(server.access_line("stored")["trace_id"])
        with prometheus(server.port, tmp_path) as url:
            until(lambda: trace in answer(url, "query_exemplars", EXEMPLARS))
            until(lambda: '"value"' in answer(url, "query", {"query": "limelight:fullness"}))
            rules = json.loads(answer(url, "rules", {}))["data"]["groups"]

        assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}


def open_metrics(server: Server) -> str:
    answer = httpx.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text"}, trust_env=False)
    return answer.text


@contextmanager
def prometheus(port: int, folder: Path) -> Iterator[str]:
    """Run a Prometheus with the project's rules that scrapes a server every second; return its URL."""
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{REPOSITORY}/deploy/prometheus/rules/*.yml']\n"
        f"scrape_configs: [{{job_name: limelight, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n",
        encoding="utf-8",
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    process = subprocess.Popen(
        [*command, "--enable-feature=exemplar-storage"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def answer(url: str, question: str, parameters: dict[str, str]) -> str:
    """Return what Prometheus' API answers; nothing before it has started."""
    try:
        return httpx.get(f"{url}/api/v1/{question}", params=parameters, trust_env=False).text
    except httpx.TransportError:
        return ""


class TestCollectorTrouble:
    def test_an_endless_answer_is_not_read(self, tiny_bundle: Path, tmp_path: Path, clip: bytes) -> None:
        with (
            collecting(endless=True) as collector,
            running(tiny_bundle, tmp_path / "log", {}, variables=exporting(collector)) as server,
        ):
            for _ in range(3):
                collector.paths.clear()
                httpx.post(f"{server.url}/predict", content=clip, trust_env=False)
                until(lambda: collector.paths, 20)
            resident_kb = int(
                re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8"))[0]
            )

        assert resident_kb < 1_000_000

    @pytest.mark.parametrize("trouble", ["down", "hanging"])
    def test_it_costs_one_line_of_the_log_and_two_seconds_at_the_end(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes, trouble: str
    ) -> None:
        with collecting(hanging=trouble == "hanging") as collector:
            if trouble == "down":
                with socket.create_server(("127.0.0.1", 0)) as closed:
                    collector.port = closed.getsockname()[1]
            # When it is down, each batch fails at once. When it hangs, it is still being asked at the end.
            timeout = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2" if trouble == "down" else "60"}
            variables = exporting(collector) | timeout
            with running(tiny_bundle, tmp_path / "log", {"DRAIN_DELAY_S": "0"}, variables=variables) as server:
                for _ in range(10):
                    answer = httpx.post(f"{server.url}/predict", content=clip, trust_env=False)
                    assert answer.status_code == 200
                    time.sleep(0.1)  # longer than the time between two batches
                if trouble == "hanging":
                    until(lambda: collector.paths)
                stopped = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(PATIENCE_S) == 0
                seconds = time.monotonic() - stopped

        assert seconds < 5  # two for the spans, and what a server without tracing takes on a busy machine
        complaints = [line for line in server.lines() if str(line["logger"]).startswith("opentelemetry")]
        assert len(complaints) == (1 if trouble == "down" else 0)

    def test_the_last_spans_are_sent_before_the_process_ends(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with collecting() as collector:
            variables = exporting(collector) | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
            with running(tiny_bundle, tmp_path / "log", {"DRAIN_DELAY_S": "0"}, variables=variables) as server:
                httpx.post(f"{server.url}/predict", content=clip, headers={"X-Request-ID": "last"}, trust_env=False)
                server.process.terminate()
                assert server.process.wait(PATIENCE_S) == 0

        assert [child.name for child in collector.of("last")[1]] == STAGES


class TestThreads:
    def test_only_a_server_that_traces_has_the_exporters_thread(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with collecting() as collector:
            with (
                running(tiny_bundle, tmp_path / "on", {}, variables=exporting(collector)) as on,
                running(tiny_bundle, tmp_path / "off", {}, variables={"FASTAPI_OTEL_AUTO_CONFIGURE": "true"}) as off,
            ):
                traced_threads, untraced_threads = (threads(server.process.pid) for server in (on, off))
                forked = [
                    [threads(pid) for generation in descendants(server.process.pid) for pid in generation]
                    for server in (on, off)
                ]
                answer = httpx.post(f"{off.url}/predict", content=clip, trust_env=False)
                off.access_line(answer.headers["X-Request-ID"])
            sent = list(collector.paths)

        assert traced_threads == untraced_threads + 1
        assert forked[0] == forked[1]
        assert sent == []
        assert "trace_id" not in off.access_line(answer.headers["X-Request-ID"])

    def test_predict_and_doctor_trace_nothing(self, tiny_bundle: Path, tmp_path: Path, clip: bytes) -> None:
        (tmp_path / "clip.mp4").write_bytes(clip)
        with collecting() as collector:
            for command in (["predict", "clip.mp4"], ["doctor"]):
                subprocess.run(
                    [sys.executable, "-m", "service.cli", *command, "--bundle", str(tiny_bundle)],
                    cwd=tmp_path,
                    env=os.environ | exporting(collector),
                    stdout=subprocess.DEVNULL,
                    timeout=PATIENCE_S,
                    check=True,
                )

        assert collector.paths == []


def threads(pid: int) -> int:
    """Return the number of a process's threads."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
