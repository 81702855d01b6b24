"""Objects that the detector sees and nobody drew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.box_view import SEEN, View
from models.boxes import TIE, Floats, Indices, box_areas, box_iou, intersections, suppress

LEAST_MISSING = 0.5
"""From this score on an object that nobody drew is an issue."""
_SUPPRESS_IOU = 0.5
_MOST_CANDIDATES = 5000


@dataclass(frozen=True)
class MissingBoxes:
    """Predictions that no given box explains, by falling score.

    Attributes:
        xyxy: (R, 4) float64, pixels of the frame they were asked in.
        labels: (R,) int64, the likeliest class.
        scores: (R,) in [0, 1]: probability of the class times 1 - the largest IoU with a given box.
    """

    xyxy: Floats
    labels: Indices
    scores: Floats


def missing_boxes(view: View, boxes: Floats, ignored: NDArray[np.bool_]) -> MissingBoxes:
    """Predictions of at least .05 that survive suppression whatever their class, and how little each is covered.

    Args:
        view: of the image.
        boxes: (M, 4), all given boxes, input pixels.
        ignored: (M,) bool; what lies in one of these is covered by the share of its area that does.

    Returns:
        All survivors; of very many candidates the surest 5,000 are looked at.
    """
    candidates = np.flatnonzero(view.sure > SEEN)
    candidates = candidates[np.argsort(-view.sure[candidates], kind="stable")[:_MOST_CANDIDATES]]
    kept = candidates[suppress(view.boxes[candidates], view.sure[candidates], _SUPPRESS_IOU + TIE)]
    found = view.boxes[kept]
    inside = intersections(found, boxes[ignored]) / np.maximum(box_areas(found), 1e-300)[:, None]
    covers = np.concatenate([box_iou(found, boxes[~ignored]), inside], axis=1)
    scores = view.sure[kept] * (1.0 - np.minimum(covers.max(axis=1, initial=0.0), 1.0))
    order = np.argsort(-scores, kind="stable")
    return MissingBoxes(found[order], view.top[kept[order]], scores[order])
