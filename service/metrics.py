"""The service's Prometheus metrics."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.usage import ProcessTree

OPEN_METRICS = "application/openmetrics-text"

# Bounds of buckets. A histogram has those of its first line, and of the second up to what the settings allow.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60)
_MORE_SECONDS = (90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_CLIP_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_MORE_CLIP_SECONDS = (1200, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_BYTES = tuple(4.0**power * 1024 for power in range(9))  # 1 KiB to 64 MiB
_MORE_BYTES = tuple(4.0**power * 1024 for power in range(9, 16))  # to 1 TiB
_CLIPS = (1, 2, 4, 8, 16, 32, 64)

# The values of labels. The series exist from the start, so that `rate` counts the first event.
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 429, 431, 499, 500, 503, 504)
STAGES = ("receive", "decode_wait", "decode", "encode", "queue", "inference", "respond")
DECODER_FAILURES = (
    *("unsupported_media", "corrupt_clip", "no_frames", "clip_too_long", "resolution_too_large", "decode_timeout"),
    *("decoder_crashed", "decoder_fault"),
)
CODES = (
    *("empty_body", "malformed_multipart", "missing_file", "invalid_tensor", "bad_request", "unauthorized"),
    *("not_found", "unknown_model", "origin_not_allowed", "method_not_allowed", "upload_timeout", "body_too_large"),
    *DECODER_FAILURES,
    *("invalid_parameter", "host_not_allowed", "overloaded", "head_too_large", "internal_error", "not_ready"),
    *("decoders_unavailable", "too_many_connections", "draining", "deadline_exceeded"),
)
QUEUES = ("decode", "inference")
CONNECTION_REFUSALS = ("bad_request", "head_too_large", "head_timeout", "send_timeout", "too_many_connections")


class Metrics:
    """The metrics of one application.

    Each instance has a registry of its own, so that several applications in one process (in tests) do not mix. Buckets
    reach the limits that the settings set: beyond its last bucket, a histogram does not tell values apart.

    Args:
        deadline_s: Longest time of a request in seconds.
        max_duration_s: Longest clip in seconds.
        max_body_bytes: Largest body.
    """

    def __init__(
        self, *, deadline_s: float = 60, max_duration_s: float = 600, max_body_bytes: int = 64 * 2**20
    ) -> None:
        seconds = _up_to(deadline_s, _SECONDS, _MORE_SECONDS)
        # Nothing reads the time at which each series was created.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_UsageCollector())
        self.request_seconds = Histogram(
            "limelight_request_seconds",
            "Seconds from a prediction request's arrival to the last byte of its answer.",
            ["status"],
            buckets=seconds,
            registry=registry,
        )
        for status in STATUSES:
            self.request_seconds.labels(str(status))
        self.stage_seconds = Histogram(
            "limelight_stage_seconds",
            "Seconds of one request in one stage: receive, decode_wait, decode, encode, queue, inference or respond.",
            ["stage"],
            buckets=seconds,
            registry=registry,
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.batch_size = Histogram(
            "limelight_batch_size", "Clips in one inference, without padding.", buckets=_CLIPS, registry=registry
        )
        self.queue_depth = Gauge(
            "limelight_queue_depth",
            "Clips waiting for a decoder (decode) or for the engine (inference).",
            ["queue"],
            registry=registry,
        )
        for queue in QUEUES:
            self.queue_depth.labels(queue)
        self.in_flight_requests = Gauge(
            "limelight_in_flight_requests", "Prediction requests being received or answered.", registry=registry
        )
        self.connections = Gauge("limelight_connections", "Open connections.", registry=registry)
        self.connections_refused = Counter(
            "limelight_connections_refused",
            "Connections closed because the client sent no valid request or did not read, or there were too many.",
            ["reason"],
            registry=registry,
        )
        for reason in CONNECTION_REFUSALS:
            self.connections_refused.labels(reason)
        self.admitted_clips = Gauge(
            "limelight_admitted_clips", "Clips of all requests that are waiting or being processed.", registry=registry
        )
        self.capacity_clips = Gauge(
            "limelight_capacity_clips", "Largest number of admitted clips; others are refused.", registry=registry
        )
        self.rejected = Counter(
            "limelight_rejected", "Prediction requests answered with a problem.", ["code"], registry=registry
        )
        for code in CODES:
            self.rejected.labels(code)
        self.last_inference = Gauge(
            "limelight_last_inference_timestamp_seconds",
            "Time of the last successful inference, in seconds since 1970; 0 before the first.",
            registry=registry,
        )
        self.clip_seconds = Histogram(
            "limelight_clip_seconds",
            "Duration of decoded clips in seconds.",
            buckets=_up_to(max_duration_s, _CLIP_SECONDS, _MORE_CLIP_SECONDS),
            registry=registry,
        )
        self.upload_bytes = Histogram(
            "limelight_upload_bytes",
            "Size of received clips, and of the bodies of v2, in bytes.",
            buckets=_up_to(max_body_bytes, _BYTES, _MORE_BYTES),
            registry=registry,
        )
        self.decoder_failures = Counter(
            "limelight_decoder_failures", "Clips that could not be decoded.", ["reason"], registry=registry
        )
        for reason in DECODER_FAILURES:
            self.decoder_failures.labels(reason)
        self.decoders_available = Gauge(
            "limelight_decoders_available", "1 while decoder processes can be started, 0 otherwise.", registry=registry
        )
        self.fork_server_restarts = Counter(
            "limelight_fork_server_restarts",
            "Starts of the decoders' fork server in place of one that died or did not answer.",
            registry=registry,
        )
        self.inference_failures = Counter(
            "limelight_inference_failures",
            "Batches that the network failed on, or that had an output which is not a finite number.",
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "limelight_log_lines_dropped",
            "Lines of the log that were dropped because nobody read them in time.",
            registry=registry,
        )
        self.sandbox = Gauge(
            "limelight_sandbox",
            "1 for each layer of the decoders' sandbox that is active, 0 if the kernel lacks it.",
            ["layer"],
            registry=registry,
        )
        self.model = Info("limelight_model", "The model that answers.", registry=registry)
        self.last_reload_successful = Gauge(
            "limelight_last_reload_successful",
            "1 if the bundle could be used when it was last loaded, at the start or on SIGHUP; else 0.",
            registry=registry,
        )
        self.last_reload_success_timestamp = Gauge(
            "limelight_last_reload_success_timestamp_seconds",
            "Time when a bundle was last loaded and used, in seconds since 1970; 0 before the first one.",
            registry=registry,
        )
        self.ready = Gauge("limelight_ready", "1 while /health/ready answers 200, 0 otherwise.", registry=registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their media type: OpenMetrics 1.0 if accepted, else Prometheus' text format 0.0.4.

        Only OpenMetrics has exemplars.

        Args:
            accept: The header ``Accept`` of the request.
        """
        accepted = {entry.partition(";")[0].strip().lower() for entry in accept.split(",")}
        # Not the header itself, because the encoder would be chosen by a version that the client may have made up.
        encode, media_type = choose_encoder(OPEN_METRICS if OPEN_METRICS in accepted else "text/plain")
        return encode(self.registry), media_type


def _up_to(limit: float, bounds: Sequence[float], more: Sequence[float]) -> list[float]:
    """Return bounds of buckets, followed by as many more as it takes to reach the limit."""
    return [*bounds, *(bound for last, bound in zip((bounds[-1], *more), more, strict=False) if last < limit)]


class _UsageCollector(Collector):
    """What the whole service uses of the machine: this process, the decoders, and the server that they fork from."""

    def __init__(self) -> None:
        self._processes = ProcessTree(memory_file="clip")

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "limelight_cpu_seconds",
            "Processor time in seconds of the whole service, decoders included.",
            value=self._processes.cpu_seconds(),
        )
        yield GaugeMetricFamily(
            "limelight_memory_bytes",
            "Resident memory in bytes of the whole service: decoders and clips held in memory are included.",
            value=self._processes.memory_bytes(),
        )
