"""Charts of the reports as HTML and SVG: what was given and suggested, the classes, the losses."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from scripts.pages import html_table

_BINS = 30
_MOST_CLASSES = 30


def heat_table(labels: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Flagged labels by class as given (row) and as suggested (column), (K, K); empty for more than 30 classes."""
    if len(labels) > _MOST_CLASSES:
        return ""
    most = max(1, int(counts.max()))
    lines = ["<tr><th>given \\ suggested</th>" + "".join(f"<th>{escape(label)}</th>" for label in labels) + "</tr>"]
    for label, row in zip(labels, counts.tolist(), strict=True):
        cells = "".join(f'<td style="background: rgb(209 96 61 / {0.85 * n / most:.2f})">{n or ""}</td>' for n in row)
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return f'<h2>Flagged labels: given and suggested</h2><div class="scroll"><table>{"".join(lines)}</table></div>'


def class_bars(
    labels: Sequence[str],
    counts: NDArray[np.int64],
    flagged: Mapping[int, int],
    what: str,
    more: Mapping[str, Mapping[int, int]] | None = None,
) -> str:
    """How many labels each class has, and how many of them are flagged, the largest class first.

    Args:
        labels: of the K classes.
        counts: (K,).
        flagged: by class.
        what: is counted.
        more: columns of other counts, by class.
    """
    more = more or {}
    rows = []
    for k in np.argsort(-counts, kind="stable").tolist():
        width = 240.0 * counts[k] / max(1, int(counts.max()))
        bad = width * flagged.get(k, 0) / max(1, int(counts[k]))
        bar = (
            f'<svg width="240" height="12" role="img" aria-label="{counts[k]}">'
            f'<rect class="bar" width="{width:.1f}" height="12"/>'
            f'<rect class="bad" width="{bad:.1f}" height="12"/></svg>'
        )
        others = [f"{column.get(k, 0):,}" for column in more.values()]
        rows.append([escape(labels[k]), f"{counts[k]:,}", f"{flagged.get(k, 0):,}", *others, bar])
    ratio = counts.max() / max(1, int(counts.min()))
    head = ["class", what, "flagged", *more, ""]
    return f"<h2>Classes</h2><p>Imbalance {ratio:.1f} : 1.</p>" + html_table(head, rows)


def loss_histogram(loss: NDArray[np.float64], flagged: NDArray[np.bool_]) -> str:
    """Losses of all labels and of the flagged ones, (N,) each; bars as the logarithm of their count."""
    edges = np.linspace(0.0, max(1e-9, float(loss.max(initial=0.0))), _BINS + 1)
    every, bad = np.histogram(loss, edges)[0], np.histogram(loss[flagged], edges)[0]
    scale = 150.0 / np.log1p(max(1, int(every.max())))
    bars = []
    for k in range(_BINS):
        for name, count in (("bar", every[k]), ("bad", bad[k])):
            high = scale * float(np.log1p(count))
            bars.append(f'<rect class="{name}" x="{20 * k}" y="{150 - high:.1f}" width="18" height="{high:.1f}">'
                        f"<title>{edges[k]:.2f} to {edges[k + 1]:.2f}: {count}</title></rect>")  # fmt: skip
    axis = f'<text x="0" y="168">0</text><text x="600" y="168" text-anchor="end">loss {edges[-1]:.2f}</text>'
    return (
        "<h2>Loss</h2><p>Of all labels, and in the other colour of the flagged ones; heights are logarithmic.</p>"
        '<svg viewBox="0 0 600 172" width="600" role="img" aria-label="histogram of the loss">'
        f"{''.join(bars)}{axis}</svg>"
    )
