"""The losses of predicted boxes, anchor by anchor (numpy). `models.nets` holds their torch twins."""

import numpy as np
from numpy.typing import NDArray

from models.boxes import Floats, box_areas

BETA = 1.0 / 9.0


def smooth_l1(deltas: NDArray[np.floating], targets: NDArray[np.floating]) -> Floats:
    """Smooth L1 of box deltas: d^2 / (2 beta) where |d| < beta = 1/9, else |d| - beta / 2, summed over the four.

    Args:
        deltas: (N, 4), as the net gives them.
        targets: (N, 4), as `models.boxes.encode_boxes` makes them.

    Returns:
        (N,) float64, >= 0.
    """
    gap = np.abs(np.asarray(deltas, np.float64) - targets)
    near = np.minimum(gap, BETA)  # the square of what lies within beta, the rest linear: no overflow far away
    return np.asarray((near**2 / (2.0 * BETA) + gap - near).sum(axis=1))


def giou_loss(boxes: NDArray[np.floating], targets: NDArray[np.floating]) -> Floats:
    """1 - generalised IoU of boxes with their targets, row by row (Rezatofighi et al. 2019).

    Args:
        boxes: (N, 4), pixels; x1 <= x2, y1 <= y2.
        targets: (N, 4), the same frame.

    Returns:
        (N,) float64 in [0, 2]: 0 for the same box, above 1 where they do not touch.
    """
    first, second = np.asarray(boxes, np.float64), np.asarray(targets, np.float64)
    common = _extent(np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]))
    hull = _extent(np.maximum(first[:, 2:], second[:, 2:]) - np.minimum(first[:, :2], second[:, :2]))
    union = box_areas(first) + box_areas(second) - common
    iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0.0)
    empty = np.divide(hull - union, hull, out=np.zeros_like(common), where=hull > 0.0)
    return np.asarray(1.0 - iou + empty)


def _extent(sides: Floats) -> Floats:
    return np.asarray(np.clip(sides, 0.0, None).prod(axis=1))
