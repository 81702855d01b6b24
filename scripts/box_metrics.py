"""Average precision of detections by COCO's rules, computed by faster-coco-eval (bit-equal to pycocotools)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]
from numpy.typing import NDArray

from models.boxes import BoxLabels, Floats, Indices, box_areas
from models.errors import InvalidInput

_COCO_IOUS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image.

    Attributes:
        xyxy: (D, 4) float, pixels of the frame in which the given boxes are.
        labels: (D,) int64, class indices.
        scores: (D,) float, the higher the surer.
    """

    xyxy: Floats
    labels: Indices
    scores: Floats

    def __len__(self) -> int:
        """D, the number of detections."""
        return len(self.xyxy)


@dataclass(frozen=True)
class ClassPrecision:
    """Average precision of one class: over IoUs .50 to .95, and at .50; None where no box of it counts."""

    label: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class BoxMetrics:
    """Average precision, 0 to 1: the mean over classes that have boxes; None where none has.

    Attributes:
        ap: mean over the IoUs .50, .55, ... .95.
        ap50: at IoU .50.
        ap75: at IoU .75.
        ap_small: as `ap`, of boxes below 32 x 32 pixels.
        ap_medium: as `ap`, of boxes from 32 x 32 to 96 x 96 pixels.
        ap_large: as `ap`, of boxes above.
        recall: share of the boxes that were found, mean over the same IoUs (COCO's AR).
        per_class: in the order of the labels.
        at_iou: IoU to average precision, for those that were asked for.
        max_dets: detections of a class in an image that counted, the best first.
        images: how many there were.
        boxes: given boxes that counted.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall: float | None
    per_class: tuple[ClassPrecision, ...]
    at_iou: dict[float, float | None]
    max_dets: int
    images: int
    boxes: int


def measure_boxes(
    given: Sequence[BoxLabels],
    found: Sequence[Detections],
    labels: Sequence[str],
    *,
    max_dets: int = 100,
    ious: Sequence[float] = (),
) -> BoxMetrics:
    """Average precision of detections against given boxes.

    An ignored box is COCO's crowd: it is no miss, and detections of its class that lie in it are no errors.

    Args:
        given: the boxes of each image.
        found: the detections of each image, in the same order and in the same pixels; sizes are judged in these.
        labels: class names.
        max_dets: detections per image and class that count. COCO's 100 is too few where an image has more boxes.
        ious: further IoUs to measure at, such as .4.

    Raises:
        InvalidInput: not as many images, an unknown class, numbers that are not finite, an IoU outside (0, 1).
    """
    _check(given, found, len(labels), max_dets, ious)
    evaluation = _evaluate(given, found, labels, max_dets, ious)
    # [IoU, recall step, class, size] and [IoU, class, size]; -1 where there are no boxes.
    precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]
    recall = np.asarray(evaluation.eval["recall"], np.float64)[..., 0]
    coco = precision[: len(_COCO_IOUS)]
    counts = np.bincount(np.concatenate([one.labels[~one.ignored] for one in given]), minlength=len(labels)).tolist()
    return BoxMetrics(
        ap=_mean(coco[..., 0]),
        ap50=_mean(coco[0, ..., 0]),
        ap75=_mean(coco[5, ..., 0]),
        ap_small=_mean(coco[..., 1]),
        ap_medium=_mean(coco[..., 2]),
        ap_large=_mean(coco[..., 3]),
        recall=_mean(recall[: len(_COCO_IOUS), :, 0]),
        per_class=tuple(
            ClassPrecision(name, counts[k], _mean(coco[:, :, k, 0]), _mean(coco[0, :, k, 0]))
            for k, name in enumerate(labels)
        ),
        at_iou={iou: _mean(precision[len(_COCO_IOUS) + k, ..., 0]) for k, iou in enumerate(ious)},
        max_dets=max_dets,
        images=len(given),
        boxes=sum(counts),
    )


def redrawn_precision(
    given: Sequence[BoxLabels],
    found: Sequence[Detections],
    labels: Sequence[str],
    draws: Iterable[NDArray[np.int64]],
    *,
    max_dets: int = 100,
) -> NDArray[np.float64]:
    """AP, AP50, AP75 and AP of small, medium and large boxes (D, 6) of D draws of the images, as `measure_boxes` says.

    NaN where a draw has no such boxes.

    Boxes are matched once, so a draw costs a tenth of measuring it.

    Args:
        given: the boxes of each image.
        found: the detections of each image.
        labels: class names.
        draws: rows of the images (I,), with repeats, I as many as there are images.
        max_dets: as of `measure_boxes`.

    Raises:
        InvalidInput: as `measure_boxes`.
    """
    _check(given, found, len(labels), max_dets, ())
    evaluation = _evaluate(given, found, labels, max_dets, (), separate=True)
    # One per class, size and image, the image last; the library has no public name for them.
    matched = evaluation._evalImgs_cpp
    first = range(0, len(matched), len(given))
    rows = []
    for draw in draws:
        evaluation._evalImgs_cpp = [matched[start + k] for start in first for k in draw.tolist()]
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]
        parts = precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *(precision[..., k] for k in (1, 2, 3))
        rows.append([_mean(part) for part in parts])
    return np.asarray(rows, np.float64)


def _evaluate(
    given: Sequence[BoxLabels],
    found: Sequence[Detections],
    labels: Sequence[str],
    max_dets: int,
    ious: Sequence[float],
    *,
    separate: bool = False,
) -> COCOeval_faster:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k} for k in range(1, len(given) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(labels, start=1)],
        "annotations": [row for k, boxes in enumerate(given, start=1) for row in _given_rows(k, boxes)],
    }
    for number, row in enumerate(truth.dataset["annotations"], start=1):  # COCO takes an id of 0 for no match
        row["id"] = number
    truth.createIndex()
    results = truth.loadRes([row for k, one in enumerate(found, start=1) for row in _found_rows(k, one)])
    evaluation = COCOeval_faster(truth, results, iouType="bbox", print_function=_say_nothing, separate_eval=separate)
    evaluation.params.iouThrs = np.concatenate([_COCO_IOUS, ious])
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _check(
    given: Sequence[BoxLabels], found: Sequence[Detections], classes: int, max_dets: int, ious: Sequence[float]
) -> None:
    if len(given) != len(found) or not given:
        raise InvalidInput(f"detections of {len(found)} images for the boxes of {len(given)}")
    if max_dets < 1 or not all(0.0 < iou < 1.0 for iou in ious):
        raise InvalidInput("max_dets must be 1 or more, and an IoU between 0 and 1")
    for k, (boxes, one) in enumerate(zip(given, found, strict=True)):
        if not len(one.xyxy) == len(one.labels) == len(one.scores):
            raise InvalidInput(f"image {k}: {len(one.xyxy)} boxes, {len(one.labels)} labels, {len(one.scores)} scores")
        if not (np.isfinite(one.xyxy).all() and np.isfinite(one.scores).all()):
            raise InvalidInput(f"image {k}: a detection with a number that is not finite")
        for label in (*boxes.labels.tolist(), *one.labels.tolist()):
            if not 0 <= label < classes:
                raise InvalidInput(f"image {k}: there is no class {label}; there are {classes}")


def _given_rows(image: int, boxes: BoxLabels) -> list[dict[str, object]]:
    rows = zip(_sides(boxes.xyxy), boxes.labels.tolist(), boxes.ignored.tolist(), strict=True)
    areas = box_areas(boxes.xyxy).tolist()
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(ignored)}
        for area, (box, label, ignored) in zip(areas, rows, strict=True)
    ]


def _found_rows(image: int, found: Detections) -> list[dict[str, object]]:
    rows = zip(_sides(found.xyxy), found.labels.tolist(), found.scores.tolist(), strict=True)
    return [{"image_id": image, "category_id": label + 1, "bbox": box, "score": score} for box, label, score in rows]


def _sides(xyxy: Floats) -> list[list[float]]:
    boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
    sides: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return sides


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1.0]
    return float(known.mean()) if known.size else None


def _say_nothing(*_: object) -> None:
    """COCO's progress, which nobody reads."""
