"""The detector's three verbs."""

import dataclasses
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.box_causes import box_features, fit_calibrator
from models.boxes import BoxLabels, box_iou, to_input
from models.card import ImageInput, ModelCard
from models.class_logits import HostLogits
from models.detect import BoxScores, Detection, Geometry
from models.detector_spec import BoxCalibrator
from models.errors import InvalidInput, InvalidLabel
from models.fit import fit_pixels
from models.task import ScoreOptions
from tests.conftest import noise
from tests.fake_detector import SIDE, SPEC, Scene, boxes_of, detector_card, make_scene, signs_of, spoil

NAMES = ["tops", "trouser", "dress", "shoes", "bag"]
TASK, PLAIN = Detection(), ScoreOptions(gamma=2.0, alpha=None)
SAME = Geometry((1.0, 1.0), (0.0, 0.0), SIDE, SIDE)
WIDE = Geometry((0.25, 0.25), (0.0, 32.0), 512, 256)


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return detector_card(NAMES)


@pytest.fixture(scope="module")
def fitted() -> ModelCard:
    """A card with a calibrator."""
    features, causes = list[Any](), list[Any]()
    for seed in range(1000, 1080):
        scene = make_scene(seed)
        noisy = spoil(scene, seed)
        features.append(box_features(signs_of(scene, noisy.labels)))
        causes.append(noisy.causes)
    calibrator = fit_calibrator(np.concatenate(features), np.concatenate(causes))
    return detector_card(NAMES, SPEC.model_copy(update={"calibrator": calibrator}))


def score(
    scene: Scene, labels: BoxLabels, card: ModelCard, geometry: Geometry = SAME, options: ScoreOptions = PLAIN
) -> BoxScores:
    return TASK.score(HostLogits(scene.cls_logits), scene.box_deltas, labels, geometry, card, options)


def to_pixels(labels: BoxLabels, geometry: Geometry) -> BoxLabels:
    """Boxes of the input as boxes of the original."""
    corners = (labels.xyxy - np.tile(geometry.offset, 2)) / np.tile(geometry.scale, 2)
    return dataclasses.replace(labels, xyxy=corners)


def test_targets_are_the_boxes_that_were_written(card: ModelCard) -> None:
    found = TASK.targets([{"box": [1, 2, 3, 4], "label": "shoes", "id": 5}], card)
    assert (found.xyxy.tolist(), found.labels.tolist(), found.ids) == ([[1, 2, 3, 4]], [3], (5,))
    with pytest.raises(InvalidLabel, match=r"boxes\.0\.label"):
        TASK.targets([{"box": [1, 2, 3, 4], "label": "hat"}], card)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "center_crop"])
def test_detections_come_back_to_the_picture(resize: Any) -> None:
    fit = fit_pixels(noise(200, 300), ImageInput(height=SIDE, width=SIDE, resize=resize))
    geometry = Geometry(fit.scale, fit.offset, 300, 200)
    there = np.array([[100.0, 50.0, 180.0, 150.0], [-20.0, 100.0, 70.0, 500.0]])
    found = TASK.predict(to_input(there, fit.scale, fit.offset), np.array([1, 2]), np.array([0.9, 0.5]), geometry)
    assert np.allclose(found.xyxy, [[100, 50, 180, 150], [0, 100, 70, 200]])
    assert (found.labels.tolist(), found.scores.tolist()) == ([1, 2], [0.9, 0.5])


def test_detections_outside_the_picture_are_left_out_and_none_is_fine() -> None:
    grey = np.array([[10.0, 0.0, 40.0, 30.0], [10.0, 40.0, 40.0, 60.0]], np.float32)  # the first lies in the padding
    found = TASK.predict(grey, np.array([1, 2]), np.array([0.9, 0.5], np.float32), WIDE)
    assert found.labels.tolist() == [2] and np.allclose(found.xyxy, [[40, 32, 160, 112]])
    for empty in (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)):
        none = TASK.predict(empty, np.zeros(0, np.int64), np.zeros(0), SAME)
        assert (none.xyxy.shape, none.labels.shape, none.scores.shape) == ((0, 4), (0,), (0,))


def test_wrong_boxes_are_found_and_named(fitted: ModelCard) -> None:
    hits, right, flagged, wrong = 0, 0, 0, 0
    for seed in range(40):
        scene = make_scene(seed)
        noisy = spoil(scene, seed)
        found = score(scene, noisy.labels, fitted)
        assert found.valid.all()
        hits += int((found.is_issue & (noisy.causes > 0)).sum())
        right += int((found.cause == noisy.causes)[noisy.causes > 0].sum())
        flagged, wrong = flagged + int(found.is_issue.sum()), wrong + int((noisy.causes > 0).sum())
    assert wrong > 20
    assert hits / wrong > 0.8 and hits / flagged > 0.8 and right / wrong > 0.75


@given(st.integers(0, 30))
def test_a_box_scores_alone_as_in_company(seed: int) -> None:
    card, scene = detector_card(NAMES), make_scene(seed)
    labels = spoil(scene, seed).labels
    whole = score(scene, labels, card)
    for k in range(len(labels)):
        alone = score(scene, boxes_of(labels.xyxy[k : k + 1], labels.labels[k : k + 1]), card)
        for field in fields(BoxScores):
            if field.name not in ("loss", "missing", "objectlab"):  # these are of the picture
                got, want = getattr(alone, field.name)[0], getattr(whole, field.name)[k]
                assert np.allclose(got, want, atol=1e-9, equal_nan=True), field.name


def test_a_picture_of_another_size_scores_the_same(card: ModelCard) -> None:
    scene = make_scene(5)
    labels = boxes_of([[20, 40, 60, 80], [70, 40, 110, 90]], [0, 1])
    there = score(scene, to_pixels(labels, WIDE), card, WIDE)
    here = score(scene, labels, card)
    for name in ("losses", "quality", "causes", "best_iou"):
        assert np.allclose(getattr(there, name), getattr(here, name), atol=1e-9), name
    assert there.loss.value == pytest.approx(here.loss.value)
    for found, geometry in ((there, WIDE), (here, SAME)):
        assert (found.missing.xyxy >= 0.0).all()
        assert (found.missing.xyxy <= np.tile([geometry.width, geometry.height], 2)).all()
    back = to_input(there.suggested_boxes, WIDE.scale, WIDE.offset)
    assert np.allclose(back[:, [0, 2]], here.suggested_boxes[:, [0, 2]], equal_nan=True)


def test_crowds_and_ignored_classes_get_no_score_and_move_no_other(card: ModelCard) -> None:
    scene = make_scene(6)
    plain = score(scene, scene.truth, card)
    assert len(scene.truth) >= 3
    ignored = np.arange(len(scene.truth)) == 1
    crowded = score(scene, dataclasses.replace(scene.truth, ignored=ignored), card)
    assert crowded.valid.tolist() == (~ignored).tolist() and not crowded.is_issue[1]
    assert np.allclose(crowded.losses[~ignored], plain.losses[~ignored])
    assert crowded.loss.positives < plain.loss.positives
    options = dataclasses.replace(PLAIN, ignore_index=int(scene.truth.labels[1]))
    by_class = score(scene, scene.truth, card, options=options)
    assert by_class.valid.tolist() == (scene.truth.labels != scene.truth.labels[1]).tolist()


def test_gamma_and_alpha_move_the_loss_and_not_the_quality(card: ModelCard) -> None:
    scene = make_scene(6)
    plain, other = score(scene, scene.truth, card), ScoreOptions(gamma=0.0, alpha=0.25)
    found = score(scene, scene.truth, card, options=other)
    assert (found.losses != plain.losses).all() and found.loss.value != plain.loss.value
    assert np.array_equal(found.quality, plain.quality) and np.array_equal(found.causes, plain.causes)
    with pytest.raises(InvalidInput, match="gamma"):
        score(scene, scene.truth, card, options=ScoreOptions(gamma=-1.0, alpha=None))


def test_the_loss_of_a_box_is_its_focal_mean(card: ModelCard) -> None:
    scene = make_scene(6)
    assert np.allclose(score(scene, scene.truth, card).losses, signs_of(scene, scene.truth).focal)


def test_a_picture_without_boxes_has_a_loss_and_missing_ones(card: ModelCard) -> None:
    scene = make_scene(6)
    found = score(scene, boxes_of([], []), card)
    assert len(found.valid) == 0 and found.causes.shape == (0, 4) and found.suggested_boxes.shape == (0, 4)
    assert found.loss.positives == 0 and found.loss.value > 0.0
    best = box_iou(found.missing.xyxy[: len(scene.truth)], scene.truth.xyxy).max(axis=1)
    assert np.median(best) > 0.6


def test_a_dropped_box_is_missing_first(card: ModelCard) -> None:
    scene = make_scene(6)
    rows = np.arange(1, len(scene.truth))
    found = score(scene, boxes_of(scene.truth.xyxy[rows], scene.truth.labels[rows]), card)
    assert box_iou(found.missing.xyxy[:1], scene.truth.xyxy[:1])[0, 0] > 0.5


def test_the_cards_calibrator_scores_what_is_missing(card: ModelCard) -> None:
    scene = make_scene(6)
    even = BoxCalibrator(
        causes=["none", "missing"],
        features=["sure"],
        mean=[0.0],
        scale=[1.0],
        weights=[[0.0, 0.0]],
        bias=[0.0, float(np.log(3.0))],
    )
    fitted = detector_card(NAMES, SPEC.model_copy(update={"missing_calibrator": even}))
    found, plain = (score(scene, scene.truth, each).missing.scores for each in (fitted, card))
    assert len(found) == len(plain) > 0 and found == pytest.approx(0.75)
    again = ModelCard.parse(fitted.model_dump_json(), "card.json")
    assert again == fitted and card.detector is not None and card.detector.missing_calibrator is None


def test_a_box_that_the_crop_cuts_off_is_not_scored(card: ModelCard) -> None:
    crop = Geometry((1.0, 1.0), (-64.0, 0.0), 256, 128)
    labels = boxes_of([[0, 20, 60, 60], [50, 20, 80, 60], [100, 20, 140, 60], [-30, 20, 300, 60]], [0, 1, 2, 0])
    found = score(make_scene(6), labels, card, crop)
    assert found.valid.tolist() == [False, True, True, True]
    assert not found.is_issue[0] and found.quality[0] == 1.0


def test_a_box_outside_the_picture_is_refused(card: ModelCard) -> None:
    with pytest.raises(InvalidLabel, match=r"boxes\.0\.box: lies outside"):
        score(make_scene(6), boxes_of([[200, 20, 240, 60]], [0]), card)


def test_outputs_of_another_model_and_a_classifiers_card_are_refused(card: ModelCard) -> None:
    scene = make_scene(6)
    with pytest.raises(InvalidInput, match="anchors"):
        TASK.score(HostLogits(scene.cls_logits[:10]), scene.box_deltas[:10], scene.truth, SAME, card, PLAIN)
    with pytest.raises(InvalidInput, match="5 labels"):
        TASK.score(HostLogits(scene.cls_logits[:, :4]), scene.box_deltas, scene.truth, SAME, card, PLAIN)
    fields_of = card.model_dump() | {"task": "multiclass", "detector": None}
    fields_of["golden"] = fields_of["golden"] | {"deltas": []}
    with pytest.raises(InvalidInput, match="no detector"):
        score(scene, scene.truth, ModelCard.model_validate(fields_of))


def test_one_class_will_do() -> None:
    scene = make_scene(6, classes=1)
    found = score(scene, spoil(scene, 6, classes=1).labels, detector_card(["tree"]))
    assert found.valid.all() and (found.suggested_labels == -1).all() and not found.causes[:, 2].any()
