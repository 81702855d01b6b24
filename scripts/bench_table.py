"""The lines that `focalserve bench` measures, their medians over rounds, and the table that it prints."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One measured line.

    Attributes:
        name: of the line.
        per_second: images (rows of /loss) per second.
        ratio: to the limit of the same work in the same round; None for lines that are no service's.
        p50_ms: median latency of a request.
        p99_ms: 99th percentile.
        cpu_ms: processor time of the service per image (row).
        rss_mb: memory of the service after it.
    """

    name: str
    per_second: float
    ratio: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms: float | None = None
    rss_mb: float | None = None


def median_row(rows: Sequence[Row]) -> Row:
    """The medians of the same line in several rounds."""

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    return Row(
        rows[0].name,
        middle([row.per_second for row in rows]) or 0.0,
        middle([row.ratio for row in rows]),
        middle([row.p50_ms for row in rows]),
        middle([row.p99_ms for row in rows]),
        middle([row.cpu_ms for row in rows]),
        middle([row.rss_mb for row in rows]),
    )


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    print(f"{'':40} {'per s':>10} {'ratio':>6} {'p50 ms':>9} {'p99 ms':>9} {'CPU ms':>8} {'RSS MB':>7}")
    forms = ("6.2f", "9.2f", "9.2f", "8.4f", "7.0f")
    for row in rows:
        values = (row.ratio, row.p50_ms, row.p99_ms, row.cpu_ms, row.rss_mb)
        cells = [
            f"{value:{form}}" if value is not None else "-".rjust(int(form[0]))
            for value, form in zip(values, forms, strict=True)
        ]
        print(f"{row.name:40} {row.per_second:10.1f} {' '.join(cells)}")
