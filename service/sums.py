"""Several processes as one: what they have counted, added up, for /metrics and the statistics extension."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
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

Row = tuple[str, str, dict[str, str], float]
"""A sample: family, name, labels, value."""


@dataclass(slots=True)
class ModelSums:
    """Sums of one model since it was loaded.

    Attributes:
        images: that were run.
        runs: of the net.
        queue_ns: that images waited.
        infer_ns: of the runs.
        succeeded: requests.
        failed: requests.
        total_ns: of the requests.
        by_size: runs and their nanoseconds by batch size.
    """

    images: int = 0
    runs: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    succeeded: int = 0
    failed: int = 0
    total_ns: int = 0
    by_size: dict[int, tuple[int, int]] = field(default_factory=dict)

    def batch(self, size: int, queued_seconds: float, run_seconds: float) -> None:
        """A batch was run."""
        self.images += size
        self.runs += 1
        self.queue_ns += round(queued_seconds * 1e9)
        took = round(run_seconds * 1e9)
        self.infer_ns += took
        count, ns = self.by_size.get(size, (0, 0))
        self.by_size[size] = count + 1, ns + took

    def request(self, ok: bool, seconds: float) -> None:
        """A request for the model was answered."""
        self.succeeded += ok
        self.failed += not ok
        self.total_ns += round(seconds * 1e9)

    def plus(self, other: "ModelSums") -> "ModelSums":
        """Both."""
        names = [one.name for one in fields(self) if one.name != "by_size"]
        by_size = dict(self.by_size)
        for size, (count, ns) in other.by_size.items():
            before = by_size.get(size, (0, 0))
            by_size[size] = before[0] + count, before[1] + ns
        return ModelSums(**{name: getattr(self, name) + getattr(other, name) for name in names}, by_size=by_size)


class Sums(BaseModel):
    """What one process has counted.

    Attributes:
        samples: of its metrics that can be added.
        models: name, version and sums of each model.
    """

    samples: list[Row] = []
    models: list[tuple[str, str, ModelSums]] = []

    @classmethod
    def read(cls, collector: Collector, models: Iterable[tuple[str, str, ModelSums]]) -> "Sums":
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
