"""The task of a detector, one image at a time: labels to numbers, detections in the original, scores of given boxes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.box_causes import judge_boxes
from models.box_labels import read_boxes, refuse_outside
from models.box_missing import MissingBoxes, missing_boxes
from models.box_quality import box_signs
from models.box_view import View, box_focal, own_anchors, view_image
from models.boxes import TIE, BoxLabels, Floats, Indices, box_areas, make_anchors, to_input, to_original
from models.card import ImageInput, ModelCard
from models.class_logits import ClassLogits
from models.detector_loss import DetectorLoss, detector_loss
from models.detector_spec import DetectorSpec
from models.errors import InvalidInput
from models.objectlab import ObjectLab, objectlab_of
from models.task import ScoreOptions

Bools = NDArray[np.bool_]
_VISIBLE = 0.5


@dataclass(frozen=True)
class Geometry:
    """How an original became the input: `models.image.Fitted`'s numbers, with the original's size.

    Attributes:
        scale: (x, y) input pixels per pixel of the upright original.
        offset: (x, y) input pixel of the original's left upper corner.
        width: of the original, pixels.
        height: of the original, pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    width: int
    height: int


@dataclass(frozen=True)
class Detections:
    """Detected boxes of one image.

    Attributes:
        xyxy: (D, 4) float64, pixels of the upright original, within the picture.
        labels: (D,) int64.
        scores: (D,) float64 in [0, 1].
    """

    xyxy: Floats
    labels: Indices
    scores: Floats


@dataclass(frozen=True)
class BoxScores:
    """Scores of the M given boxes of one image; row i is box i. Where `valid` is False the numbers mean nothing.

    Attributes:
        loss: of the image.
        valid: (M,) bool; False for crowds and ignored labels, for boxes of which the input shows less than half (a
            centre crop), and for those that no anchor overlaps.
        losses: (M,) focal loss of each box with the gamma and alpha asked for: sum over classes, mean over its anchors.
        best_iou: (M,) largest IoU with a prediction of at least .05.
        quality: (M,) in [0, 1], 0 = surely wrong; never with alpha.
        is_issue: (M,) bool.
        cause: (M,) int64, index into models.box_causes.CAUSES; 0, `none`, where it is no issue.
        causes: (M, 4) in [0, 1], see models.box_causes.Judgement.
        suggested_labels: (M,) int64, the likeliest class; -1 where that is the given one.
        suggested_boxes: (M, 4), pixels of the original, within it; NaN where the detector sees nothing near.
        missing: objects that nobody drew, pixels of the original, by falling score.
        objectlab: the boxes' scores by ObjectLab, NaN where a box is ignored; None where they were not asked for.
    """

    loss: DetectorLoss
    valid: Bools
    losses: Floats
    best_iou: Floats
    quality: Floats
    is_issue: Bools
    cause: Indices
    causes: Floats
    suggested_labels: Indices
    suggested_boxes: Floats
    missing: MissingBoxes
    objectlab: ObjectLab | None = None


class Detection:
    """Boxes with one label each; a sigmoid per class and no background class."""

    def targets(self, label: Any, card: ModelCard) -> BoxLabels:
        """Given boxes from their wire form, `models.box_labels`.

        Raises:
            InvalidLabel: not of that form, naming the place; what lies outside the picture is refused by `score`.
        """
        return read_boxes(label, card.labels)

    def predict(
        self,
        boxes: NDArray[np.floating],
        labels: NDArray[np.integer],
        scores: NDArray[np.floating],
        geometry: Geometry,
    ) -> Detections:
        """One image's final detections in its own pixels, clipped to it; what lies outside it is left out.

        Args:
            boxes: (D, 4), input pixels; D may be 0.
            labels: (D,) classes.
            scores: (D,) in [0, 1].
            geometry: of the image.
        """
        found = _to_picture(np.reshape(boxes, (-1, 4)), geometry)
        kept = box_areas(found) > 0.0
        return Detections(found[kept], np.asarray(labels, np.int64)[kept], np.asarray(scores, np.float64)[kept])

    def score(
        self,
        cls_logits: ClassLogits,
        box_deltas: NDArray[np.floating],
        labels: BoxLabels,
        geometry: Geometry,
        card: ModelCard,
        options: ScoreOptions,
    ) -> BoxScores:
        """Scores the given boxes of one image, each on its own, and lists what they miss.

        Args:
            cls_logits: (A, K), the graph's row.
            box_deltas: (A, 4), the graph's row.
            labels: given boxes, pixels of the original.
            geometry: of the image.
            card: of the model.
            options: gamma, alpha, label smoothing; boxes of the class `ignore_index` are ignored as crowds are.

        Raises:
            InvalidInput: arrays that do not fit the model, a parameter out of its range, or a box outside the picture.
        """
        spec = detector_of(card)
        if cls_logits.shape[-1] != len(card.labels):
            raise InvalidInput(
                f"cls_logits has {cls_logits.shape[-1]} columns; the model has {len(card.labels)} labels"
            )
        refuse_outside(labels, geometry.width, geometry.height)
        boxes = to_input(labels.xyxy, geometry.scale, geometry.offset)
        view = view_image(cls_logits, box_deltas, make_anchors(spec, card.input.height, card.input.width))
        ignored = labels.ignored | (labels.labels == options.ignore_index) | ~_is_visible(boxes, geometry, card.input)
        owned, known = own_anchors(view, boxes[~ignored], spec)
        asked = np.flatnonzero(~ignored)[known]
        given = labels.labels[asked]
        signs = box_signs(view, owned, boxes[asked], given, spec)
        thought, count = judge_boxes(signs, spec.calibrator), len(labels)
        losses = box_focal(view, owned, given, options.gamma, options.alpha, options.label_smoothing)
        other = np.where(signs.suggested_label == given, -1, signs.suggested_label)
        return BoxScores(
            loss=detector_loss(view, boxes, labels.labels, ignored, spec, options),
            valid=_spread(np.ones(len(asked), bool), asked, count, False),
            losses=_spread(losses, asked, count, 0.0),
            best_iou=_spread(signs.best_iou, asked, count, 0.0),
            quality=_spread(thought.quality, asked, count, 1.0),
            is_issue=_spread(thought.is_issue, asked, count, False),
            cause=_spread(thought.cause, asked, count, 0),
            causes=_spread(thought.causes, asked, count, 0.0),
            suggested_labels=_spread(other, asked, count, -1),
            suggested_boxes=_spread(_to_picture(signs.suggested_box, geometry), asked, count, np.nan),
            missing=_missing_in_picture(missing_boxes(view, boxes, ignored, spec.missing_calibrator), geometry),
            objectlab=_objectlab(view, boxes, labels.labels, ignored, geometry) if options.objectlab else None,
        )


def detector_of(card: ModelCard) -> DetectorSpec:
    """The card's detector.

    Raises:
        InvalidInput: the model is a classifier.
    """
    if card.detector is None:
        raise InvalidInput(f"model {card.name} is no detector")
    return card.detector


def _to_picture(boxes: NDArray[np.floating], geometry: Geometry) -> Floats:
    """Boxes (N, 4) from input pixels to pixels of the original, clipped to it; NaN stays."""
    found = to_original(boxes, geometry.scale, geometry.offset)
    return np.asarray(np.clip(found, 0.0, np.tile([geometry.width, geometry.height], 2)))


def _is_visible(boxes: Floats, geometry: Geometry, spec: ImageInput) -> Bools:
    """(M,) whether the input shows at least half of what the picture shows of each box (input pixels)."""
    size = np.array([geometry.width, geometry.height], np.float64)
    corners = to_input(np.concatenate([[0.0, 0.0], size])[None], geometry.scale, geometry.offset)[0]
    pictured = np.clip(boxes, np.tile(corners[:2], 2), np.tile(corners[2:], 2))
    shown = np.clip(pictured, 0.0, np.tile([spec.width, spec.height], 2))
    return np.asarray(box_areas(shown) >= (_VISIBLE - TIE) * box_areas(pictured))


def _objectlab(view: View, boxes: Floats, labels: Indices, ignored: Bools, geometry: Geometry) -> ObjectLab:
    asked = np.flatnonzero(~ignored)
    size = geometry.width * geometry.scale[0], geometry.height * geometry.scale[1]
    found = objectlab_of(view, boxes[asked], labels[asked], size)
    located, swapped = (_spread(each, asked, len(boxes), np.nan) for each in (found.badly_located, found.swapped))
    return ObjectLab(found.overlooked, located, swapped)


def _missing_in_picture(found: MissingBoxes, geometry: Geometry) -> MissingBoxes:
    xyxy = _to_picture(found.xyxy, geometry)
    kept = box_areas(xyxy) > 0.0
    return MissingBoxes(xyxy[kept], found.labels[kept], found.scores[kept])


def _spread(values: NDArray[Any], rows: Indices, count: int, rest: float) -> NDArray[Any]:
    """Values of some rows in an array of all, the others filled with `rest`."""
    out = np.full((count, *values.shape[1:]), rest, values.dtype)
    out[rows] = values
    return out
