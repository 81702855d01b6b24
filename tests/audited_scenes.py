"""Spoilt scenes on disk, audited by the stand-in for a detector."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.box_causes import box_features, fit_calibrator
from models.boxes import BoxLabels
from models.class_logits import HostLogits
from models.detect import BoxScores, Detection, Geometry
from models.task import ScoreOptions
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_issues import BoxIssue, find_box_issues
from scripts.box_readers import read_boxes
from scripts.coco import write_coco
from tests.conftest import noise
from tests.fake_detector import SIDE, SPEC, detector_card, make_scene, signs_of, spoil

NAMES = ("tops", "trouser", "<dress>", "shoes", "bag")
COUNT = 60


@dataclass(frozen=True)
class Audited:
    """A spoilt data set as read from its file, its truth, scores and issues."""

    source: Path
    data: BoxDataSet
    truth: list[BoxLabels]
    scores: list[BoxScores]
    issues: list[BoxIssue]


def audit_scenes(root: Path) -> Audited:
    """Writes COUNT spoilt scenes as COCO, and finds what is wrong with them; the calibrator is of other scenes."""
    spoilt = [(make_scene(seed), spoil(make_scene(seed), seed)) for seed in range(1000, 1060)]
    features = np.concatenate([box_features(signs_of(scene, noisy.labels)) for scene, noisy in spoilt])
    calibrator = fit_calibrator(features, np.concatenate([noisy.causes for _, noisy in spoilt]))
    card = detector_card(list(NAMES), SPEC.model_copy(update={"calibrator": calibrator}))
    scenes, samples = [make_scene(seed) for seed in range(COUNT)], list[BoxSample]()
    for seed, scene in enumerate(scenes):
        path = root / f"{seed:03d}.png"
        Image.fromarray(noise(SIDE, SIDE, seed)).save(path)
        samples.append(BoxSample(path, spoil(scene, seed).labels, path.name, SIDE, SIDE))
    source = root / "scenes.json"
    write_coco(source, BoxDataSet(root, NAMES, tuple(samples)))
    data = read_boxes(source, progress=False)
    same = Geometry((1.0, 1.0), (0.0, 0.0), SIDE, SIDE)
    options = ScoreOptions(gamma=2.0, alpha=None)
    scores = [
        Detection().score(HostLogits(scene.cls_logits), scene.box_deltas, sample.boxes, same, card, options)
        for scene, sample in zip(scenes, data.samples, strict=True)
    ]
    return Audited(source, data, [scene.truth for scene in scenes], scores, find_box_issues(data, scores))
