"""What a detector finds on held-out images, measured: average precision, a threshold, and the facts of each class.

All in pixels of the input: IoU does not change when both axes are scaled alike, or each by its own factor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.boxes import BoxLabels, Floats, Indices, box_areas, box_iou, intersections, suppress
from models.card import ClassFacts, Estimate
from models.nets.served import ServedDetector
from scripts.batches import Store, prefetch
from scripts.box_metrics import ClassPrecision, Detections, measure_boxes, redrawn_precision
from scripts.box_pictures import Compared, write_grid
from scripts.evaluate import Score
from scripts.recipes import Diverged

_AT_ONCE = 32
_LEAST_SCORE = 0.05
_SUPPRESSED = 0.5
_MATCH = 0.5
_REPLICATES = 60
_DRAWN, _SHOWN_SCORE = 16, 0.3
_THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.01), 2)


@dataclass(frozen=True)
class BoxReport:
    """All that was measured.

    Attributes:
        metrics: average precision with 95 % intervals over the draw of the images, see `estimate_precision`.
        classes: in the order of the labels; precision, recall and F1 at IoU .5 and the threshold.
        threshold: the score of highest F1 over all classes together.
        text: the same for a person.
    """

    metrics: dict[str, Estimate]
    classes: list[ClassFacts]
    threshold: float
    text: str


def predict_validation(served: ServedDetector, store: Store, count: int, device: torch.device) -> list[Detections]:
    """Detections of all `count` images of a store, in its order.

    Raises:
        Diverged: the logits are no numbers any more.
    """
    served.eval()
    order = np.arange(count)
    found = []
    with torch.inference_mode():
        for _, pixels in prefetch(store, np.split(order, range(_AT_ONCE, count, _AT_ONCE))):
            logits, _, *candidates = served(torch.from_numpy(pixels).to(device))
            if not bool(torch.isfinite(logits).all()):
                raise Diverged("the logits of the validation images are no numbers any more; try a lower --lr")
            boxes, scores, labels = (each.cpu().numpy() for each in candidates)
            found += [choose_boxes(*image) for image in zip(boxes, scores, labels, strict=True)]
    return found


def choose_boxes(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: Indices, least: float = _LEAST_SCORE
) -> Detections:
    """Suppression within each class at IoU .5, of one image's candidates (C, 4), (C,), (C,)."""
    likely = np.flatnonzero(scores > least)
    kept = [likely[own][suppress(boxes[likely[own]], scores[likely[own]], _SUPPRESSED)]
            for own in (labels[likely] == k for k in np.unique(labels[likely]))]  # fmt: skip
    rows = np.concatenate([np.zeros(0, np.int64), *kept])
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return Detections(boxes[rows].astype(np.float64), labels[rows], scores[rows].astype(np.float64))


def hits(found: Detections, truth: BoxLabels) -> NDArray[np.int8]:
    """(D,) 1 where a detection is the best yet unclaimed one of a box of its class at IoU .5, 0 where it is wrong.

    -1 where it lies by half or more in an ignored region and hits nothing: it does not count.
    """
    out = np.zeros(len(found.scores), np.int8)
    overlap = box_iou(found.xyxy, truth.xyxy)
    overlap[:, truth.ignored] = 0.0
    overlap[found.labels[:, None] != truth.labels[None, :]] = 0.0
    for row in range(len(out)):
        best = int(overlap[row].argmax()) if len(truth) else -1
        if best >= 0 and overlap[row, best] >= _MATCH:
            out[row] = 1
            overlap[:, best] = 0.0
    if truth.ignored.any():
        common = intersections(found.xyxy, truth.xyxy[truth.ignored]).max(axis=1)
        out[(out == 0) & (common >= 0.5 * np.maximum(box_areas(found.xyxy), 1e-9))] = -1
    return out


def measure_classes(
    found: Sequence[Detections], truth: Sequence[BoxLabels], labels: Sequence[str], train_counts: NDArray[np.int64],
    max_detections: int,
) -> BoxReport:  # fmt: skip
    """Measures held-out images.

    Args:
        found: what the detector finds in each image.
        truth: the boxes of each image.
        labels: class names.
        train_counts: (K,) training boxes of each class.
        max_detections: of one image that average precision looks at.
    """
    scores = np.concatenate([np.zeros(0), *(own.scores for own in found)])
    classes = np.concatenate([np.zeros(0, np.int64), *(own.labels for own in found)])
    hit = np.concatenate([np.zeros(0, np.int8), *map(hits, found, truth)])
    given = np.concatenate([np.zeros(0, np.int64), *(own.labels[~own.ignored] for own in truth)])
    actual = np.bincount(given, minlength=len(labels))
    threshold = best_threshold(scores, hit, int(actual.sum()))
    shown = (scores > threshold) & (hit >= 0)
    right = np.bincount(classes[shown & (hit == 1)], minlength=len(labels))
    named = np.bincount(classes[shown], minlength=len(labels))
    metrics, per_class = estimate_precision(found, truth, labels, max_detections)
    facts = [
        ClassFacts(
            label=label,
            ap=per_class[k].ap,
            ap50=per_class[k].ap50,
            train_count=int(train_counts[k]),
            prior=float(train_counts[k] / max(1, train_counts.sum())),
            decision_threshold=threshold,
            precision=float(right[k] / named[k]) if named[k] else None,
            recall=float(right[k] / actual[k]) if actual[k] else None,
            f1=float(2 * right[k] / (named[k] + actual[k])) if named[k] + actual[k] else None,
            validation_count=int(actual[k]),
        )
        for k, label in enumerate(labels)
    ]
    return BoxReport(metrics, facts, threshold, format_boxes(metrics, facts, threshold))


def best_threshold(scores: Floats, hit: NDArray[np.int8], actual: int) -> float:
    """The lowest score, in hundredths from .05 to .95, above which F1 over all classes is highest."""
    counted = hit >= 0
    f1 = []
    for threshold in _THRESHOLDS:
        shown = counted & (scores > threshold)
        f1.append(2.0 * (shown & (hit == 1)).sum() / max(1, shown.sum() + actual))
    return float(_THRESHOLDS[int(np.argmax(f1))])


def format_boxes(metrics: dict[str, Estimate], facts: Sequence[ClassFacts], threshold: float) -> str:
    """The report as text: a table of classes, then the metrics."""
    width = max(5, *(len(each.label) for each in facts))
    lines = [
        f"at score {threshold:g} and IoU 0.5:",
        f"{'class':{width}}  {'train':>7}  {'valid':>6}  precision  recall      AP    AP50",
    ]
    for each in facts:
        rates = (each.precision, each.recall, each.ap, each.ap50)
        shown = "  ".join(f"{rate:6.3f}" if rate is not None else "     -" for rate in rates)
        lines.append(f"{each.label:{width}}  {each.train_count:7d}  {each.validation_count:6d}     {shown}")
    lines += [f"{name:9} {each.value:.4f}  (95 %: {each.low:.4f} to {each.high:.4f})" for name, each in metrics.items()]
    return "\n".join(lines)


def score_validation(
    found: Sequence[Detections], truth: Sequence[BoxLabels], labels: Sequence[str], max_detections: int
) -> dict[str, Score]:
    """The scores an epoch is judged by: `ap`, `ap50`, `ap75`.

    Their standard errors are those of a share of the boxes, sqrt(v (1 - v) / boxes), which costs nothing.
    """
    measured = measure_boxes(truth, found, labels, max_dets=max_detections)
    values = {"ap": measured.ap or 0.0, "ap50": measured.ap50 or 0.0, "ap75": measured.ap75 or 0.0}
    boxes = max(1, measured.boxes)
    return {name: Score(value, math.sqrt(value * (1.0 - value) / boxes)) for name, value in values.items()}


def estimate_precision(
    found: Sequence[Detections], truth: Sequence[BoxLabels], labels: Sequence[str], max_detections: int
) -> tuple[dict[str, Estimate], tuple[ClassPrecision, ...]]:
    """Average precision with 95 % intervals: 1.96 standard deviations over 60 bootstrap replicates of the images.

    Returns:
        `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` (by COCO's areas in pixels of the input), those of
        them for which there are boxes; and the precision of each class.
    """
    measured = measure_boxes(truth, found, labels, max_dets=max_detections)
    points = {
        "ap": measured.ap,
        "ap50": measured.ap50,
        "ap75": measured.ap75,
        "ap_small": measured.ap_small,
        "ap_medium": measured.ap_medium,
        "ap_large": measured.ap_large,
    }
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(found), len(found)) for _ in range(_REPLICATES)]
    draws = np.ma.masked_invalid(redrawn_precision(truth, found, labels, rows, max_dets=max_detections))
    margins = (1.96 * draws.std(axis=0)).filled(1.0).tolist()
    estimates = {
        name: Estimate(value=value, low=max(0.0, value - margin), high=min(1.0, value + margin))
        for (name, value), margin in zip(points.items(), margins, strict=True)
        if value is not None
    }
    return estimates, measured.per_class


def draw_validation(
    path: Path, store: Store, truth: Sequence[BoxLabels], found: Sequence[Detections], labels: Sequence[str]
) -> None:
    """Writes a PNG of the first 16 images with the boxes given and those found with a score above .3."""
    count = min(_DRAWN, len(truth))
    pictures = []
    for pixels, given, one in zip(store.take(np.arange(count)), truth, found, strict=False):
        sure = one.scores > _SHOWN_SCORE
        pictures.append(Compared(pixels, given, Detections(one.xyxy[sure], one.labels[sure], one.scores[sure])))
    write_grid(path, pictures, labels)
