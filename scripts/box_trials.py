"""Trials of how well wrong boxes are found: boxes spoilt on purpose, scored as the service scores them, measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.box_causes import BADLY_LOCATED, CAUSES, NONE, SPURIOUS, SWAPPED
from models.box_noise import BoxNoise, Spoilt, spoil_boxes
from models.box_view import SEEN
from models.boxes import BoxLabels, Floats, Indices, box_iou, decode_boxes, make_anchors, suppress
from models.calibration import log_sigmoid
from models.card import ModelCard
from models.class_logits import ClassLogits
from models.detect import BoxScores, Detection, Geometry, detector_of
from models.errors import FocalserveError
from models.fit import fit_pixels
from models.task import ScoreOptions
from scripts.scenes import Scenes
from service.detector import RAW, DetectorEngine, Raw

Bools = NDArray[np.bool_]
Detected = tuple[Floats, Indices, Floats]
"""Boxes (D, 4) in pixels, classes (D,) and scores (D,)."""
OPTIONS = ScoreOptions(gamma=2.0, alpha=None)
_FOUND_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture.

    Attributes:
        cls_logits: (A, K), the graph's.
        box_deltas: (A, 4) float, the graph's.
        truth: its boxes, pixels.
        geometry: of the picture.
    """

    cls_logits: ClassLogits
    box_deltas: NDArray[np.floating]
    truth: BoxLabels
    geometry: Geometry


@dataclass(frozen=True)
class Trial:
    """Scenes whose boxes were spoilt, scored; scene by scene."""

    scenes: Sequence[Scene]
    spoilt: Sequence[Spoilt]
    scores: Sequence[BoxScores]

    @property
    def causes(self) -> NDArray[np.int64]:
        """(M,) what is wrong with each given box."""
        return np.concatenate([one.causes for one in self.spoilt])

    def column(self, name: str) -> NDArray[np.float64]:
        """(M, ...) a column of `BoxScores` of all given boxes."""
        return np.concatenate([getattr(one, name) for one in self.scores])

    def dropped(self) -> list[Floats]:
        """(D, 4) of each scene: the boxes that were left out."""
        return [scene.truth.xyxy[one.dropped] for scene, one in zip(self.scenes, self.spoilt, strict=True)]


def look_at_scenes(engine: DetectorEngine, scenes: Scenes) -> list[Scene]:
    """What a served detector says of scenes."""
    found = list[Scene]()
    for pixels, truth in zip(scenes.pixels, scenes.boxes, strict=True):
        raw = engine.run([fit_pixels(pixels, engine.card.input)], RAW)[0]
        if not isinstance(raw, Raw):
            raise FocalserveError(str(raw))
        found.append(Scene(raw.cls_logits, raw.box_deltas, truth, raw.geometry))
    return found


def separate_noises(card: ModelCard) -> dict[str, BoxNoise]:
    """One kind of error in a tenth of the boxes, by its name; half of the swaps are those that the detector makes."""
    confusion = _confusion(card)
    return {
        "missing": BoxNoise(drop=0.1),
        CAUSES[BADLY_LOCATED]: BoxNoise(shift=0.1),
        CAUSES[SWAPPED]: BoxNoise(swap=0.1, confusion=confusion),
        CAUSES[SPURIOUS]: BoxNoise(invent=0.1),
    }


def mixed_noise(card: ModelCard) -> BoxNoise:
    """Every kind of error, each in a twentieth of the boxes."""
    return BoxNoise(drop=0.05, shift=0.05, swap=0.05, invent=0.05, confusion=_confusion(card))


def run_trial(scenes: Sequence[Scene], card: ModelCard, noise: BoxNoise, seed: int) -> Trial:
    """Spoils the boxes of all scenes, and scores them as /loss does."""
    rng = np.random.default_rng(seed)
    sizes = [(scene.geometry.width, scene.geometry.height) for scene in scenes]
    spoilt = [
        spoil_boxes(scene.truth, size, len(card.labels), noise, rng) for scene, size in zip(scenes, sizes, strict=True)
    ]
    scores = [
        Detection().score(scene.cls_logits, scene.box_deltas, one.labels, scene.geometry, card, OPTIONS)
        for scene, one in zip(scenes, spoilt, strict=True)
    ]
    return Trial(scenes, spoilt, scores)


def precisions(trial: Trial) -> dict[str, float]:
    """Average precision of the scores of each kind of error, and of any error of a given box."""
    causes, scores = trial.causes, trial.column("causes")
    found = {CAUSES[k]: average_precision(causes == k, scores[:, k]) for k in (BADLY_LOCATED, SWAPPED, SPURIOUS)}
    missing = [(one.missing.xyxy, one.missing.scores) for one in trial.scores]
    return {
        "missing": missing_precision(missing, trial.dropped()),
        **found,
        "any": average_precision(causes != NONE, -trial.column("quality")),
    }


def without_calibrator(card: ModelCard) -> ModelCard:
    """The card of a detector that knows nothing of wrong boxes but its own confusion."""
    unfitted = {"calibrator": None, "missing_calibrator": None}
    return card.model_copy(update={"detector": detector_of(card).model_copy(update=unfitted)})


def average_precision(wrong: Bools, scores: Floats, total: int | None = None) -> float:
    """Area under precision and recall of "high scores are wrong"; total: how many there were to find."""
    hits = wrong[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    count = int(hits.sum()) if total is None else total
    return float(precision[hits].sum() / count) if count else float("nan")


def missing_precision(found: Sequence[tuple[Floats, Floats]], dropped: Sequence[Floats]) -> float:
    """Average precision of boxes (R, 4) with scores (R,) as finds of dropped boxes; each is found once."""
    hits = [claim_boxes(boxes, scores, gone) for (boxes, scores), gone in zip(found, dropped, strict=True)]
    every = np.concatenate([scores for _, scores in found])
    return average_precision(np.concatenate(hits), every, sum(len(gone) for gone in dropped))


def claim_boxes(boxes: Floats, scores: Floats, gone: Floats) -> Bools:
    """(R,) whether a box of boxes (R, 4), by falling score (R,), is the first upon one of gone (D, 4), IoU >= .5."""
    iou, hit, free = box_iou(boxes, gone), np.zeros(len(boxes), bool), np.ones(len(gone), bool)
    for row in np.argsort(-scores, kind="stable") if len(gone) else ():
        best = int(np.where(free, iou[row], -1.0).argmax())
        if free[best] and iou[row, best] >= _FOUND_IOU:
            hit[row], free[best] = True, False
    return hit


def detect(scene: Scene, card: ModelCard) -> Detected:
    """Detections above .05, suppressed within each class at IoU .5."""
    anchors = make_anchors(detector_of(card), card.input.height, card.input.width)
    p = np.exp(log_sigmoid(np.asarray(scene.cls_logits.rows(np.arange(len(anchors))), np.float64)))
    boxes = decode_boxes(scene.box_deltas, anchors)
    parts = []
    for k in range(p.shape[1]):
        likely = np.flatnonzero(p[:, k] > SEEN)
        kept = likely[suppress(boxes[likely], p[likely, k], _FOUND_IOU)]
        parts.append((kept, np.full(len(kept), k)))
    anchors, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return boxes[anchors], labels, p[anchors, labels]


def _confusion(card: ModelCard) -> Floats | None:
    given = detector_of(card).confusion
    return np.asarray(given, np.float64) if given else None
