"""An item of /loss for a detector: whether it fits the model, and its arrays where it brings them. No HTTP."""

import numpy as np

from models.boxes import make_anchors
from models.card import ModelCard
from models.class_logits import HostLogits
from models.detect import Geometry, detector_of
from service.detector import Raw
from service.errors import BodyTooLarge, InvalidRequest
from service.loss_item import LossItem

PICTURES_AT_ONCE = 16
"""Pictures whose raw outputs are held at once: those of one may be megabytes."""
MOST_BOXES = 5000
"""Given boxes of one picture: what scoring them costs grows with anchors times boxes."""


def check_item(card: ModelCard, item: LossItem) -> None:
    """Refuses an item that is none of a detector, before anything of it is read.

    Raises:
        InvalidRequest: no boxes, or arrays that do not fit the model.
        BodyTooLarge: too many boxes.
    """
    if item.boxes is None:
        raise InvalidRequest(f"model {card.name} is a detector; give boxes, not a label")
    if len(item.boxes) > MOST_BOXES:
        raise BodyTooLarge(f"boxes: more than {MOST_BOXES} of one image")
    if item.image is not None:
        return
    if item.cls_logits is None or item.box_deltas is None:
        raise InvalidRequest("a detector's rows are cls_logits [A, K] and box_deltas [A, 4]")
    anchors = len(make_anchors(detector_of(card), card.input.height, card.input.width))
    wanted = (anchors, len(card.labels)), (anchors, 4)
    if (item.cls_logits.shape, item.box_deltas.shape) != wanted:
        raise InvalidRequest(f"cls_logits and box_deltas of model {card.name} are {wanted}")


def arrays_of(card: ModelCard, item: LossItem) -> Raw:
    """Arrays that came in the body: their boxes are in pixels of the input. Too large a number becomes infinite."""
    place = Geometry((1.0, 1.0), (0.0, 0.0), card.input.width, card.input.height)
    with np.errstate(over="ignore"):
        logits, deltas = np.asarray(item.cls_logits, np.float32), np.asarray(item.box_deltas, np.float32)
    return Raw(HostLogits(logits), deltas, place)
