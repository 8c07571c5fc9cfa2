"""The service's Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

OPEN_METRICS = "application/openmetrics-text"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60)
_CLIP_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_BYTES = tuple(4.0**power * 1024 for power in range(9))  # 1 KiB to 64 MiB
_CLIPS = (1, 2, 4, 8, 16, 32)

# The values of labels. The series exist from the start, so that `rate` counts the first event.
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 429, 431, 499, 500, 503, 504)
STAGES = ("receive", "decode_wait", "decode", "encode", "queue", "inference", "respond")
DECODER_FAILURES = (
    *("unsupported_media", "corrupt_clip", "no_frames", "clip_too_long", "resolution_too_large", "decode_timeout"),
    *("decoder_crashed", "decoder_fault"),
)
CONNECTION_REFUSALS = ("bad_request", "head_too_large", "head_timeout", "send_timeout", "too_many_connections")


class Metrics:
    """The metrics of one application.

    Each instance has a registry of its own, so that several applications in one process (in tests) do not mix.
    """

    def __init__(self) -> None:
        # Nothing reads the time at which each series was created.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.request_seconds = Histogram(
            "limelight_request_seconds",
            "Seconds from a prediction request's arrival to the last byte of its answer.",
            ["status"],
            buckets=_SECONDS,
            registry=registry,
        )
        for status in STATUSES:
            self.request_seconds.labels(str(status))
        self.stage_seconds = Histogram(
            "limelight_stage_seconds",
            "Seconds of one request in one stage: receive, decode_wait, decode, encode, queue, inference or respond.",
            ["stage"],
            buckets=_SECONDS,
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
        self.last_inference = Gauge(
            "limelight_last_inference_timestamp_seconds",
            "Time of the last successful inference, in seconds since 1970; 0 before the first.",
            registry=registry,
        )
        self.clip_seconds = Histogram(
            "limelight_clip_seconds",
            "Duration of decoded clips in seconds.",
            buckets=_CLIP_SECONDS,
            registry=registry,
        )
        self.upload_bytes = Histogram(
            "limelight_upload_bytes",
            "Size of received clips, and of the bodies of v2, in bytes.",
            buckets=_BYTES,
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
