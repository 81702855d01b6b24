"""Objects that the detector sees and nobody drew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.box_calibrator import LOG_FLOOR, apply_regression, fit_regression
from models.box_view import SEEN, View
from models.boxes import TIE, Floats, Indices, box_areas, box_iou, intersections, overlapping_pairs, suppress
from models.detector_spec import BoxCalibrator

LEAST_MISSING = 0.5
"""From this score on an object that nobody drew is an issue."""
SIGNS = ("sure", "second", "support", "cover", "inside", "claim")
FEATURES = (*SIGNS, *(f"log {name}" for name in SIGNS))
"""What a calibrator may weigh: six signs of a prediction, and their logarithms."""
_KINDS = ("none", "missing")
_SUPPRESS_IOU = 0.5
_SUPPORT_IOU = 0.5
_FOUND_IOU = 0.5
_TINY = 1e-300
_MOST_CANDIDATES = 5000


@dataclass(frozen=True)
class MissingBoxes:
    """Predictions that no given box explains, by falling score.

    Attributes:
        xyxy: (R, 4) float64, pixels of the frame they were asked in.
        labels: (R,) int64, the likeliest class.
        scores: (R,) in [0, 1]: from a calibrator the probability that nobody drew it; else the probability of the
            class times 1 - the largest IoU with a given box.
    """

    xyxy: Floats
    labels: Indices
    scores: Floats


@dataclass(frozen=True)
class Survivors:
    """Predictions of at least .05 that survive suppression whatever their class, the surest first.

    Attributes:
        boxes: (R, 4), input pixels.
        labels: (R,) int64, the likeliest class.
        sure: (R,) its p.
        second: (R,) the next largest p.
        support: (R,) sum of `sure` over all predictions of at least .05 that lie at IoU >= .5 with it.
    """

    boxes: Floats
    labels: Indices
    sure: Floats
    second: Floats
    support: Floats


def find_survivors(view: View) -> Survivors:
    """The survivors of an image; of very many predictions the surest 5,000 are looked at."""
    candidates = np.flatnonzero(view.sure > SEEN)
    candidates = candidates[np.argsort(-view.sure[candidates], kind="stable")[:_MOST_CANDIDATES]]
    kept = candidates[suppress(view.boxes[candidates], view.sure[candidates], _SUPPRESS_IOU + TIE)]
    pairs = overlapping_pairs(view.boxes[kept], view.boxes[candidates])
    upon = pairs.iou >= _SUPPORT_IOU - TIE
    support = np.bincount(pairs.first[upon], view.sure[candidates][pairs.second[upon]], len(kept))
    return Survivors(
        view.boxes[kept], view.top[kept], view.sure[kept], view.second[kept], np.asarray(support, np.float64)
    )


def missing_features(found: Survivors, boxes: Floats) -> Floats:
    """What tells whether predictions were drawn by somebody.

    `cover` is the largest IoU with a given box, `inside` the largest share of the prediction's area that lies in one.
    `claim` tells whether a given box may be this prediction, badly drawn: where it is another's it says nothing of this
    one. It is the largest product of IoU and the share that `sure` times IoU has beside that of the best other
    prediction upon the box.

    Args:
        found: the R survivors of the image.
        boxes: (M, 4), given boxes, input pixels.

    Returns:
        (R, 12), columns as FEATURES.
    """
    iou = box_iou(found.boxes, boxes)
    fit = iou * found.sure[:, None]
    second, first = np.sort(np.concatenate([fit, np.zeros((2, len(boxes)))]), axis=0)[-2:]
    share = fit / np.maximum(fit + np.where(fit >= first, second, first), _TINY)
    cover, claim = (each.max(axis=1, initial=0.0) for each in (iou, iou * share))
    inside = largest_share(found.boxes, boxes)
    signs = np.stack([found.sure, found.second, found.support, cover, inside, claim], axis=1)
    return np.concatenate([signs, np.log(signs + LOG_FLOOR)], axis=1)


def largest_share(boxes: Floats, regions: Floats) -> Floats:
    """The largest share (N,) of the area of each of boxes (N, 4) that lies in one of some regions (M, 4); in [0, 1]."""
    shares = intersections(boxes, regions) / np.maximum(box_areas(boxes), _TINY)[:, None]
    return np.asarray(np.minimum(shares.max(axis=1, initial=0.0), 1.0))


def finds(found: Survivors, gone: Floats) -> NDArray[np.bool_]:
    """(R,) whether a survivor is the surest at IoU >= .5 upon one of some boxes (D, 4) that were left out."""
    upon = box_iou(found.boxes, gone) >= _FOUND_IOU - TIE
    hit = np.zeros(len(upon), bool)
    if len(upon):
        hit[upon.argmax(axis=0)[upon.any(axis=0)]] = True
    return hit


def fit_missing(features: Floats, missing: NDArray[np.bool_]) -> BoxCalibrator:
    """The calibrator of missing objects.

    Args:
        features: (N, 12), of survivors in images some of whose boxes were left out on purpose, columns as FEATURES.
        missing: (N,) which of them are such a box, by `finds`.

    Raises:
        InvalidInput: all are, or none.
    """
    return fit_regression(features, missing.astype(np.int64), FEATURES, _KINDS)


def missing_boxes(
    view: View, boxes: Floats, ignored: NDArray[np.bool_], calibrator: BoxCalibrator | None = None
) -> MissingBoxes:
    """The survivors of an image, and how probable it is that nobody drew them.

    Args:
        view: of the image.
        boxes: (M, 4), all given boxes, input pixels.
        ignored: (M,) bool; what lies in one of these is covered by the share of its area that does.
        calibrator: the card's, of missing objects.

    Raises:
        BundleError: the calibrator weighs a feature, or names a kind, that is not known.
    """
    found = find_survivors(view)
    hidden = largest_share(found.boxes, boxes[ignored])
    if calibrator is None:
        covers = box_iou(found.boxes, boxes[~ignored]).max(axis=1, initial=0.0)
        scores = found.sure * (1.0 - np.maximum(covers, hidden))
    else:
        features = missing_features(found, boxes[~ignored])
        p = apply_regression(calibrator, features, FEATURES, _KINDS, "detector.missing_calibrator")[:, 1]
        scores = p * (1.0 - hidden)
    order = np.argsort(-scores, kind="stable")
    return MissingBoxes(found.boxes[order], found.labels[order], scores[order])
