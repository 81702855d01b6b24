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
from scripts.charts import class_bars, heat_table, loss_histogram
from scripts.duplicates import Duplicates
from scripts.issues import Judged, names
from scripts.pages import html_table, write_page
from scripts.readers import DataSet, Sample

_THUMBNAIL = 112
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
        loss_histogram(findings.judged.loss, findings.judged.is_issue),
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
    return "" if findings.data.task == "multilabel" else heat_table(findings.data.labels, heat_counts(findings))


def _balance(findings: Findings) -> str:
    data = findings.data
    flagged = Counter(k for row in np.flatnonzero(findings.judged.is_issue).tolist() for k in data.samples[row].classes)
    return class_bars(data.labels, data.counts, flagged, "images")


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
