"""The training loss of a detector, of one image with its given boxes (numpy)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.box_losses import giou_loss, smooth_l1
from models.box_view import View
from models.boxes import UNCOUNTED, Floats, Indices, encode_boxes, match_anchors
from models.class_logits import NO_CLASS
from models.detector_spec import DetectorSpec
from models.task import ScoreOptions


@dataclass(frozen=True)
class DetectorLoss:
    """The loss of one image, normalised by its own positives, never by a batch's.

    Attributes:
        value: (classification + box_weight * location) / max(1, positives).
        classification: focal loss summed over the classes and over all anchors but the uncounted ones.
        location: loss of the predicted boxes, `DetectorSpec.box_loss`, summed over the positive anchors; not weighted.
        positives: anchors that learn a box.
        counted: anchors in `classification`.
    """

    value: float
    classification: float
    location: float
    positives: int
    counted: int


def detector_loss(
    view: View,
    boxes: Floats,
    labels: Indices,
    ignored: NDArray[np.bool_],
    spec: DetectorSpec,
    options: ScoreOptions,
) -> DetectorLoss:
    """The loss of one image.

    Args:
        view: of the image.
        boxes: (M, 4) given boxes, input pixels, with width and height.
        labels: (M,) their classes; of an ignored box any number.
        ignored: (M,) bool: anchors in these learn nothing.
        spec: matching, and the loss of the boxes.
        options: gamma, alpha and label smoothing of the focal loss.

    Raises:
        InvalidInput: an option out of its range.
    """
    found = match_anchors(view.anchors, boxes, spec, ignored)
    positive = np.flatnonzero(found >= 0)
    classes = np.full(len(found), NO_CLASS)
    classes[positive] = labels[found[positive]]
    counted = np.flatnonzero(found != UNCOUNTED)
    terms = view.logits.focal(counted, classes[counted], options.gamma, options.alpha, options.label_smoothing)
    learnt = boxes[found[positive]]
    if spec.box_loss == "giou":
        apart = giou_loss(view.boxes[positive], learnt)
    else:
        apart = smooth_l1(view.deltas[positive], encode_boxes(learnt, view.anchors[positive]))
    classification, location = float(terms.sum()), float(apart.sum())
    value = (classification + spec.box_weight * location) / max(1, len(positive))
    return DetectorLoss(value, classification, location, len(positive), len(counted))
