from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60)
_CLIP_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_BYTES = tuple(4.0**power * 1024 for power in range(9))  # 1 KiB to 64 MiB
_CLIPS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The service's Prometheus metrics, in a registry of their own: two apps in one process never mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.request_seconds = Histogram(
            "limelight_request_seconds",
            "From a prediction request's arrival to the last byte of its answer.",
            ["status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "limelight_stage_seconds",
            "Time of one request in one stage: receive, decode_wait, decode, encode, queue, inference or respond.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "limelight_batch_size", "Clips in one inference, padding not counted.", buckets=_CLIPS, registry=registry
        )
        self.queue_depth = Gauge(
            "limelight_queue_depth", "Clips that wait: for a decoder, or for the engine.", ["queue"], registry=registry
        )
        self.in_flight_requests = Gauge(
            "limelight_in_flight_requests", "Prediction requests being received or answered.", registry=registry
        )
        self.admitted_clips = Gauge(
            "limelight_admitted_clips", "Clips that wait or are worked on, of all requests.", registry=registry
        )
        self.capacity_clips = Gauge(
            "limelight_capacity_clips", "Admitted clips beyond which more are refused.", registry=registry
        )
        self.rejected = Counter(
            "limelight_rejected", "Prediction requests answered by a problem.", ["code"], registry=registry
        )
        self.clip_seconds = Histogram(
            "limelight_clip_seconds", "Duration of the decoded clips.", buckets=_CLIP_SECONDS, registry=registry
        )
        self.upload_bytes = Histogram(
            "limelight_upload_bytes", "Size of the received clips.", buckets=_BYTES, registry=registry
        )
        self.decoder_failures = Counter(
            "limelight_decoder_failures", "Clips that could not be decoded.", ["reason"], registry=registry
        )
        self.sandbox = Gauge(
            "limelight_sandbox",
            "1 for each layer that keeps decoders from doing harm, 0 where the kernel lacks it.",
            ["layer"],
            registry=registry,
        )
        self.model = Info("limelight_model", "The model that answers.", registry=registry)
        self.ready = Gauge("limelight_ready", "1 while more predictions may be sent here, else 0.", registry=registry)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)
