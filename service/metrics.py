"""Prometheus metrics of one app: its own registry, base units, histograms."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from models.task import Floats
from service.samples import Histograms, Tallies
from service.sums import ModelSums, Summed, Sums

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_LOSSES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """Everything that /metrics says. What each request touches are tallies and samples, the rest the client's own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Tallies("focalserve_requests", "Requests answered.", ["route", "code"])
        self.latency = Histograms("focalserve_request_seconds", "From request to answer.", ["route"], _SECONDS)
        self.stages = Histograms(
            "focalserve_stage_seconds",
            "Where the time goes: decode and queue of an image, infer of a batch, encode of an answer.",
            ["model", "stage"],
            _SECONDS,
        )
        self.batch_size = Histograms("focalserve_batch_size_images", "Images in one run.", ["model"], _SIZES)
        self.predictions = Tallies("focalserve_predictions", "Images answered, by predicted class.", ["model", "label"])
        self.label_loss = Histograms(
            "focalserve_label_loss",
            "Focal loss of given labels, as the model's card computes it: drift shows in it.",
            ["model", "version", "label"],
            _LOSSES,
        )
        for collector in (
            self.requests, self.latency, self.stages, self.batch_size, self.predictions, self.label_loss
        ):  # fmt: skip
            registry.register(collector)
        self.rejected = Counter("focalserve_rejected_requests", "Requests refused.", ["reason"], registry=registry)
        self.cancelled = Counter(
            "focalserve_cancelled_requests", "Clients that left before the answer.", registry=registry
        )
        self.dropped = Counter(
            "focalserve_dropped_images", "Images not run, or run for nobody.", ["model"], registry=registry
        )
        self.queue_depth = Gauge("focalserve_queue_images", "Images that wait.", ["model"], registry=registry)
        self.info = Gauge(
            "focalserve_model_info", "1 for each model served.", ["model", "version", "provider"], registry=registry
        )
        self.ready = Gauge("focalserve_ready", "1 while /readyz says 200.", registry=registry)

    def expose(self, others: Sequence[Sums] = ()) -> bytes:
        """The text that Prometheus scrapes.

        Args:
            others: what other processes of the service have counted.
        """
        registry = CollectorRegistry()
        registry.register(Summed(self.registry, others))
        return generate_latest(registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.count(route, str(status))
        self.latency.series(route).observe(seconds)

    def observer(self, model: str, version: str) -> "ModelObserver":
        """What one model's batcher and sessions report to."""
        return ModelObserver(self, model, version)


class ModelObserver:
    """Takes what one model does into the metrics, and keeps the sums that statistics show."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._size = metrics.batch_size.series(model)
        self._decode, self._queue, self._infer, self._encode = (
            metrics.stages.series(model, stage) for stage in ("decode", "queue", "infer", "encode")
        )
        self._dropped = metrics.dropped.labels(model)
        self._depth = metrics.queue_depth.labels(model)
        self._metrics = metrics
        self._labels = (model, version)
        self.sums = ModelSums()

    def watch(self, depth: Callable[[], int]) -> None:
        """Where the queue's depth is read."""
        self._depth.set_function(depth)

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        """A batch was run."""
        self._size.observe(size)
        for seconds in queued_seconds:
            self._queue.observe(seconds)
        self.sums.batch(size, sum(queued_seconds), run_seconds)

    def decoded(self, seconds: float) -> None:
        """A picture was decoded."""
        self._decode.observe(seconds)
        self.sums.input_ns += round(seconds * 1e9)

    def inferred(self, seconds: float) -> None:
        """The net ran a batch."""
        self._infer.observe(seconds)

    def encoded(self, seconds: float) -> None:
        """An answer was put into bytes."""
        self._encode.observe(seconds)
        self.sums.output_ns += round(seconds * 1e9)

    def dropped(self) -> None:
        """An item was dropped since its caller had left."""
        self._dropped.inc()

    def predicted(self, label: str) -> None:
        """An image was answered with that class."""
        self._metrics.predictions.count(self._labels[0], label)

    def labelled(self, label: str, losses: Floats) -> None:
        """Items given that label had these focal losses (N,)."""
        self._metrics.label_loss.series(*self._labels, label).add(losses)
