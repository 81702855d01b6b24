"""The training loss of an image: torchvision's normaliser, each image on its own."""

import dataclasses

import numpy as np
import pytest

from models.box_losses import giou_loss, smooth_l1
from models.boxes import UNCOUNTED, encode_boxes, match_anchors
from models.detector_loss import DetectorLoss, detector_loss
from models.detector_spec import DetectorSpec
from models.losses import sigmoid_focal
from models.task import ScoreOptions
from tests.fake_detector import ANCHORS, SPEC, Scene, boxes_of, make_scene

PLAIN = ScoreOptions(gamma=2.0, alpha=0.25)
WEIGHTY = SPEC.model_copy(update={"box_weight": 3.0, "box_loss": "smooth_l1"})


def loss_of(scene: Scene, spec: DetectorSpec = SPEC, options: ScoreOptions = PLAIN) -> DetectorLoss:
    truth = scene.truth
    return detector_loss(scene.view, truth.xyxy, truth.labels, truth.ignored, spec, options)


@pytest.mark.parametrize("spec", [SPEC, WEIGHTY])
def test_the_loss_is_that_of_the_definition(spec: DetectorSpec) -> None:
    scene, found = make_scene(4), loss_of(make_scene(4), spec)
    match = match_anchors(ANCHORS, scene.truth.xyxy, spec)
    total = apart = 0.0
    for a in np.flatnonzero(match != UNCOUNTED):
        y = np.zeros(5)
        if match[a] >= 0:
            y[scene.truth.labels[match[a]]] = 1.0
            box = scene.truth.xyxy[match[a]][None]
            if spec.box_loss == "giou":
                apart += giou_loss(scene.view.boxes[a][None], box)[0]
            else:
                apart += smooth_l1(scene.box_deltas[a][None], encode_boxes(box, ANCHORS[a][None]))[0]
        total += sigmoid_focal(scene.cls_logits[a].astype(float), y, gamma=2.0, alpha=0.25).values.sum()
    assert found.classification == pytest.approx(total) and found.location == pytest.approx(apart)
    assert (found.positives, found.counted) == ((match >= 0).sum(), (match != UNCOUNTED).sum())
    assert found.value == pytest.approx((total + spec.box_weight * apart) / found.positives)


def test_without_boxes_it_is_the_background_over_one() -> None:
    scene = dataclasses.replace(make_scene(4), truth=boxes_of([], []))
    found = loss_of(scene)
    assert (found.positives, found.counted, found.location) == (0, len(ANCHORS), 0.0)
    assert found.value == found.classification > 0.0


def test_what_lies_in_a_crowd_does_not_count() -> None:
    scene = make_scene(4)
    everything = boxes_of([[-100, -100, 300, 300]], [0], [True])
    found = loss_of(dataclasses.replace(scene, truth=everything))
    assert (found.value, found.counted) == (0.0, 0)


def test_a_better_detector_has_a_smaller_loss() -> None:
    scene = make_scene(4)
    match = match_anchors(ANCHORS, scene.truth.xyxy, SPEC)
    logits, deltas = np.full_like(scene.cls_logits, -9.0), scene.box_deltas.copy()
    learnt = np.flatnonzero(match >= 0)
    logits[learnt, scene.truth.labels[match[learnt]]] = 9.0
    deltas[learnt] = encode_boxes(scene.truth.xyxy[match[learnt]], ANCHORS[learnt])
    better = loss_of(dataclasses.replace(scene, cls_logits=logits, box_deltas=deltas))
    assert better.location < 1e-3 and better.value < 1e-3 < loss_of(scene).value
