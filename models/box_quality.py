"""What speaks against given boxes: signs read off one pass of a detector, and boxes that nobody drew.

Each sign is of one given box and the detector's outputs alone: no other label, no batch mate and no scale of pixels
has a part in it, so that a box scores the same wherever it is asked about.

A box's own anchors are those that would learn it (IoU >= `positive_iou`, or its best): what the detector says there it
says of the label. Where its predictions end up is another matter: the own anchors of a badly drawn box run away to the
object it was meant for.
"""

from dataclasses import dataclass

import numpy as np

from models.box_view import SEEN, Owned, View, box_focal, largest, largest_other, means
from models.boxes import TIE, Floats, Indices, Pairs, overlapping_pairs, paired_iou, parts_of
from models.detector_spec import DetectorSpec

SWAP_RATE = 0.1
"""Share of labels taken to be swapped, before anything is seen, by `doubted`."""
_NEAR, _ON, _SUGGESTED = 0.25, 0.5, 0.2
_RIVAL = 0.5
_FURTHEST = 5.0
_POOL_FLOOR = 1e-6
_TINY = 1e-300


@dataclass(frozen=True)
class BoxSigns:
    """Signs of M given boxes. (M,) float64 each but for the last two.

    All lie in [0, 1], but `focal`, `aside`, `resized` and `scatter`, which are >= 0.

    Attributes:
        located: `near` times the mean of `pull` and 1 - `fit`: how far off it lies, by what there is near.
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
        pull: mean of 1 - IoU(prediction, box) over the own anchors, weighted by their `sure`.
        fit: IoU with the box that is suggested; 0 where there is none.
        reach: largest product of `sure` and IoU.
        aside: how far the suggested box's centre lies from the given one's, in sides of the given box, along x or y:
            the larger of the two; 0 where there is none.
        resized: absolute log-ratio of the suggested box's sides to the given ones: the larger; 0 where there is none.
        firm: largest IoU with a prediction whose `sure` is at least half of `near`.
        scatter: how much the own anchors disagree: standard deviation of their predictions' corners weighted by `sure`,
            in sides of the given box, mean over the four; 5 at most.
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
    aside: Floats
    resized: Floats
    firm: Floats
    scatter: Floats
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
    rows, pooled = np.arange(len(labels)), _pool(view, owned)
    posterior = pooled * swap_matrix(spec, view.logits.shape[1])[:, labels].T
    posterior /= posterior.sum(axis=1, keepdims=True)
    sure, given = view.sure[owned.anchor], labels[owned.box]
    own, away = largest(sure, owned.box, len(labels)), 1.0 - paired_iou(boxes[owned.box], view.boxes[owned.anchor])
    pull = means(sure * away, owned) / np.maximum(means(sure, owned), _TINY)
    around = [_around(view, boxes[a:b], labels[a:b]) for a, b in parts_of(len(boxes), len(view.boxes))]
    columns = (np.concatenate(part) for part in zip(*around, strict=True))
    near, on, on_given, on_other, reach, firm, best_iou, fit, best = columns
    suggested = best.astype(np.int64)
    suggested_box = np.where(suggested[:, None] >= 0, view.boxes[suggested], np.nan)
    aside, resized = _offsets(boxes, np.where(suggested[:, None] >= 0, suggested_box, boxes))
    return BoxSigns(
        located=near * (pull + 1.0 - fit) / 2.0,
        swapped=(1.0 - pooled[rows, labels] + largest_other(pooled, labels)) / 2.0,
        doubted=np.maximum(1.0 - posterior[rows, labels], 0.0),
        spurious=1.0 - np.maximum(own, on),
        focal=box_focal(view, owned, labels),
        own=own,
        near=near,
        on=on,
        given=means(view.p_of(owned.anchor, given), owned),
        other=means(_other(view, owned.anchor, given), owned),
        on_given=on_given,
        on_other=on_other,
        pull=pull,
        fit=fit,
        reach=reach,
        aside=aside,
        resized=resized,
        firm=firm,
        scatter=_scatter(view, owned, boxes),
        best_iou=best_iou,
        suggested_label=pooled.argmax(axis=1),
        suggested_box=suggested_box,
    )


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


def _pool(view: View, owned: Owned) -> Floats:
    """The class distribution (M, K) summed over each box's own anchors, rows sum to 1."""
    anchors, place = np.unique(owned.anchor, return_inverse=True)
    p, sums = view.p_rows(anchors), np.zeros((len(owned), view.logits.shape[1]))
    # Box by box: the pairs of all of them times the classes would be a large array.
    for k, rows in enumerate(np.split(place, owned.starts[1:-1]) if len(owned) else ()):
        sums[k] = p[rows].sum(axis=0)
    sums += _POOL_FLOOR
    return np.asarray(sums / sums.sum(axis=1, keepdims=True))


def _offsets(boxes: Floats, others: Floats) -> tuple[Floats, Floats]:
    """How far others (M, 4) lie from boxes (M, 4) and how much their sides differ, (M,) each, as `aside`, `resized`."""
    sides, other_sides = boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2]
    way = np.abs(others[:, :2] + others[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2.0 / sides
    return way.max(axis=1, initial=0.0), np.abs(np.log(other_sides / sides)).max(axis=1, initial=0.0)


def _scatter(view: View, owned: Owned, boxes: Floats) -> Floats:
    """The sign of that name, (M,)."""
    weights = view.sure[owned.anchor]
    total = np.maximum(means(weights, owned), _TINY)
    sides, found = boxes[:, 2:] - boxes[:, :2], np.zeros(len(owned))
    for k in range(4):
        corner = view.boxes[owned.anchor, k]
        apart = corner - (means(weights * corner, owned) / total)[owned.box]
        found += np.sqrt(means(weights * apart**2, owned) / total) / sides[:, k % 2] / 4.0
    return np.minimum(found, _FURTHEST)


def _around(view: View, boxes: Floats, labels: Indices) -> tuple[Floats, ...]:
    """What the predictions around some boxes say, (M,) each, in the order of `box_signs`."""
    pairs, count = overlapping_pairs(boxes, view.boxes), len(labels)
    seen = view.sure[pairs.second]
    hit = pairs.iou >= _ON - TIE
    box, anchor = pairs.first[hit], pairs.second[hit]
    near = largest(np.where(pairs.iou >= _NEAR - TIE, seen, 0.0), pairs.first, count)
    return (
        near,
        largest(view.sure[anchor], box, count),
        largest(view.p_of(anchor, labels[box]), box, count),
        largest(_other(view, anchor, labels[box]), box, count),
        largest(pairs.iou * seen, pairs.first, count),
        largest(np.where(seen >= _RIVAL * near[pairs.first], pairs.iou, 0.0), pairs.first, count),
        largest(np.where(seen > SEEN, pairs.iou, 0.0), pairs.first, count),
        *_best_prediction(view, pairs, count),
    )


def _other(view: View, anchors: Indices, given: Indices) -> Floats:
    """The largest probability (P,) of a class but the given ones (P,) at anchors (P,)."""
    return np.where(view.top[anchors] == given, view.second[anchors], view.sure[anchors])


def _best_prediction(view: View, pairs: Pairs, count: int) -> tuple[Floats, Floats]:
    """The prediction of IoU >= .2 with the largest any * sqrt(IoU), the first among equals: IoU and index (M,).

    Where there is none: 0 and -1.
    """
    hit = np.flatnonzero(pairs.iou >= _SUGGESTED - TIE)
    box, merit = pairs.first[hit], view.any[pairs.second[hit]] * np.sqrt(pairs.iou[hit])
    equal = np.flatnonzero(merit >= largest(merit, box, count)[box] - TIE)
    boxes, firsts = np.unique(box[equal], return_index=True)
    chosen = hit[equal[firsts]]
    iou, best = np.zeros(count), np.full(count, -1.0)
    iou[boxes], best[boxes] = pairs.iou[chosen], pairs.second[chosen]
    return iou, best
