"""The report of an audit of boxes: one HTML file with the worst boxes drawn on a part of their pictures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from models.box_causes import CAUSES
from models.errors import InvalidInput
from models.fit import Pixels
from models.image import decode_image
from scripts.box_data import BoxDataSet
from scripts.box_issues import MISSING, BoxIssue
from scripts.box_tables import Box
from scripts.charts import class_bars, heat_table, loss_histogram
from scripts.pages import html_table, write_page

_MARGIN = 0.6  # of the longer side of what is shown
_LEAST = 48.0  # pixels shown around a small box
_MOST_PAIRS = 20
_MOST = 320  # pixels of a picture's side in the report


def write_box_report(path: Path, data: BoxDataSet, issues: Sequence[BoxIssue], show: int, title: str) -> None:
    """Writes the report.

    Args:
        path: of the HTML file.
        data: what was audited.
        issues: all, the worst first, by `scripts.box_issues.find_box_issues`.
        show: how many of the worst to draw: given boxes are red and whole, suggested ones green and dashed.
        title: what the data set is called.
    """
    shown = "".join(_card(rank, issue, data) for rank, issue in enumerate(issues[:show], start=1))
    sections = [
        _summary(data, issues),
        f'<h2>The {min(show, len(issues))} worst</h2><ul class="worst">{shown}</ul>',
        _swaps(data, issues),
        _classes(data, issues),
        _losses(issues),
    ]
    write_page(path, f"Boxes of {title}", sections)


def _summary(data: BoxDataSet, issues: Sequence[BoxIssue]) -> str:
    causes = Counter(issue.cause for issue in issues if issue.is_issue)
    rows = [[escape(cause.replace("_", " ")), f"{causes[cause]:,}"] for cause in (*CAUSES[1:], MISSING)]
    given = sum(issue.given is not None for issue in issues)
    wrong = causes.total() - causes[MISSING]
    return (
        f"<p>{len(data.samples):,} pictures, {len(data.labels)} classes, {given:,} given boxes judged. "
        f"<b>{wrong:,} of them ({wrong / max(1, given):.1%}) look wrong</b>, {causes[MISSING]:,} objects have none.</p>"
        + html_table(["cause", "boxes"], rows)
    )


def _swaps(data: BoxDataSet, issues: Sequence[BoxIssue]) -> str:
    counts = np.zeros((len(data.labels), len(data.labels)), np.int64)
    for issue in issues:
        if issue.is_issue and issue.given is not None and issue.label is not None:
            counts[issue.given[0], issue.label] += 1
    order = np.argsort(-counts, axis=None, kind="stable")[:_MOST_PAIRS]
    rows = [[escape(data.labels[a]), escape(data.labels[b]), str(counts[a, b])]
            for a, b in zip(*np.unravel_index(order, counts.shape), strict=True) if counts[a, b]]  # fmt: skip
    pairs = "<h2>Swapped classes</h2>" + html_table(["given", "suggested", "boxes"], rows) if rows else ""
    return pairs + heat_table(data.labels, counts)


def _classes(data: BoxDataSet, issues: Sequence[BoxIssue]) -> str:
    flagged = Counter(issue.given[0] for issue in issues if issue.is_issue and issue.given is not None)
    missing = Counter(issue.label for issue in issues if issue.cause == MISSING and issue.label is not None)
    return class_bars(data.labels, data.counts, flagged, "boxes", {"missing": missing})


def _losses(issues: Sequence[BoxIssue]) -> str:
    given = [issue for issue in issues if issue.given is not None]
    return loss_histogram(
        np.array([issue.loss for issue in given]), np.array([issue.is_issue for issue in given], bool)
    )


def _card(rank: int, issue: BoxIssue, data: BoxDataSet) -> str:
    sample = data.samples[issue.sample]
    given = "" if issue.given is None else escape(data.labels[issue.given[0]])
    better = "" if issue.label is None else f' → <span class="better">{escape(data.labels[issue.label])}</span>'
    cause = escape(issue.cause.replace("_", " ")) if issue.is_issue else "no issue"
    place = escape(data.relative(sample)) + ("" if issue.box_id is None else f", box {escape(str(issue.box_id))}")
    return (
        f"<li>{_drawing(issue, data)}<div>{cause}: {given}{better}</div>"
        f"<small>{rank}. {place}<br>quality {issue.quality:.4f}</small></li>"
    )


def _drawing(issue: BoxIssue, data: BoxDataSet) -> str:
    """The part of the picture with the box, and both boxes on it; empty where the picture cannot be read any more."""
    try:
        pixels = decode_image(data.samples[issue.sample].path.read_bytes())
    except (InvalidInput, OSError):
        return ""
    boxes = [] if issue.given is None else [("was", issue.given[1])]
    boxes += [] if issue.box is None else [("new", issue.box)]
    x1, y1, x2, y2 = _region([box for _, box in boxes], pixels.shape[1], pixels.shape[0])
    lines = "".join(
        f'<rect class="box {kind}" x="{a - x1:.2f}" y="{b - y1:.2f}" width="{c - a:.2f}" height="{d - b:.2f}"/>'
        for kind, (a, b, c, d) in boxes
    )
    return (
        f'<svg viewBox="0 0 {x2 - x1} {y2 - y1}" width="100%" height="150" role="img" aria-label="the box">'
        f'<image href="{_encoded(pixels[y1:y2, x1:x2])}" width="{x2 - x1}" height="{y2 - y1}"/>{lines}</svg>'
    )


def _region(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels (x1, y1, x2, y2) around boxes, within the picture."""
    corners = np.array(boxes)
    start, end = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    room = max(_LEAST / 2.0, _MARGIN * float((end - start).max()))
    low = np.clip(np.floor(start - room), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(end + room), low + 1, [width, height]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _encoded(pixels: Pixels) -> str:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_MOST, _MOST))
    image.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
