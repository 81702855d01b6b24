"""Scenes of boxes, and what a fair detector would say of them: a stand-in for a trained one, with known truth."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.box_noise import BoxNoise, Spoilt, spoil_boxes
from models.box_quality import BoxSigns, box_signs
from models.box_view import View, own_anchors, view_image
from models.boxes import BoxLabels, Floats, box_iou, encode_boxes, make_anchors
from models.card import ModelCard
from models.class_logits import HostLogits
from models.detector_spec import AnchorLevel, DetectorSpec
from models.image import encode_png
from tests.conftest import noise

SIDE = 128
SPEC = DetectorSpec(
    levels=[AnchorLevel(stride=8, sizes=[20, 28]), AnchorLevel(stride=16, sizes=[40, 56])], ratios=[0.5, 1.0, 2.0]
)
ANCHORS = make_anchors(SPEC, SIDE, SIDE)
MIXED = BoxNoise(drop=0.05, shift=0.05, swap=0.05, invent=0.05)


@dataclass(frozen=True)
class Scene:
    """A picture's true boxes and what the detector says of it, (A, K) and (A, 4) float32."""

    truth: BoxLabels
    cls_logits: NDArray[np.float32]
    box_deltas: NDArray[np.float32]

    @property
    def view(self) -> View:
        return view_image(HostLogits(self.cls_logits), self.box_deltas, ANCHORS)


def boxes_of(xyxy: Any, labels: Any, ignored: Any = None) -> BoxLabels:
    """Given boxes from plain lists."""
    corners = np.asarray(xyxy, np.float64).reshape(-1, 4)
    regions = np.zeros(len(corners), bool) if ignored is None else np.asarray(ignored, bool)
    return BoxLabels(corners, np.asarray(labels, np.int64).reshape(-1), regions, (None,) * len(corners))


def make_scene(seed: int, classes: int = 5, most: int = 8) -> Scene:
    """One to `most` boxes of 20 to 56 pixels that hardly overlap; the same for the same seed."""
    rng = np.random.default_rng([7, seed])
    xyxy = np.zeros((0, 4))
    for _ in range(4 * rng.integers(1, most + 1)):
        sides = rng.uniform(20, 56) * np.exp(rng.uniform(-0.3, 0.3) * np.array([1, -1]))
        corner = rng.uniform(0, 1, 2) * (SIDE - sides)
        box = np.concatenate([corner, corner + sides])[None]
        if box_iou(box, xyxy).max(initial=0.0) < 0.15:
            xyxy = np.concatenate([xyxy, box])
    truth = boxes_of(xyxy, rng.integers(0, classes, len(xyxy)))
    return Scene(truth, *look(truth, classes, rng))


def look(truth: BoxLabels, classes: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and deltas of a detector that sees most objects, doubts some classes, and draws boxes roughly."""
    logits = rng.normal(-4.6, 0.5, (len(ANCHORS), classes))
    deltas = rng.normal(0.0, 0.08, (len(ANCHORS), 4))
    if len(truth):
        overlap = box_iou(ANCHORS, truth.xyxy)
        nearest, iou = overlap.argmax(axis=1), overlap.max(axis=1)
        strength = rng.normal(5.2, 0.9, len(truth))
        looks = rng.normal(-2.2, 1.0, (len(truth), classes))
        looks[np.arange(len(truth)), truth.labels] = 0.0
        seen = np.clip((iou - 0.25) / 0.3, 0.0, 1.0)
        logits += seen[:, None] * np.maximum(strength[nearest, None] + looks[nearest], 0.0)
        true = encode_boxes(truth.xyxy[nearest], ANCHORS)
        deltas += np.where(iou > 0.2, 1.0, 0.0)[:, None] * true * rng.uniform(0.8, 1.05, (len(ANCHORS), 1))
    return logits.astype(np.float32), deltas.astype(np.float32)


def signs_of(scene: Scene, labels: BoxLabels, spec: DetectorSpec = SPEC) -> BoxSigns:
    """The signs of all given boxes; each of them must overlap an anchor."""
    owned, known = own_anchors(scene.view, labels.xyxy, spec)
    assert len(known) == len(labels)
    return box_signs(scene.view, owned, labels.xyxy, labels.labels, spec)


def spoil(scene: Scene, seed: int, classes: int = 5, how: BoxNoise = MIXED) -> Spoilt:
    """The scene's boxes spoilt."""
    return spoil_boxes(scene.truth, (SIDE, SIDE), classes, how, np.random.default_rng([11, seed]))


def average_precision(wrong: NDArray[np.bool_], scores: Floats, total: int | None = None) -> float:
    """Area under precision and recall of "high scores are wrong"; total: how many there were to find."""
    hits = wrong[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / (hits.sum() if total is None else total))


def detector_card(labels: list[str], spec: DetectorSpec = SPEC, **changes: Any) -> ModelCard:
    """A card of a detector of pictures of 128 x 128."""
    fields: dict[str, Any] = {
        "name": "boxes",
        "version": "1",
        "created": "2025-01-01T00:00:00+00:00",
        "task": "detection",
        "labels": labels,
        "input": {"height": SIDE, "width": SIDE, "resize": "letterbox"},
        "detector": spec,
        "classes": [{"label": label, "train_count": 5, "prior": 0.5} for label in labels],
        "golden": {
            "image_png": base64.b64encode(encode_png(noise(4, 4))).decode(),
            "logits": [0.0] * len(labels),
            "deltas": [0.0] * 4,
        },
    }
    return ModelCard.model_validate(fields | changes)
