"""What speaks against given boxes: signs read off one pass of a detector, and boxes that nobody drew.

Each sign is of one given box and the detector's outputs alone: no other label, no batch mate and no scale of pixels
has a part in it, so that a box scores the same wherever it is asked about.

A box's own anchors are those that would learn it (IoU >= `positive_iou`, or its best): what the detector says there it
says of the label. Where its predictions end up is another matter: the own anchors of a badly drawn box run away to the
object it was meant for.
"""

from dataclasses import dataclass, fields

import numpy as np

from models.box_view import SEEN, Owned, View, box_focal, largest_other, means, parts_of
from models.boxes import TIE, Floats, Indices, box_iou
from models.card import DetectorSpec

SWAP_RATE = 0.1
"""Share of labels taken to be swapped, before anything is seen, by `doubted`."""
_NEAR, _ON, _SUGGESTED = 0.25, 0.5, 0.2
_POOL_FLOOR = 1e-6
_TINY = 1e-300


@dataclass(frozen=True)
class BoxSigns:
    """Signs of M given boxes. (M,) float64 each; all but the last two in [0, 1] or, `focal`, >= 0.

    Attributes:
        located: `near` times the mean of 1 - IoU(prediction, box) over the own anchors, weighted by their `sure`.
        swapped: (1 - margin) / 2 of the class distribution pooled over the own anchors; 0 with a single class.
        doubted: 1 - posterior of the given class, from the same distribution and how classes are confused.
        spurious: 1 - the largest `sure` among the own anchors and the predictions of IoU >= .5.
        focal: focal loss of the given class, gamma 2, no alpha, mean over the own anchors.
        own: largest `sure` among the own anchors.
        near: largest `sure` among predictions of IoU >= .25 with the box.
        on: the same at IoU >= .5.
        given: mean probability of the given class over the own anchors.
        other: mean over the own anchors of the largest probability of another class.
        on_given: largest probability of the given class among predictions of IoU >= .5.
        on_other: the same of any other class.
        pull: `located` without `near`.
        fit: IoU with the box that is suggested; 0 where there is none.
        reach: largest product of `sure` and IoU.
        best_iou: largest IoU with a prediction of at least .05.
        suggested_label: (M,) int64, the likeliest class of the pooled distribution.
        suggested_box: (M, 4), input pixels, the prediction of IoU >= .2 that is surest and nearest; NaN if none.
    """

    located: Floats
    swapped: Floats
    doubted: Floats
    spurious: Floats
    focal: Floats
    own: Floats
    near: Floats
    on: Floats
    given: Floats
    other: Floats
    on_given: Floats
    on_other: Floats
    pull: Floats
    fit: Floats
    reach: Floats
    best_iou: Floats
    suggested_label: Indices
    suggested_box: Floats


def box_signs(view: View, owned: Owned, boxes: Floats, labels: Indices, spec: DetectorSpec) -> BoxSigns:
    """The signs of M given boxes.

    Args:
        view: of the image.
        owned: of the boxes, from `own_anchors`.
        boxes: (M, 4), input pixels.
        labels: (M,) given classes.
        spec: with its `confusion` the posterior knows which classes are taken for each other.
    """
    focal, swaps = box_focal(view, owned, labels), swap_matrix(spec, view.p.shape[1])
    parts = [
        _signs(view, owned.part(first, last), boxes[first:last], labels[first:last], focal[first:last], swaps)
        for first, last in parts_of(len(boxes), len(view.anchors))
    ]
    return BoxSigns(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(BoxSigns)))


def swap_matrix(spec: DetectorSpec, classes: int) -> Floats:
    """(K, K), row j: how boxes of class j are labelled. A tenth as another: half evenly, half as the detector errs."""
    if classes == 1:
        return np.ones((1, 1))
    apart = ~np.eye(classes, dtype=bool)
    evenly = apart / (classes - 1.0)
    errs = np.asarray(spec.confusion, np.float64) * apart if spec.confusion else evenly
    total = errs.sum(axis=1, keepdims=True)
    errs = np.where(total > 0.0, errs / np.where(total > 0.0, total, 1.0), evenly)
    return np.asarray((1.0 - SWAP_RATE) * ~apart + SWAP_RATE * (evenly + errs) / 2.0)


def _signs(view: View, owned: Owned, boxes: Floats, labels: Indices, focal: Floats, swaps: Floats) -> BoxSigns:
    rows, iou = np.arange(len(labels)), box_iou(boxes, view.boxes)  # (M, A)
    near, on = (np.where(iou >= least - TIE, view.sure, 0.0).max(axis=1) for least in (_NEAR, _ON))
    p, sure = view.p[owned.anchor], view.sure[owned.anchor]
    own, given_class = _per_box(np.maximum, sure, owned), labels[owned.box]
    away = sure * (1.0 - iou[owned.box, owned.anchor])
    pull = means(away, owned) / np.maximum(means(sure, owned), _TINY)
    pooled = _per_box(np.add, p, owned) + _POOL_FLOOR
    pooled /= pooled.sum(axis=1, keepdims=True)
    posterior = pooled * swaps[:, labels].T
    posterior /= posterior.sum(axis=1, keepdims=True)
    on_given, on_other = _on_the_box(view, iou, labels)
    best = _best_prediction(view, iou)
    return BoxSigns(
        located=near * pull,
        swapped=(1.0 - pooled[rows, labels] + largest_other(pooled, labels)) / 2.0,
        doubted=np.maximum(1.0 - posterior[rows, labels], 0.0),
        spurious=1.0 - np.maximum(own, on),
        focal=focal,
        own=own,
        near=near,
        on=on,
        given=means(p[np.arange(len(p)), given_class], owned),
        other=means(largest_other(p, given_class), owned),
        on_given=on_given,
        on_other=on_other,
        pull=pull,
        fit=np.where(best >= 0, iou[rows, best], 0.0),
        reach=(iou * view.sure).max(axis=1),
        best_iou=np.where(view.sure > SEEN, iou, 0.0).max(axis=1),
        suggested_label=pooled.argmax(axis=1),
        suggested_box=np.where(best[:, None] >= 0, view.boxes[best], np.nan),
    )


def _per_box(join: np.ufunc, values: Floats, owned: Owned) -> Floats:
    """Values (P, ...) of the pairs joined box by box, (M, ...)."""
    return np.asarray(join.reduceat(values, owned.starts[:-1], axis=0)) if len(owned) else values[:0]


def _on_the_box(view: View, iou: Floats, labels: Indices) -> tuple[Floats, Floats]:
    """The largest probability (M,) of the given class, and of another one, among predictions of IoU >= .5."""
    hit = iou >= _ON - TIE
    other = np.where(view.top == labels[:, None], view.second, view.sure)
    given = view.p[:, labels].T
    return np.where(hit, given, 0.0).max(axis=1), np.where(hit, other, 0.0).max(axis=1)


def _best_prediction(view: View, iou: Floats) -> Indices:
    """The prediction (M,) of IoU >= .2 with the largest any * sqrt(IoU), the first among equals; -1 where none."""
    merit = np.where(iou >= _SUGGESTED - TIE, view.any * np.sqrt(iou), -1.0)
    top = merit.max(axis=1)
    return np.where(top >= 0.0, (merit >= top[:, None] - TIE).argmax(axis=1), -1)
