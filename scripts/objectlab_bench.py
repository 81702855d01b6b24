"""ObjectLab on the trials of scripts.box_trials: as published, with calibrated scores, and with any thresholds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.box_causes import BADLY_LOCATED, CAUSES, NONE, SPURIOUS, SWAPPED
from models.boxes import Floats
from models.calibration import unweighted_probabilities
from models.card import ModelCard
from models.objectlab import objectlab_scores
from scripts.box_trials import Detected, Scene, Trial, average_precision, claim_boxes, detect, missing_precision

PUBLISHED = (0.95, 0.5)
HIGHS, LOWS = (0.95, 0.8, 0.5, 0.3), (0.5, 0.2)
"""Thresholds of every kind of scores: raw, with focal loss's bias undone, calibrated."""
PAIRS = ((0.95, 0.5), (0.9, 0.4), (0.8, 0.3), (0.7, 0.2), (0.5, 0.1), (0.35, 0.3), (0.2, 0.15))
"""More thresholds of the raw scores.

ObjectLab asks of scores but their order and whether they exceed these; a calibration, which keeps their order, is
nothing but another pair. Some of these lie lower than any that calibrated scores are tried with.
"""
Precisions = dict[str, float]


@dataclass(frozen=True)
class Isotonic:
    """The rising function that fits hits best.

    Attributes:
        scores: (S,) rising.
        shares: (S,) rising, of hits.
    """

    scores: Floats
    shares: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Scores (D,) as shares of hits, in [0, 1]."""
        return np.asarray(np.interp(scores, self.scores, self.shares))


def fit_isotonic(scores: Floats, hits: Floats) -> Isotonic:
    """Isotonic regression by pooling adjacent violators.

    Args:
        scores: (N,), N >= 1.
        hits: (N,), 0 or 1.
    """
    levels, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    blocks = list[list[float]]()  # the sum of the hits, their count, and the levels of each block
    for total, count in zip(np.bincount(place, hits), counts, strict=True):
        blocks.append([float(total), float(count), 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [mine + its for mine, its in zip(blocks[-1], last, strict=True)]
    return Isotonic(levels, np.concatenate([np.full(int(wide), hit / count) for hit, count, wide in blocks]))


def calibrate_detections(scenes: Sequence[Scene], card: ModelCard) -> Isotonic:
    """How often a detection is the first upon a box of its class at IoU .5, by its score; scenes with their truth."""
    scores, hits = list[Floats](), list[Floats]()
    for scene in scenes:
        boxes, labels, sure = detect(scene, card)
        for k in range(len(card.labels)):
            own = labels == k
            scores.append(sure[own])
            hits.append(claim_boxes(boxes[own], sure[own], scene.truth.xyxy[scene.truth.labels == k]).astype(float))
    return fit_isotonic(np.concatenate(scores), np.concatenate(hits))


def objectlab_precisions(
    trial: Trial, seen: Sequence[Detected], card: ModelCard, isotonic: Isotonic
) -> tuple[Precisions, Precisions, Precisions]:
    """Average precision of ObjectLab by the kind of error.

    Args:
        trial: the spoilt scenes.
        seen: what `detect` says of each of them.
        card: of the detector.
        isotonic: from `calibrate_detections`, of other scenes.

    Returns:
        As published; the best of 24 variants, with calibrated scores among them; the best of these and of PAIRS. The
        best are chosen on the test itself, as is which of ObjectLab's scores is taken for which kind.
    """
    tried = {(name, *pair): values for name, *pair, values in _variants(trial, seen, card, isotonic)}
    published = {kind: values[0] for kind, values in tried["raw", *PUBLISHED].items()}
    known = [values for (name, *_), values in tried.items() if name != "pairs"]
    return published, _best(known), _best(list(tried.values()))


def _variants(
    trial: Trial, seen: Sequence[Detected], card: ModelCard, isotonic: Isotonic
) -> Iterator[tuple[str, float, float, dict[str, tuple[float, ...]]]]:
    def unbiased(scores: Floats) -> Floats:
        logits = np.log(scores) - np.log1p(-scores)
        return unweighted_probabilities(logits, "sigmoid", card.loss.gamma, None)

    kinds: dict[str, Callable[[Floats], Floats]] = {
        "raw": lambda scores: scores,
        "unbiased": unbiased,
        "isotonic": isotonic,
    }
    for name, change in kinds.items():
        changed = [(boxes, labels, change(scores)) for boxes, labels, scores in seen]
        for high in HIGHS:
            for low in LOWS:
                yield name, high, low, _precisions(trial, changed, high, low)
    for high, low in PAIRS:
        yield "pairs", high, low, _precisions(trial, seen, high, low)


def _best(tried: Sequence[Mapping[str, tuple[float, ...]]]) -> Precisions:
    return {kind: max(max(one[kind]) for one in tried) for kind in tried[0]}


def _precisions(trial: Trial, seen: Sequence[Detected], high: float, low: float) -> dict[str, tuple[float, ...]]:
    """Average precision of each kind of error, by ObjectLab's own score of it first and by its others."""
    results = []
    for scene, one, (boxes, labels, scores) in zip(trial.scenes, trial.spoilt, seen, strict=True):
        size = (scene.geometry.width, scene.geometry.height)
        results.append(objectlab_scores(one.labels.xyxy, one.labels.labels, boxes, labels, scores, size, low, high))
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
