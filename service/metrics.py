"""Prometheus metrics of one app: its own registry, base units, histograms."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Everything that /metrics says."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("focalserve_requests", "Requests answered.", ["route", "code"], registry=registry)
        self.latency = Histogram(
            "focalserve_request_seconds", "From request to answer.", ["route"], registry=registry, buckets=_SECONDS
        )
        self.stages = Histogram(
            "focalserve_stage_seconds",
            "Where the time of an image goes: decode, queue, infer.",
            ["model", "stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_size = Histogram(
            "focalserve_batch_size_images", "Images in one run.", ["model"], registry=registry, buckets=_SIZES
        )
        self.rejected = Counter("focalserve_rejected_requests", "Requests refused.", ["reason"], registry=registry)
        self.cancelled = Counter(
            "focalserve_cancelled_requests", "Clients that left before the answer.", registry=registry
        )
        self.dropped = Counter(
            "focalserve_dropped_images", "Images not run, or run for nobody.", ["model"], registry=registry
        )
        self.predictions = Counter(
            "focalserve_predictions", "Images answered, by predicted class.", ["model", "label"], registry=registry
        )
        self.queue_depth = Gauge("focalserve_queue_images", "Images that wait.", ["model"], registry=registry)
        self.info = Gauge(
            "focalserve_model_info", "1 for each model served.", ["model", "version", "provider"], registry=registry
        )
        self.ready = Gauge("focalserve_ready", "1 while /readyz says 200.", registry=registry)

    def expose(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def observer(self, model: str, depth: Callable[[], int]) -> "ModelObserver":
        """What one model's batcher reports to."""
        self.queue_depth.labels(model).set_function(depth)
        return ModelObserver(self, model)


class ModelObserver:
    """Takes what a batcher reports into the metrics."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._size = metrics.batch_size.labels(model)
        self._queue = metrics.stages.labels(model, "queue")
        self._infer = metrics.stages.labels(model, "infer")
        self._dropped = metrics.dropped.labels(model)

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        """A batch was run."""
        self._size.observe(size)
        self._infer.observe(run_seconds)
        for seconds in queued_seconds:
            self._queue.observe(seconds)

    def dropped(self) -> None:
        """A row was dropped since its caller had left."""
        self._dropped.inc()
