"""How well wrong boxes are found: given boxes of scenes are spoilt on purpose, and scored as the service scores them.

Beside it ObjectLab on the same detector. The errors are injected: what people get wrong is not measured by this.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.box_causes import BADLY_LOCATED, CAUSES, NONE, SPURIOUS, SWAPPED
from models.box_noise import BoxNoise, Spoilt, spoil_boxes
from models.box_view import SEEN
from models.boxes import BoxLabels, Floats, Indices, box_iou, decode_boxes, make_anchors, suppress
from models.bundle import read_bundle
from models.calibration import log_sigmoid
from models.card import ModelCard
from models.class_logits import ClassLogits
from models.detect import BoxScores, Detection, Geometry, detector_of
from models.errors import FocalserveError
from models.fit import fit_pixels
from models.objectlab import objectlab_scores
from models.task import ScoreOptions
from scripts.clients import choose_bundle
from scripts.flags import Flags
from scripts.items import Items, debian_items, embedded_items, merge_items
from scripts.scenes import Scenes, compose_scenes
from service.detector import RAW, DetectorEngine, Raw

Bools = NDArray[np.bool_]
Detected = tuple[Floats, Indices, Floats]
"""Boxes (D, 4) in pixels, classes (D,) and scores (D,)."""
OPTIONS = ScoreOptions(gamma=2.0, alpha=None)
THRESHOLDS = ((0.95, 0.5), (0.9, 0.4), (0.8, 0.3), (0.7, 0.2), (0.5, 0.1), (0.35, 0.3), (0.2, 0.15))
"""ObjectLab's two, first as published. It asks of scores but their order and whether they exceed these.

So a calibration of the scores, which keeps their order, is nothing but another pair.
"""
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


class BenchFlags(Flags):
    """Measure how well a detector of the composed scenes finds wrong boxes, beside ObjectLab."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.box_audit_bench")

    bundle: CliPositionalArg[Path] = Field(description="a detector's bundle, trained on scripts.scenes with 5 classes")
    items: Literal["embedded", "debian"] = Field(
        "embedded", description="embedded, or debian: its package dataset-fashion-mnist"
    )
    skip: Annotated[int, Field(ge=0)] = Field(0, description="test items that are left out, from the first on")
    scenes: Annotated[int, Field(ge=1)] = Field(500, description="scenes of the other test items")
    seed: Annotated[int, Field(ge=0)] = Field(101, description="of the scenes; never one that was validated on")
    rounds: Annotated[int, Field(ge=1)] = Field(2, description="times that each scene is spoilt; means are shown")


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    flags = BenchFlags.parse(argv)
    engine = DetectorEngine(read_bundle(choose_bundle(flags.bundle, None)), "cpu", 1)
    items = debian_items("test") if flags.items == "debian" else embedded_items("test")
    scenes = look_at_scenes(engine, compose_scenes(_without(merge_items(items), flags.skip), flags.scenes, flags.seed))
    seeds = range(flags.seed, flags.seed + flags.rounds)
    print(f"{'average precision':26}{'calibrator':>12}{'plain':>12}{'ObjectLab':>12}{'its best':>12}")
    for name, row in compare(scenes, engine.card, seeds).items():
        print(f"{name:26}{''.join(f'{value:12.3f}' for value in row)}")
    trials = [run_trial(scenes, engine.card, mixed_noise(engine.card), seed) for seed in seeds]
    for name, value in describe_issues(trials).items():
        print(f"{name:26}{value:12.3f}")
    return 0


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


def compare(scenes: Sequence[Scene], card: ModelCard, seeds: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Average precision by what was done and looked for, the mean over seeds.

    Returns:
        Four numbers each: with the card's calibrator, without, ObjectLab as published, ObjectLab at its best.
    """
    plain, seen = without_calibrator(card), [detect(scene, card) for scene in scenes]
    rows: dict[str, tuple[float, ...]] = {}
    for name, noise in {**separate_noises(card), "mixed": mixed_noise(card)}.items():
        found = []
        for seed in seeds:
            trial, without = (run_trial(scenes, each, noise, seed) for each in (card, plain))
            found.append((precisions(trial), precisions(without), *objectlab_precisions(trial, seen)))
        for kind in found[0][0] if name == "mixed" else (name,):
            means = tuple(float(np.mean([one[k][kind] for one in found])) for k in range(4))
            rows[f"mixed: {kind}" if name == "mixed" else kind] = means
    return rows


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


def objectlab_precisions(trial: Trial, seen: Sequence[Detected]) -> tuple[dict[str, float], dict[str, float]]:
    """The same of ObjectLab: as published, and the best of its scores and of THRESHOLDS, chosen on the test itself."""
    every = [_objectlab(trial, seen, high, low) for high, low in THRESHOLDS]
    published = {kind: values[0] for kind, values in every[0].items()}
    return published, {kind: max(max(one[kind]) for one in every) for kind in published}


def describe_issues(trials: Sequence[Trial]) -> dict[str, float]:
    """What `is_issue`, the causes and the suggested classes are worth, over all trials."""
    causes = np.concatenate([trial.causes for trial in trials])
    flagged, said, named = (
        np.concatenate([trial.column(name) for trial in trials]) for name in ("is_issue", "cause", "suggested_labels")
    )
    true = np.concatenate([_true_labels(*pair) for t in trials for pair in zip(t.scenes, t.spoilt, strict=True)])
    wrong = flagged & (causes != NONE)
    return {
        "issues: precision": float(wrong.sum() / max(1, flagged.sum())),
        "issues: recall": float(wrong.sum() / (causes != NONE).sum()),
        "cause right, of found": float((said == causes)[wrong].mean()),
        "class right, of swapped": float((named == true)[causes == SWAPPED].mean()),
    }


def without_calibrator(card: ModelCard) -> ModelCard:
    """The card of a detector that knows nothing of wrong boxes but its own confusion."""
    return card.model_copy(update={"detector": detector_of(card).model_copy(update={"calibrator": None})})


def average_precision(wrong: Bools, scores: Floats, total: int | None = None) -> float:
    """Area under precision and recall of "high scores are wrong"; total: how many there were to find."""
    hits = wrong[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    count = int(hits.sum()) if total is None else total
    return float(precision[hits].sum() / count) if count else float("nan")


def missing_precision(found: Sequence[tuple[Floats, Floats]], dropped: Sequence[Floats]) -> float:
    """Average precision of boxes (R, 4) with scores (R,) as finds of dropped boxes; each is found once."""
    hits = [_claims(boxes, scores, gone) for (boxes, scores), gone in zip(found, dropped, strict=True)]
    every = np.concatenate([scores for _, scores in found])
    return average_precision(np.concatenate(hits), every, sum(len(gone) for gone in dropped))


def _claims(boxes: Floats, scores: Floats, gone: Floats) -> Bools:
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


def _objectlab(trial: Trial, seen: Sequence[Detected], high: float, low: float) -> dict[str, tuple[float, ...]]:
    """Average precision of each kind of error, by ObjectLab's own score of it first and by its others."""
    results = []
    for scene, one, (boxes, labels, scores) in zip(trial.scenes, trial.spoilt, seen, strict=True):
        stretched = np.interp(scores, [0.0, low, high, 1.0], [0.0, 0.5, 0.95, 1.0])
        size = (scene.geometry.width, scene.geometry.height)
        results.append(objectlab_scores(one.labels.xyxy, one.labels.labels, boxes, labels, stretched, size))
    located, swapped = (np.concatenate([getattr(r, name) for r in results]) for name in ("badly_located", "swapped"))
    orders = {CAUSES[SWAPPED]: (swapped, located), "any": (np.minimum(located, swapped), located, swapped)}
    wrong = {CAUSES[k]: trial.causes == k for k in (BADLY_LOCATED, SWAPPED, SPURIOUS)}
    found = {
        name: tuple(average_precision(each, -scores) for scores in orders.get(name, (located, swapped)))
        for name, each in {**wrong, "any": trial.causes != NONE}.items()
    }
    known = [~np.isnan(r.overlooked) for r in results]
    lost = [(one[0][k], -r.overlooked[k]) for one, r, k in zip(seen, results, known, strict=True)]
    return {"missing": (missing_precision(lost, trial.dropped()),), **found}


def _true_labels(scene: Scene, spoilt: Spoilt) -> Indices:
    """(M,) the class that each given box had; -1 where it was invented."""
    return np.append(scene.truth.labels, -1)[spoilt.origin]


def _confusion(card: ModelCard) -> Floats | None:
    given = detector_of(card).confusion
    return np.asarray(given, np.float64) if given else None


def _without(items: Items, count: int) -> Items:
    return items.take(np.arange(count, len(items.images)))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FocalserveError as error:
        sys.exit(f"box_audit_bench: {error}")
