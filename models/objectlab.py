"""ObjectLab's scores of given boxes (Tkachenko, Thyagarajan, Mueller 2023), as cleanlab 2.9 computes them.

Three things are otherwise, where cleanlab's are not sound for a single picture:

- the least similarity m is a constant; there it is a minimum over the data set, so that the same box scores otherwise
  in other company, and a perfect swap in a request of one image scores 1;
- distances are relative to the picture's diagonal, scaled to that of 640 x 480 (where both agree); there they are
  pixels, and a score changes when a picture is resized with its boxes;
- all pairs at once, without loops.

ObjectLab has no score for a box around nothing: such a box gets 1 in all three; models.box_quality has `spurious`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.box_view import SEEN, View
from models.boxes import Floats, Indices, box_iou, suppress

LEAST = 1e-3
"""m, the similarity of boxes that have none."""
_IOU_SHARE = 0.9
_DISTANCE_RATE = 0.1
_DIAGONAL = 800.0
_CONFLICT_IOU = 0.95
_TEMPERATURE = 0.1
_TINY = 1e-100
_MOST = 1000
_SUPPRESSED = 0.5


@dataclass(frozen=True)
class ObjectLab:
    """Scores of one image, 0 = surely wrong, 1 = sound.

    Attributes:
        overlooked: (P,) float64 of each prediction; NaN where it overlaps a given box or is less sure than `high`.
        badly_located: (M,) float64 of each given box.
        swapped: (M,) float64 of each given box.
    """

    overlooked: Floats
    badly_located: Floats
    swapped: Floats

    @property
    def image(self) -> float:
        """The image's score in [0, 1]: the geometric mean of the three kinds' soft minima."""
        kinds = (self.overlooked, self.badly_located, self.swapped)
        return float(np.exp(np.mean([np.log(_TINY + soft_minimum(scores)) for scores in kinds])))


def objectlab_scores(
    boxes: ArrayLike,
    labels: Indices,
    predicted: ArrayLike,
    predicted_labels: Indices,
    scores: NDArray[np.floating],
    size: tuple[float, float],
    low: float = 0.5,
    high: float = 0.95,
) -> ObjectLab:
    """The three scores.

    Args:
        boxes: (M, 4) given boxes, pixels; an empty list will do.
        labels: (M,) their classes.
        predicted: (P, 4) detections, pixels.
        predicted_labels: (P,) their classes.
        scores: (P,) their probabilities.
        size: (width, height) of the picture, pixels.
        low: a prediction speaks of places where its probability exceeds this.
        high: the same of classes, and of objects that nobody drew.
    """
    given, found = (np.asarray(part, np.float64).reshape(-1, 4) for part in (boxes, predicted))
    iou = box_iou(given, found)  # (M, P)
    similar = _IOU_SHARE * iou + (1.0 - _IOU_SHARE) * _nearness(given, found, size)
    same = labels[:, None] == predicted_labels[None, :]
    return ObjectLab(
        _overlooked(similar, iou, same, scores, high),
        _badly_located(similar, iou, same, scores, low),
        _swapped(similar, same, scores, high, _in_conflict(given, labels)),
    )


def objectlab_of(view: View, boxes: Floats, labels: Indices, size: tuple[float, float]) -> ObjectLab:
    """The three scores by what a detector says of an image: its 1,000 surest predictions, suppressed within each class.

    Args:
        view: of the image.
        boxes: (M, 4) given boxes, input pixels.
        labels: (M,) their classes.
        size: (width, height) of what the input shows of the picture, input pixels.
    """
    likely = np.flatnonzero(view.sure > SEEN)
    likely = likely[np.argsort(-view.sure[likely], kind="stable")[:_MOST]]
    own = [likely[view.top[likely] == k] for k in np.unique(view.top[likely])]
    kept = np.concatenate([likely[:0], *(one[suppress(view.boxes[one], view.sure[one], _SUPPRESSED)] for one in own)])
    return objectlab_scores(boxes, labels, view.boxes[kept], view.top[kept], view.sure[kept], size)


def soft_minimum(scores: Floats) -> float:
    """The mean of the scores weighted by exp(-score / .1), NaN left out; 1 where there is none."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return 1.0
    weights = np.exp((known.min() - known) / _TEMPERATURE)
    return float((weights * known).sum() / weights.sum())


def _nearness(given: Floats, found: Floats, size: tuple[float, float]) -> Floats:
    first, second = (given[:, :2] + given[:, 2:]) / 2.0, (found[:, :2] + found[:, 2:]) / 2.0
    distance = np.linalg.norm(first[:, None] - second[None], axis=2) * (_DIAGONAL / np.hypot(*size))
    return np.asarray(np.exp(-_DISTANCE_RATE * distance))


def _overlooked(
    similar: Floats, iou: Floats, same: NDArray[np.bool_], scores: NDArray[np.floating], high: float
) -> Floats:
    nearest = np.where(same, similar, 0.0).max(axis=0, initial=0.0)
    value = np.where(same.any(axis=0), nearest, LEAST * (1.0 - scores))
    return np.where((scores < high) | (iou > 0.0).any(axis=0), np.nan, value)


def _badly_located(
    similar: Floats, iou: Floats, same: NDArray[np.bool_], scores: NDArray[np.floating], low: float
) -> Floats:
    counted = same & (scores > low)[None, :] & (iou > 0.0)
    return np.where(counted.any(axis=1), np.where(counted, similar, 0.0).max(axis=1, initial=0.0), 1.0)


def _swapped(
    similar: Floats, same: NDArray[np.bool_], scores: NDArray[np.floating], high: float, conflict: NDArray[np.bool_]
) -> Floats:
    counted = ~same & (scores > high)[None, :]
    nearest = np.where(counted, similar, 0.0).max(axis=1, initial=0.0)
    value = np.where(counted.any(axis=1), np.maximum(LEAST, 1.0 - nearest), 1.0)
    return np.where(conflict, LEAST, value)


def _in_conflict(given: Floats, labels: Indices) -> NDArray[np.bool_]:
    """(M,) whether another given box of another class is in the same place."""
    return np.asarray(((box_iou(given, given) >= _CONFLICT_IOU) & (labels[:, None] != labels[None, :])).any(axis=1))
