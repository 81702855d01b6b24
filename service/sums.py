"""Several processes as one: what they have counted, added up, for /metrics and the statistics extension."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from time import time_ns
from typing import Any

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from pydantic import BaseModel

_GAUGES = {
    "focalserve_queue_images", "process_open_fds", "process_resident_memory_bytes", "process_virtual_memory_bytes"
}  # fmt: skip
"""That are summed; others are the first process's own."""
_LASTING = {"counter", "histogram"}
_MOST_SIZES = 1024
"""Batch sizes that are counted by themselves: a request of many rows is a batch, of any size."""

Row = tuple[str, str, dict[str, str], float]
"""A sample: family, name, labels, value."""


@dataclass(slots=True)
class ModelSums:
    """Sums of one model since it was loaded.

    Attributes:
        images: that were run.
        runs: of the net.
        queue_ns: that images waited.
        input_ns: of decoding.
        infer_ns: of the runs.
        output_ns: of putting answers into bytes.
        succeeded: requests.
        failed: requests.
        total_ns: of the requests that succeeded.
        failed_ns: of those that did not.
        last_ms: when the last one was answered, milliseconds since 1970; 0: none was.
        by_size: runs and their nanoseconds by batch size.
    """

    images: int = 0
    runs: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    succeeded: int = 0
    failed: int = 0
    total_ns: int = 0
    failed_ns: int = 0
    last_ms: int = 0
    by_size: dict[int, tuple[int, int]] = field(default_factory=dict)

    def batch(self, size: int, queued_seconds: float, run_seconds: float) -> None:
        """A batch was run."""
        self.queue_ns += round(queued_seconds * 1e9)
        self.run(size, run_seconds)
        count, ns = self.by_size.get(size, (0, 0))
        if count or len(self.by_size) < _MOST_SIZES:
            self.by_size[size] = count + 1, ns + round(run_seconds * 1e9)

    def run(self, size: int, seconds: float) -> None:
        """So many images (rows) were run."""
        self.images += size
        self.runs += 1
        self.infer_ns += round(seconds * 1e9)

    def request(self, ok: bool, seconds: float) -> None:
        """A request for the model was answered."""
        took = round(seconds * 1e9)
        if ok:
            self.succeeded += 1
            self.total_ns += took
            self.last_ms = time_ns() // 1_000_000
        else:
            self.failed += 1
            self.failed_ns += took

    def plus(self, other: "ModelSums") -> "ModelSums":
        """Both."""
        names = [one.name for one in fields(self) if one.name not in ("by_size", "last_ms")]
        by_size = dict(self.by_size)
        for size, (count, ns) in other.by_size.items():
            before = by_size.get(size, (0, 0))
            by_size[size] = before[0] + count, before[1] + ns
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return ModelSums(**sums, last_ms=max(self.last_ms, other.last_ms), by_size=by_size)


CountedModel = tuple[str, str, ModelSums]
"""A model's name, its version and its sums."""


class Sums(BaseModel):
    """What one process has counted.

    Attributes:
        samples: of its metrics that can be added.
        models: name, version and sums of each model.
    """

    samples: list[Row] = []
    models: list[CountedModel] = []

    @classmethod
    def read(cls, collector: Collector, models: Iterable[CountedModel]) -> "Sums":
        """As they are now."""
        families = [one for one in collector.collect() if one.name in _GAUGES or one.type in _LASTING]
        samples = [
            (one.name, sample.name, sample.labels, sample.value)
            for one in families
            for sample in one.samples
            if not sample.name.endswith("_created")
        ]
        return cls(samples=samples, models=list(models))

    def lasting(self) -> "Sums":
        """What stays when the process is no more."""
        return Sums(samples=[row for row in self.samples if row[0] not in _GAUGES])

    def of_model(self, name: str, version: str) -> ModelSums:
        """One model's."""
        return next((sums for *key, sums in self.models if key == [name, version]), ModelSums())


class Summed(Collector):
    """Metrics of this process and others.

    Args:
        own: metrics of this process.
        others: what the others have counted.
    """

    def __init__(self, own: Collector, others: Sequence[Sums]) -> None:
        self._own = own
        self._others = added(others)

    def collect(self) -> Iterator[Metric]:
        """What a scrape gets."""
        more: dict[str, list[Row]] = {}
        for row in self._others.samples:
            more.setdefault(row[0], []).append(row)
        for family in self._own.collect():
            if family.name in more:
                own = [(family.name, sample.name, sample.labels, sample.value) for sample in family.samples]
                rows = _added([*own, *more[family.name]])
                family.samples = [Sample(name, labels, value) for _, name, labels, value in rows]
            yield family


def added(several: Iterable[Sums]) -> Sums:
    """The sums of several processes' metrics; of models there are none."""
    return Sums(samples=_added([row for sums in several for row in sums.samples]))


def _added(rows: Iterable[Row]) -> list[Row]:
    """Rows of the same name and labels made one, in the order of the first."""
    found: dict[Any, Row] = {}
    for family, name, labels, value in rows:
        key = name, *labels.items()
        found[key] = (family, name, labels, value + (found[key][3] if key in found else 0.0))
    return list(found.values())
