"""What /loss needs to judge given boxes, learnt on the validation part at export: confusion and calibrator.

The validation boxes are taken to be right, and some are spoilt on purpose (models.box_noise). The errors are injected:
what a calibrator makes of people's errors is not measured by this.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.box_causes import box_features, fit_calibrator
from models.box_missing import Survivors, find_survivors, finds, fit_missing, largest_share, missing_features
from models.box_noise import WAYS, BoxNoise, Spoilt, spoil_boxes
from models.box_quality import BoxSigns, box_signs
from models.box_view import View, own_anchors, view_image
from models.boxes import BoxLabels, Floats, make_anchors
from models.class_logits import HostLogits
from models.detector_spec import DetectorSpec
from models.fit import Pixels
from models.nets.served import ServedDetector
from scripts.batches import Store, prefetch

_AT_ONCE = 8
_NOISE = BoxNoise(shift=0.25, swap=0.25, invent=0.25, ways=WAYS)
_LOSSES = BoxNoise(drop=0.2, shift=0.2, swap=0.2, invent=0.2, ways=WAYS)
_EXPECTED = (0.85, 0.05, 0.05, 0.05)
_HIDDEN = 0.5
_Rows = tuple[Floats, NDArray[Any]]
_FEWEST_BOXES, _ENOUGH_BOXES, _MOST_ROUNDS = 50, 10_000, 20


def fit_label_checks(
    detector: DetectorSpec,
    served: ServedDetector,
    store: Store,
    truth: Sequence[BoxLabels],
    classes: int,
    device: torch.device,
) -> DetectorSpec:
    """The detector with its confusion and its calibrator; without a calibrator where there are fewer than 50 boxes.

    Args:
        detector: of the served net.
        served: the net.
        store: the validation images.
        truth: their boxes, input pixels.
        classes: K.
        device: of the net.
    """
    confused = detector.model_copy(
        update={"confusion": measure_confusion(detector, served, store, truth, classes, device).tolist()}
    )
    views = view_images(detector, served, store, len(truth), device)
    return fit_calibrators(views, truth, confused, served.size, classes)


def fit_calibrators(
    views: Iterable[View], truth: Sequence[BoxLabels], spec: DetectorSpec, size: tuple[int, int], classes: int
) -> DetectorSpec:
    """The detector with its calibrators; without where there are fewer than 50 boxes, or none that was dropped is seen.

    Far more boxes are spoilt than people spoil, in every way that is known, and the shares then put right: a calibrator
    that has seen one way of drawing a box badly takes the others for sound. Missing objects are learnt beside all
    other errors: the object of a badly drawn box looks missing, too.

    Args:
        views: what the detector says of each image.
        truth: the images' boxes, input pixels.
        spec: of the detector, with its confusion.
        size: (height, width) of the input.
        classes: K.
    """
    boxes = sum(int((~own.ignored).sum()) for own in truth)
    if boxes < _FEWEST_BOXES:
        return spec.model_copy(update={"calibrator": None, "missing_calibrator": None})
    rounds = min(_MOST_ROUNDS, max(2, math.ceil(_ENOUGH_BOXES / boxes)))
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    given, predicted = list[_Rows](), list[_Rows]()
    for own, view in zip(truth, views, strict=True):
        survivors = find_survivors(view)
        for _ in range(rounds):
            spoilt = spoil_boxes(own, (size[1], size[0]), classes, _NOISE, rng)
            signs, rows = look_at(view, spoilt.labels, spec)
            given.append((box_features(signs), spoilt.causes[rows]))
            spoilt = spoil_boxes(own, (size[1], size[0]), classes, _LOSSES, other)
            predicted.append(_look_for_missing(survivors, own, spoilt))
    features, causes = _stack(given)
    fitted = {"calibrator": fit_calibrator(features, causes, expected=_EXPECTED), "missing_calibrator": None}
    features, missing = _stack(predicted)
    if missing.any():
        fitted["missing_calibrator"] = fit_missing(features, missing)
    return spec.model_copy(update=fitted)


def measure_confusion(
    detector: DetectorSpec,
    served: ServedDetector,
    store: Store,
    truth: Sequence[BoxLabels],
    classes: int,
    device: torch.device,
) -> Floats:
    """(K, K), row j: what the detector takes validation objects of class j for; where there are none, itself."""
    counts = np.zeros((classes, classes))
    for own, view in zip(truth, view_images(detector, served, store, len(truth), device), strict=True):
        signs, rows = look_at(view, own, detector)
        np.add.at(counts, (own.labels[rows], signs.suggested_label), 1.0)
    counts[counts.sum(axis=1) == 0.0] += np.eye(classes)[counts.sum(axis=1) == 0.0]
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def look_at(view: View, boxes: BoxLabels, detector: DetectorSpec) -> tuple[BoxSigns, NDArray[np.int64]]:
    """The signs of an image's boxes, and whose they are: ignored boxes and those that no anchor overlaps have none."""
    counted = np.flatnonzero(~boxes.ignored)
    owned, known = own_anchors(view, boxes.xyxy[counted], detector)
    rows = counted[known]
    return box_signs(view, owned, boxes.xyxy[rows], boxes.labels[rows], detector), rows


def _look_for_missing(found: Survivors, truth: BoxLabels, spoilt: Spoilt) -> tuple[Floats, NDArray[np.bool_]]:
    """Features of an image's predictions, and which are boxes that were left out; but for those by half in a crowd."""
    features = missing_features(found, spoilt.labels.xyxy[~spoilt.labels.ignored])
    shown = largest_share(found.boxes, truth.xyxy[truth.ignored]) < _HIDDEN
    return features[shown], finds(found, truth.xyxy[spoilt.dropped])[shown]


def _stack(rows: Sequence[_Rows]) -> _Rows:
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def view_images(
    detector: DetectorSpec, served: ServedDetector, store: Store, count: int, device: torch.device
) -> Iterator[View]:
    """What the net says of each image of a store, in its order."""
    anchors = make_anchors(detector, *served.size)
    for logits, deltas in raw_outputs(served, store, count, device):
        yield view_image(HostLogits(logits), deltas, anchors)


def raw_outputs(
    served: ServedDetector, store: Store, count: int, device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Logits (A, K) and deltas (A, 4) of each image of a store, in its order."""
    served.eval()
    for _, pixels in prefetch(store, np.split(np.arange(count), range(_AT_ONCE, count, _AT_ONCE))):
        yield from zip(*_outputs(served, pixels, device), strict=True)


@torch.inference_mode()
def _outputs(
    served: ServedDetector, pixels: Pixels, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    logits, deltas = served(torch.from_numpy(pixels).to(device))[:2]
    return logits.cpu().numpy(), deltas.cpu().numpy()
