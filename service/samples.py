"""Counts and histograms for Prometheus that cost a request next to nothing: numbers are put by, and counted later."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from models.task import Floats

_MANY = 4096


class Samples:
    """One series of a histogram. Any thread may add to it.

    Args:
        bounds: upper bounds of the buckets but for the last, rising.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_new", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._new: list[float] = []

    def observe(self, value: float) -> None:
        """Adds one number."""
        self._new.append(value)
        if len(self._new) >= _MANY:
            with self._lock:
                self._count_new()

    def add(self, values: Floats) -> None:
        """Adds numbers (N,)."""
        with self._lock:
            self._count(values)

    def read(self) -> tuple[list[int], float]:
        """How many fell into each bucket or one before it, and the sum of all."""
        with self._lock:
            self._count_new()
            return self._counts.cumsum().tolist(), self._sum

    def _count_new(self) -> None:
        # Others may append meanwhile: only what was seen is taken away.
        count = len(self._new)
        values = np.asarray(self._new[:count], np.float64)
        del self._new[:count]
        self._count(values)

    def _count(self, values: Floats) -> None:
        places = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())


class Histograms(Collector):
    """A histogram with labels.

    Args:
        name: with its unit.
        documentation: of it.
        labels: their names.
        bounds: upper bounds of the buckets but for the last, rising.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, bounds
        self._series: dict[tuple[str, ...], Samples] = {}

    def series(self, *labels: str) -> Samples:
        """The series of those labels' values."""
        return self._series.get(labels) or self._series.setdefault(labels, Samples(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape gets."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(str, self._bounds), "+Inf"]
        for labels, samples in list(self._series.items()):
            counts, total = samples.read()
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), total)
        yield family


class Tallies(Collector):
    """A counter with labels, for the event loop alone: its additions are not guarded.

    Args:
        name: without `_total`.
        documentation: of it.
        labels: their names.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: dict[tuple[str, ...], int] = {}

    def count(self, *labels: str) -> None:
        """One more."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What a scrape gets."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family
