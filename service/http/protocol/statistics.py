"""Triton's statistics extension, answered from the service's metrics."""

from prometheus_client import Gauge, Histogram

from service.http.protocol.schemas import Duration, Durations, ModelStatistics, Statistics
from service.metrics import Metrics
from service.model.bundle import Manifest

NOTHING = Duration(count=0, ns=0)


def statistics_of(manifest: Manifest, metrics: Metrics) -> Statistics:
    """Return the statistics of the model in service. They begin with the service, not with the model."""
    every, success = _duration(metrics.request_seconds), _duration(metrics.request_seconds, status="200")
    durations = Durations(
        success=success,
        fail=Duration(count=every.count - success.count, ns=every.ns - success.ns),
        queue=_duration(metrics.stage_seconds, stage="queue"),
        compute_input=_duration(metrics.stage_seconds, stage="decode"),
        compute_infer=_duration(metrics.stage_seconds, stage="inference"),
        compute_output=NOTHING,
        cache_hit=NOTHING,
        cache_miss=NOTHING,
    )
    statistics = ModelStatistics(
        name=manifest.name,
        version=manifest.version,
        last_inference=round(1000 * _sum(metrics.last_inference, "")),
        inference_count=round(_sum(metrics.batch_size, "_sum")),
        execution_count=round(_sum(metrics.batch_size, "_count")),
        inference_stats=durations,
        batch_stats=[],
    )
    return Statistics(model_stats=[statistics])


def _duration(histogram: Histogram, **labels: str) -> Duration:
    """Return number and sum of a histogram of seconds, over all series that have these labels."""
    return Duration(count=round(_sum(histogram, "_count", **labels)), ns=round(1e9 * _sum(histogram, "_sum", **labels)))


def _sum(metric: Gauge | Histogram, suffix: str, **labels: str) -> float:
    """Return the sum of a metric's samples whose name has this suffix, over all series that have these labels."""
    (family,) = metric.collect()
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    )
