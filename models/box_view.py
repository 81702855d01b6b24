"""What a detector says of one image at each of its anchors, and which anchors are a given box's own. Numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.boxes import TIE, Floats, Indices, decode_boxes, overlapping_pairs, parts_of
from models.calibration import log_sigmoid
from models.card import Alpha
from models.class_logits import ClassLogits
from models.detector_spec import DetectorSpec
from models.errors import InvalidInput

GAMMA = 2.0
"""Of the focal loss by which boxes are compared, whatever the model was trained with."""
SEEN = 0.05
"""A prediction below this counts as none."""
_FURTHEST = 1e6


@dataclass(frozen=True)
class View:
    """What a detector says of one image at each of its A anchors; K classes.

    Attributes:
        logits: (A, K).
        top: (A,) int64, the likeliest class.
        sure: (A,) its p, the sigmoid of its logit.
        second: (A,) the next largest p; 0 with a single class.
        any: (A,) 1 - product of (1 - p) over the classes: that there is anything.
        deltas: (A, 4) float64.
        boxes: (A, 4), the deltas decoded: predictions, input pixels.
        anchors: (A, 4), input pixels.
    """

    logits: ClassLogits
    top: Indices
    sure: Floats
    second: Floats
    any: Floats
    deltas: Floats
    boxes: Floats
    anchors: Floats

    def p_rows(self, anchors: Indices) -> Floats:
        """The p (R, K) of all classes at anchors (R,)."""
        return _sigmoid(np.asarray(self.logits.rows(anchors), np.float64))

    def p_of(self, anchors: Indices, classes: Indices) -> Floats:
        """The p (R,) of classes (R,) at anchors (R,)."""
        return _sigmoid(self.logits.of_classes(anchors, classes))


@dataclass(frozen=True)
class Owned:
    """The own anchors of M boxes as pairs, box by box.

    Attributes:
        box: (P,) index of the box, ascending.
        anchor: (P,) index of the anchor.
        starts: (M + 1,) where the pairs of each box begin, and the end; every box has a pair.
    """

    box: Indices
    anchor: Indices
    starts: Indices

    def __len__(self) -> int:
        """M, the number of boxes."""
        return len(self.starts) - 1


def view_image(cls_logits: ClassLogits, box_deltas: NDArray[np.floating], anchors: Floats) -> View:
    """What a detector says of one image.

    Args:
        cls_logits: (A, K), the graph's `cls_logits` of one image.
        box_deltas: (A, 4), its `box_deltas`.
        anchors: (A, 4), input pixels.

    Raises:
        InvalidInput: shapes that do not fit, or a number that is not finite.
    """
    if len(cls_logits.shape) != 2 or cls_logits.shape[0] != len(anchors) or box_deltas.shape != anchors.shape:
        shapes = f"cls_logits {cls_logits.shape} and box_deltas {box_deltas.shape}"
        raise InvalidInput(f"{shapes} are not (A, K) and (A, 4) with the model's {len(anchors)} anchors")
    if not (cls_logits.is_finite and np.isfinite(box_deltas).all()):
        raise InvalidInput("cls_logits and box_deltas must be finite")
    most = cls_logits.summary
    deltas = np.clip(np.asarray(box_deltas, np.float64), -_FURTHEST, _FURTHEST)
    return View(
        logits=cls_logits,
        top=most.top,
        sure=_sigmoid(most.best),
        second=_sigmoid(most.second),
        any=-np.expm1(-most.nothing),
        deltas=deltas,
        boxes=decode_boxes(deltas, anchors),
        anchors=anchors,
    )


def own_anchors(view: View, boxes: Floats, spec: DetectorSpec) -> tuple[Owned, Indices]:
    """The own anchors of each box that overlaps any.

    Args:
        view: of the image.
        boxes: (M, 4), input pixels.
        spec: the matching threshold.

    Returns:
        The pairs, and which of the boxes they are of: ascending indices into boxes, one per box of the pairs.
    """
    found = list[tuple[Indices, Indices]]()
    for first, last in parts_of(len(boxes), len(view.anchors)):
        pairs = overlapping_pairs(boxes[first:last], view.anchors)
        least = np.minimum(largest(pairs.iou, pairs.first, last - first), spec.positive_iou) - TIE
        own = pairs.iou >= least[pairs.first]
        found.append((pairs.first[own] + first, pairs.second[own]))
    boxes_of, anchors = (np.concatenate([part[k] for part in found]) for k in (0, 1))
    known, box, counts = np.unique(boxes_of, return_inverse=True, return_counts=True)
    return Owned(box, anchors, np.concatenate([[0], np.cumsum(counts)])), known


def box_focal(
    view: View, owned: Owned, labels: Indices, gamma: float = GAMMA, alpha: Alpha = None, smoothing: float = 0.0
) -> Floats:
    """Focal loss of given boxes: the sum over classes, as a mean over the own anchors (a sum would grow with the box).

    Args:
        view: of the image.
        owned: of the M boxes.
        labels: (M,) given classes.
        gamma: focusing parameter, >= 0.
        alpha: None, a number in [0, 1], or one per class.
        smoothing: label smoothing, in [0, 1].

    Returns:
        (M,) float64, nats, >= 0.

    Raises:
        InvalidInput: a parameter out of its range.
    """
    return means(view.logits.focal(owned.anchor, labels[owned.box], gamma, alpha, smoothing), owned)


def means(values: Floats, owned: Owned) -> Floats:
    """The mean of each box's pairs, (M,), from values (P,) of the pairs."""
    return np.asarray(np.bincount(owned.box, values, len(owned)) / np.diff(owned.starts))


def largest(values: Floats, box: Indices, count: int) -> Floats:
    """The largest of each box's values, (count,), from values (P,) >= 0 of the boxes box (P,); 0 where it has none."""
    out = np.zeros(count)
    np.maximum.at(out, box, values)
    return out


def largest_other(p: Floats, classes: Indices) -> Floats:
    """The largest entry of each row of p (N, K) but for the class of classes (N,); 0 where there is but one class."""
    others = p.copy()
    others[np.arange(len(p)), classes] = 0.0
    return np.asarray(others.max(axis=1, initial=0.0))


def _sigmoid(logits: Floats) -> Floats:
    return np.exp(log_sigmoid(logits))
