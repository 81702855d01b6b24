"""The audit's report: one HTML file that needs nothing else, with the worst labels as pictures."""

import base64
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import InvalidInput
from models.image import decode_image
from scripts.duplicates import Duplicates
from scripts.issues import Judged, names
from scripts.pages import html_table, write_page
from scripts.readers import DataSet, Sample

_THUMBNAIL = 112
_BINS = 30
_MOST_CLASSES = 30
_MOST_TWINS = 100
_MOST_PAIRS = 20


@dataclass(frozen=True)
class Findings:
    """All that the report shows.

    Attributes:
        data: what was audited.
        judged: scores, as its samples.
        worst: position and row of issues.csv of the labels to show, the worst first.
        duplicates: images that are there twice with different labels.
        in_sample: the model was trained on this very data.
    """

    data: DataSet
    judged: Judged
    worst: list[tuple[int, dict[str, Any]]]
    duplicates: Duplicates
    in_sample: bool = False


def write_report(path: Path, findings: Findings, title: str) -> None:
    """Writes the report.

    Args:
        path: of the HTML file.
        findings: what to show.
        title: what the data set is called.
    """
    sections = [
        _summary(findings),
        _worst(findings),
        _pairs(findings),
        _heat(findings),
        _balance(findings),
        _histogram(findings),
        _twins(findings),
    ]
    write_page(path, f"Labels of {title}", sections)


def heat_counts(findings: Findings) -> NDArray[np.int64]:
    """(K, K) how many flagged labels were given as the row and suggested as the column; one label per image only."""
    classes = len(findings.data.labels)
    out = np.zeros((classes, classes), np.int64)
    for row in np.flatnonzero(findings.judged.is_issue).tolist():
        out[findings.data.samples[row].classes[0], findings.judged.suggested[row][0]] += 1
    return out


def thumbnail(sample: Sample) -> str:
    """The image as a data: URI of a small PNG; empty where it cannot be read any more."""
    try:
        image = Image.fromarray(decode_image(sample.path.read_bytes()))
    except (InvalidInput, OSError):
        return ""
    image.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if max(image.size) <= 64 else "JPEG", quality=85)
    kind = "png" if max(image.size) <= 64 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _summary(findings: Findings) -> str:
    judged, data = findings.judged, findings.data
    per = "labels" if data.task != "multilabel" else "yes-or-no labels"
    count = len(data.samples) * (len(data.labels) if data.task == "multilabel" else 1)
    lines = [
        f"<p>{len(data.samples):,} images, {len(data.labels)} classes. About <b>{judged.wrong:,.0f} of {count:,} {per} "
        f"({judged.wrong / count:.1%}) are wrong</b>, as estimated; {int(judged.is_issue.sum()):,} images are flagged. "
        f"Quality is the {escape(', '.join(sorted(set(judged.methods))))}.</p>"
    ]
    if findings.in_sample:
        lines.append('<p class="warn">in_sample: the model was trained on this very data. Labels that it has learnt by '
                     "heart look right, wrong ones too.</p>")  # fmt: skip
    if any(method == "probability of the given label" for method in judged.methods):
        lines.append('<p class="warn">The probabilities are not calibrated well enough for the posterior; the ranking '
                     "is by the probability of the given label, and the count may be far off.</p>")  # fmt: skip
    if data.skipped:
        lines.append(f"<p>{len(data.skipped)} images were left out; summary.json lists them.</p>")
    return "\n".join(lines)


def _worst(findings: Findings) -> str:
    cards = []
    for position, row in findings.worst:
        source = thumbnail(findings.data.samples[position])
        better = f' → <span class="better">{_said(row["suggested_label"])}</span>' if row["is_label_issue"] else ""
        given = f'<span class="{"given" if better else ""}">{_said(row["given_label"])}</span>'
        cards.append(
            f'<li><img src="{source}" alt=""><div>{given}{better}</div>'
            f"<small>{row['rank']}. {escape(row['image'])}<br>quality {row['label_score']:.4f}, loss {row['loss']:.2f}"
            "</small></li>"
        )
    return f'<h2>The {len(cards)} worst labels</h2><ul class="worst">{"".join(cards)}</ul>'


def _pairs(findings: Findings) -> str:
    joint = findings.judged.joint
    if joint is None:
        return ""
    off = joint * (1.0 - np.eye(len(joint)))
    order = np.argsort(-off, axis=None)[:_MOST_PAIRS]
    rows = [
        [
            escape(findings.data.labels[k]),
            escape(findings.data.labels[j]),
            f"{off[j, k]:.0f}",
            f"{off[j, k] / joint[:, k].sum():.1%}",
        ]
        for j, k in zip(*np.unravel_index(order, off.shape), strict=True)
        if off[j, k] >= 0.5
    ]
    head = ["given", "but is", "about", "of those given"]
    return "<h2>Estimated errors by pair</h2>" + html_table(head, rows) if rows else ""


def _heat(findings: Findings) -> str:
    labels = findings.data.labels
    if findings.data.task == "multilabel" or len(labels) > _MOST_CLASSES:
        return ""
    counts = heat_counts(findings)
    most = max(1, int(counts.max()))
    lines = ["<tr><th>given \\ suggested</th>" + "".join(f"<th>{escape(label)}</th>" for label in labels) + "</tr>"]
    for label, row in zip(labels, counts.tolist(), strict=True):
        cells = "".join(f'<td style="background: rgb(209 96 61 / {0.85 * n / most:.2f})">{n or ""}</td>' for n in row)
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return f'<h2>Flagged labels: given and suggested</h2><div class="scroll"><table>{"".join(lines)}</table></div>'


def _balance(findings: Findings) -> str:
    data, counts = findings.data, findings.data.counts
    flagged = Counter(k for row in np.flatnonzero(findings.judged.is_issue).tolist() for k in data.samples[row].classes)
    rows = []
    for k in np.argsort(-counts, kind="stable").tolist():
        width = 240.0 * counts[k] / max(1, int(counts.max()))
        bad = width * flagged[k] / max(1, int(counts[k]))
        bar = (
            f'<svg width="240" height="12" role="img" aria-label="{counts[k]}">'
            f'<rect class="bar" width="{width:.1f}" height="12"/>'
            f'<rect class="bad" width="{bad:.1f}" height="12"/></svg>'
        )
        rows.append([escape(data.labels[k]), f"{counts[k]:,}", f"{flagged[k]:,}", bar])
    ratio = counts.max() / max(1, int(counts.min()))
    return f"<h2>Classes</h2><p>Imbalance {ratio:.1f} : 1.</p>" + html_table(["class", "images", "flagged", ""], rows)


def _histogram(findings: Findings) -> str:
    """Losses of all labels and of the flagged ones; bars as the logarithm of their count."""
    loss, issue = findings.judged.loss, findings.judged.is_issue
    edges = np.linspace(0.0, max(1e-9, float(loss.max())), _BINS + 1)
    every, bad = np.histogram(loss, edges)[0], np.histogram(loss[issue], edges)[0]
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


def _twins(findings: Findings) -> str:
    same, near = findings.duplicates.same, findings.duplicates.near
    if not same and not near:
        return "<h2>Duplicates</h2><p>No picture is there twice with different labels.</p>"
    said = f"{len(same)} images are there twice, byte for byte, with different labels"
    return (
        f"<h2>Duplicates</h2><p>{said}; {len(near)} look the same as one with another label.</p>"
        f"{_twin_rows(findings, same, 'the same as')}{_twin_rows(findings, near, 'looks the same as')}"
    )


def _twin_rows(findings: Findings, pairs: Mapping[int, int], relation: str) -> str:
    data = findings.data
    rows = [
        [
            part
            for place in (row, other)
            for part in (
                f'<img src="{thumbnail(data.samples[place])}" alt="" width="56"> '
                f"{escape(data.relative(data.samples[place]))}",
                _said(names(data.samples[place].classes, data)),
            )
        ]
        # Both directions of one pair are one row.
        for row, other in sorted(pairs.items())
        if pairs.get(other) != row or row < other
    ]
    return html_table(["image", "given", relation, "given"], rows[:_MOST_TWINS]) if rows else ""


def _said(label: str | list[str] | None) -> str:
    return escape(", ".join(label) if isinstance(label, list) else label or "") or "(none)"
