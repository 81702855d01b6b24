"""Focal losses of labelled traffic as a Prometheus histogram, by model, version and given label: drift shows in it."""

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from models.task import Floats

_BOUNDS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
Series = tuple[str, str, str]


class LabelLosses(Collector):
    """Counts whole arrays at once, which prometheus_client's own histogram cannot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Series, NDArray[np.int64]] = {}
        self._sums: dict[Series, float] = {}

    def observe(self, series: Series, losses: Floats) -> None:
        """Adds losses.

        Args:
            series: model, version, given label.
            losses: (N,), natural logarithm, >= 0.
        """
        places = np.searchsorted(_BOUNDS, losses, side="left")
        counts = np.bincount(places, minlength=len(_BOUNDS) + 1).astype(np.int64)
        with self._lock:
            self._counts[series] = self._counts.get(series, np.zeros_like(counts)) + counts
            self._sums[series] = self._sums.get(series, 0.0) + float(losses.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape gets."""
        family = HistogramMetricFamily(
            "focalserve_label_loss",
            "Focal loss of given labels, as the model's card computes it.",
            labels=("model", "version", "label"),
        )
        with self._lock:
            for series, counts in self._counts.items():
                bounds = [*map(str, _BOUNDS), "+Inf"]
                buckets = list(zip(bounds, counts.cumsum().tolist(), strict=True))
                family.add_metric(series, buckets, self._sums[series])
        yield family
