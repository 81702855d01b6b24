"""Objects that nobody drew."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.box_missing import (
    FEATURES,
    Survivors,
    find_survivors,
    finds,
    fit_missing,
    missing_boxes,
    missing_features,
)
from models.box_noise import BoxNoise
from models.box_view import view_image
from models.boxes import Floats, box_iou
from models.class_logits import HostLogits
from models.detector_spec import BoxCalibrator
from models.errors import BundleError, InvalidInput
from tests.fake_detector import ANCHORS, SIDE, Scene, average_precision, make_scene, spoil

NOBODY = (np.zeros((0, 4)), np.zeros(0, bool))
seeds = st.integers(0, 40)


@pytest.fixture(scope="module")
def calibrator() -> BoxCalibrator:
    """Fitted on scenes that no other test here looks at."""
    rows, missing = list[Floats](), list[NDArray[np.bool_]]()
    for seed in range(1000, 1100):
        scene = make_scene(seed)
        noisy = spoil(scene, seed, how=BoxNoise(drop=0.1, shift=0.1, swap=0.1, invent=0.1))
        found = find_survivors(scene.view)
        rows.append(missing_features(found, noisy.labels.xyxy))
        missing.append(finds(found, scene.truth.xyxy[noisy.dropped]))
    return fit_missing(np.concatenate(rows), np.concatenate(missing))


def survivors(boxes: Floats, sure: list[float]) -> Survivors:
    count = len(boxes)
    return Survivors(boxes, np.zeros(count, np.int64), np.array(sure), np.full(count, 0.1), np.array(sure) * 3.0)


def columns(found: Survivors, boxes: Floats) -> dict[str, Floats]:
    return dict(zip(FEATURES, missing_features(found, boxes).T, strict=True))


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


@given(seeds, st.sampled_from([0.01, 0.37, 7.3, 1000.0]))
def test_nor_have_they_in_a_calibrated_score(calibrator: BoxCalibrator, seed: int, factor: float) -> None:
    scene = make_scene(seed)
    boxes = spoil(scene, seed).labels.xyxy
    want = missing_boxes(scene.view, boxes, np.zeros(len(boxes), bool), calibrator)
    scaled = view_image(HostLogits(scene.cls_logits), scene.box_deltas, ANCHORS * factor)
    got = missing_boxes(scaled, boxes[::-1] * factor, np.zeros(len(boxes), bool), calibrator)
    assert np.allclose(got.xyxy, want.xyxy * factor, rtol=1e-9) and np.allclose(got.scores, want.scores, atol=1e-9)
    assert (np.diff(got.scores) <= 0.0).all() and ((got.scores >= 0.0) & (got.scores <= 1.0)).all()


def test_features_are_what_a_prediction_is_and_what_covers_it() -> None:
    found = survivors(np.array([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]]), [0.8, 0.5])
    given = columns(found, np.array([[0.0, 0.0, 10.0, 20.0], [50.0, 50.0, 60.0, 55.0]]))
    assert given["sure"] == pytest.approx([0.8, 0.5]) and given["second"] == pytest.approx([0.1, 0.1])
    assert given["support"] == pytest.approx([2.4, 1.5])
    assert given["cover"] == pytest.approx([0.5, 0.5])
    assert given["inside"] == pytest.approx([1.0, 0.5])
    assert given["claim"] == pytest.approx([0.5, 0.5])  # nothing else lies upon either of them
    assert given["log cover"] == pytest.approx(np.log([0.5001, 0.5001]))
    alone = columns(found, np.zeros((0, 4)))
    assert not any(alone[name].any() for name in ("cover", "inside", "claim"))


def test_a_given_box_claims_a_prediction_less_where_another_fits_it() -> None:
    box, near = np.array([[0.0, 0.0, 10.0, 10.0]]), [0.0, 5.0, 10.0, 15.0]
    alone = columns(survivors(np.array([near]), [0.6]), box)
    both = columns(survivors(np.array([near, [0.0, 0.0, 10.0, 10.0]]), [0.6, 0.6]), box)
    third = 1.0 / 3.0
    assert alone["claim"] == pytest.approx([third])
    assert both["claim"] == pytest.approx([third * third / (third + 1.0), 1.0 / (third + 1.0)])
    assert both["cover"][0] == alone["cover"][0]


def test_support_is_of_all_predictions_upon_a_survivor() -> None:
    scene = make_scene(3)
    view, found = scene.view, find_survivors(scene.view)
    seen = view.sure > 0.05
    want = ((box_iou(found.boxes, view.boxes[seen]) >= 0.5) * view.sure[seen]).sum(axis=1)
    assert found.support == pytest.approx(want) and (found.support >= found.sure).all()
    assert (np.diff(found.sure) <= 0.0).all() and found.support.max() > 2.0 * found.sure.max()


def test_of_predictions_upon_a_dropped_box_the_surest_finds_it() -> None:
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    found = survivors(np.concatenate([box + 50.0, box + 1.0, box]), [0.9, 0.8, 0.7])
    assert finds(found, box).tolist() == [False, True, False]
    assert not finds(found, box + 200.0).any() and not finds(found, np.zeros((0, 4))).any()
    assert finds(survivors(np.zeros((0, 4)), []), box).shape == (0,)


def test_a_calibrated_score_knows_the_objects_of_badly_drawn_boxes(calibrator: BoxCalibrator) -> None:
    mixed = BoxNoise(drop=0.1, shift=0.1, swap=0.1, invent=0.1)
    fitted, plain = (dropped_precision(mixed, how) for how in (calibrator, None))
    assert fitted > 0.83 and fitted > plain + 0.07


def test_what_lies_within_a_crowd_is_not_missing_whatever_the_calibrator_says(calibrator: BoxCalibrator) -> None:
    scene = single(0.8)
    everything = np.array([[0.0, 0.0, SIDE, SIDE]])
    assert missing_boxes(scene.view, everything, np.array([True]), calibrator).scores == pytest.approx([0.0])
    assert missing_boxes(scene.view, *NOBODY, calibrator).scores[0] > 0.0


def test_a_calibrator_of_another_version_is_refused(calibrator: BoxCalibrator) -> None:
    odd = calibrator.model_copy(update={"features": ["colour", *calibrator.features[1:]]})
    with pytest.raises(BundleError, match="missing_calibrator: no feature 'colour'"):
        missing_boxes(single(0.8).view, *NOBODY, odd)


@pytest.mark.parametrize("missing", [True, False])
def test_a_calibrator_needs_missing_objects_and_others(missing: bool) -> None:
    with pytest.raises(InvalidInput, match="one kind is absent"):
        fit_missing(np.zeros((5, len(FEATURES))), np.full(5, missing))


def test_dropped_boxes_come_first() -> None:
    assert dropped_precision(BoxNoise(drop=0.1)) > 0.7


def dropped_precision(how: BoxNoise, calibrator: BoxCalibrator | None = None) -> float:
    """Average precision of finding what was left out of 60 scenes."""
    hits, scores, total = list[bool](), list[float](), 0
    for seed in range(60):
        scene = make_scene(seed)
        noisy = spoil(scene, seed, how=how)
        found = missing_boxes(scene.view, noisy.labels.xyxy, noisy.labels.ignored, calibrator)
        gone = scene.truth.xyxy[noisy.dropped]
        iou = box_iou(found.xyxy, gone)
        claimed = np.zeros(len(found.scores), bool)
        for k in range(len(gone)):
            claimed[np.flatnonzero(iou[:, k] >= 0.5)[:1]] = True
        hits += claimed.tolist()
        scores += found.scores.tolist()
        total += len(gone)
    assert total >= 15
    return average_precision(np.array(hits), np.array(scores), total)
