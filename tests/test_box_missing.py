"""Objects that nobody drew."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.box_missing import missing_boxes
from models.box_noise import BoxNoise
from models.box_view import view_image
from models.boxes import box_iou
from models.class_logits import HostLogits
from tests.fake_detector import ANCHORS, SIDE, Scene, average_precision, make_scene, spoil

NOBODY = (np.zeros((0, 4)), np.zeros(0, bool))
seeds = st.integers(0, 40)


def single(p: float) -> Scene:
    """One object at the anchor whose box is 40, 40, 68, 68, seen with probability p; nothing else."""
    scene = make_scene(0)
    logits = np.full_like(scene.cls_logits, -12.0)
    at = int(box_iou(ANCHORS, np.array([[50.0, 50.0, 78.0, 78.0]]))[:, 0].argmax())
    logits[at, 2] = np.log(p / (1.0 - p))
    return dataclasses.replace(scene, cls_logits=logits, box_deltas=np.zeros_like(scene.box_deltas))


def test_the_score_is_the_probability_times_what_is_not_covered() -> None:
    scene = single(0.8)
    alone = missing_boxes(scene.view, *NOBODY)
    assert alone.scores == pytest.approx([0.8]) and alone.labels.tolist() == [2]
    box = alone.xyxy[0]
    half = np.array([[box[0], box[1], box[2], (box[1] + box[3]) / 2]])
    assert missing_boxes(scene.view, half, np.array([False])).scores == pytest.approx([0.4])
    assert missing_boxes(scene.view, box[None], np.array([False])).scores == pytest.approx([0.0])


def test_what_lies_within_a_crowd_is_not_missing() -> None:
    scene = single(0.8)
    everything = np.array([[0.0, 0.0, SIDE, SIDE]])
    assert missing_boxes(scene.view, everything, np.array([True])).scores == pytest.approx([0.0])
    assert missing_boxes(scene.view, everything, np.array([False])).scores[0] > 0.7


def test_one_object_is_missing_once_whatever_its_classes() -> None:
    scene = single(0.8)
    at = scene.view.sure.argmax()
    logits = scene.cls_logits.copy()
    logits[at + 1] = logits[at]
    logits[at + 1, 2], logits[at + 1, 3] = -12.0, 1.0
    deltas = scene.box_deltas.copy()
    anchors = ANCHORS.copy()
    anchors[at + 1] = anchors[at] + 1.0
    found = missing_boxes(view_image(HostLogits(logits), deltas, anchors), *NOBODY)
    assert len(found.scores) == 1 and found.labels.tolist() == [2]


def test_each_missing_object_keeps_its_class_in_whatever_order() -> None:
    scene = single(0.9)
    logits = scene.cls_logits.copy()
    logits[0, 4] = 0.0
    drawn = missing_boxes(scene.view, *NOBODY).xyxy
    found = missing_boxes(view_image(HostLogits(logits), scene.box_deltas, ANCHORS), drawn, np.array([False]))
    assert found.labels.tolist() == [4, 2] and found.scores == pytest.approx([0.5, 0.0])


def test_nothing_is_missing_where_nothing_is_seen() -> None:
    found = missing_boxes(single(0.04).view, *NOBODY)
    assert found.xyxy.shape == (0, 4) and found.labels.shape == found.scores.shape == (0,)


@given(seeds, st.sampled_from([0.01, 0.37, 7.3, 1000.0]))
def test_neither_the_order_of_boxes_nor_the_scale_of_pixels_has_a_part(seed: int, factor: float) -> None:
    scene = make_scene(seed)
    boxes = spoil(scene, seed).labels.xyxy
    want = missing_boxes(scene.view, boxes, np.zeros(len(boxes), bool))
    scaled = view_image(HostLogits(scene.cls_logits), scene.box_deltas, ANCHORS * factor)
    got = missing_boxes(scaled, boxes[::-1] * factor, np.zeros(len(boxes), bool))
    assert np.allclose(got.xyxy, want.xyxy * factor, rtol=1e-9) and np.allclose(got.scores, want.scores, atol=1e-9)
    assert (np.diff(got.scores) <= 0.0).all()


def test_dropped_boxes_come_first() -> None:
    hits, scores, total = list[bool](), list[float](), 0
    for seed in range(60):
        scene = make_scene(seed)
        noisy = spoil(scene, seed, how=BoxNoise(drop=0.1))
        found = missing_boxes(scene.view, noisy.labels.xyxy, noisy.labels.ignored)
        gone = scene.truth.xyxy[noisy.dropped]
        iou = box_iou(found.xyxy, gone)
        claimed = np.zeros(len(found.scores), bool)
        for k in range(len(gone)):
            claimed[np.flatnonzero(iou[:, k] >= 0.5)[:1]] = True
        hits += claimed.tolist()
        scores += found.scores.tolist()
        total += len(gone)
    assert total >= 15
    assert average_precision(np.array(hits), np.array(scores), total) > 0.7
