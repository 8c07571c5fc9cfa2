"""The formats of the metrics; promtool and the parsers of prometheus_client read them."""

import shutil
import subprocess
from dataclasses import fields

import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from service.errors import ClipError
from service.http.problems import KINDS
from service.metrics import Metrics
from service.pipeline import Stages

OPEN_METRICS = "application/openmetrics-text"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
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
        return [(sample.name, sample.labels, sample.value) for sample in samples if "process" not in sample.name]

    in_text = series(text_string_to_metric_families(text))
    assert in_text == series(open_metrics.text_string_to_metric_families(open_text))  # type: ignore[no-untyped-call]
    assert not [name for name, _, _ in in_text if name.endswith("_created")]


def test_the_series_of_known_events_exist_before_the_first_of_them() -> None:
    text = Metrics().render()[0].decode()

    for status in {kind.status for kind in KINDS.values()} | {200, 499}:
        assert f'limelight_request_seconds_count{{status="{status}"}} 0.0\n' in text
    for error in ClipError.__subclasses__():
        assert f'limelight_decoder_failures_total{{reason="{error.code}"}} 0.0\n' in text
    for stage in [field.name for field in fields(Stages) if field.name not in {"began", "exemplar"}] + ["respond"]:
        assert f'limelight_stage_seconds_count{{stage="{stage}"}} 0.0\n' in text


def test_promtool_finds_nothing_wrong_with_the_text(metrics: Metrics) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render()[0], capture_output=True, timeout=60, check=False
    )

    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")
