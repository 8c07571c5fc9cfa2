"""The formats of the metrics; promtool and the parsers of prometheus_client read them."""

import re
import shutil
import subprocess
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from service.errors import ClipError
from service.http.app import CLIENT_CLOSED_REQUEST, create_app
from service.http.problems import KINDS
from service.metrics import Metrics
from service.pipeline import Stages
from service.settings import MOST_BATCH, Settings

OPEN_METRICS = "application/openmetrics-text"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
USAGE = re.compile("process_|limelight_(cpu_seconds|memory_bytes)")  # each reading differs
TRACE = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.request_seconds.labels("200").observe(0.3, TRACE)
    metrics.rejected.labels("overloaded").inc()
    metrics.decoder_failures.labels("no_frames").inc()
    metrics.model.info({"name": "tiny"})
    return metrics


@pytest.mark.parametrize("accept", [OPEN_METRICS, PROMETHEUS_3, "text/html, Application/OpenMetrics-Text; version=x"])
def test_open_metrics_is_sent_where_it_is_accepted(metrics: Metrics, accept: str) -> None:
    content, media_type = metrics.render(accept)

    assert media_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert content.endswith(b"# EOF\n")
    assert b'# {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.3' in content


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain; version=0.0.4", "text/plain; version=x", ";,;=", "text/html"]
)
def test_others_get_the_text_format_without_exemplars(metrics: Metrics, accept: str) -> None:
    content, media_type = metrics.render(accept)

    assert media_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"trace_id" not in content


def test_both_formats_have_the_same_series(metrics: Metrics) -> None:
    text, open_text = (metrics.render(accept)[0].decode() for accept in ("", OPEN_METRICS))

    def series(families: object) -> list[tuple[str, dict[str, str], float]]:
        samples = (sample for family in families for sample in family.samples)  # type: ignore[attr-defined]
        return [(sample.name, sample.labels, sample.value) for sample in samples if not USAGE.match(sample.name)]

    in_text = series(text_string_to_metric_families(text))
    assert in_text == series(open_metrics.text_string_to_metric_families(open_text))  # type: ignore[no-untyped-call]
    assert not [name for name, _, _ in in_text if name.endswith("_created")]


def test_the_series_of_known_events_exist_before_the_first_of_them() -> None:
    """And no others, whose alerts and panels could never show anything."""
    told: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(Metrics().render()[0].decode()):
        for sample in family.samples:
            if "le" not in sample.labels and len(sample.labels) == 1:
                told.setdefault(sample.name, {})[next(iter(sample.labels.values()))] = sample.value
    stages = {field.name for field in fields(Stages)} - {"began", "exemplar"} | {"respond"}

    assert told["limelight_request_seconds_count"].keys() == (
        {str(kind.status) for kind in KINDS.values()} | {"200", str(CLIENT_CLOSED_REQUEST)}
    )
    assert told["limelight_rejected_total"].keys() == KINDS.keys()
    assert told["limelight_decoder_failures_total"].keys() == {error.code for error in ClipError.__subclasses__()}
    assert told["limelight_stage_seconds_count"].keys() == stages
    assert told["limelight_queue_depth"].keys() == {"decode", "inference"}
    assert {value for series in told.values() for value in series.values()} == {0}


def test_buckets_reach_what_the_settings_allow() -> None:
    def bounds(name: str, **settings: Any) -> list[float]:
        serving = create_app(Settings(**settings)).state.serving
        (family,) = (family for family in serving.metrics.registry.collect() if family.name == f"limelight_{name}")
        (sample, *_) = family.samples
        others = {label: value for label, value in sample.labels.items() if label != "le"}
        buckets = (sample for sample in family.samples if others.items() <= sample.labels.items())
        return [float(sample.labels["le"]) for sample in buckets if "le" in sample.labels][:-1]

    for deadline_s in (0.5, 60.0, 61.0, 200.0, 600.0, 5000.0, 86_400.0):
        for name in ("request_seconds", "stage_seconds"):
            steps = bounds(name, request_timeout_s=deadline_s)
            assert max(deadline_s, 60) <= steps[-1] <= 3 * max(deadline_s, 60)
            assert all(2 * low + 1e-9 >= high for low, high in pairwise(steps) if low >= 1 and high <= 1800)
            assert len(steps) <= 36
    assert bounds("clip_seconds", max_duration_s=7000)[-1] == 7200
    assert bounds("upload_bytes", max_body_bytes=2**30)[-1] == 2**30
    assert bounds("upload_bytes", max_body_bytes=2**40)[-1] == 2**40
    assert bounds("batch_size")[-1] == MOST_BATCH


def test_promtool_finds_nothing_wrong_with_the_text(metrics: Metrics) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render()[0], capture_output=True, timeout=60, check=False
    )

    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")
