"""A detector's outputs at each anchor, and the anchors that are a box's own."""

import numpy as np
import pytest

from models.box_view import box_focal, own_anchors, view_image
from models.boxes import box_iou, decode_boxes, match_anchors
from models.class_logits import HostLogits
from models.detector_loss import detector_loss
from models.errors import InvalidInput
from models.task import ScoreOptions
from tests.fake_detector import ANCHORS, SPEC, make_scene
from tests.golden import Case, assert_close, cases

GOLDEN = [
    case
    for case in cases()
    if case.kind == "sigmoid"
    and case.logits.ndim == 1
    and case.reduction == "none"
    and case.ignore_index is None
    and case.targets.dtype.kind in "iu"
    and not isinstance(case.alpha, list)
]


def test_a_view_holds_probabilities_and_decoded_boxes() -> None:
    scene = make_scene(0)
    view = scene.view
    p = view.p_rows(np.arange(len(ANCHORS)))
    assert np.allclose(p, 1.0 / (1.0 + np.exp(-scene.cls_logits.astype(float))), atol=1e-15)
    assert view.p_of(np.array([7, 3]), np.array([4, 0])).tolist() == [p[7, 4], p[3, 0]]
    assert np.allclose(view.boxes, decode_boxes(scene.box_deltas, ANCHORS))
    ordered = np.sort(p, axis=1)
    assert np.allclose(view.sure, ordered[:, -1]) and np.allclose(view.second, ordered[:, -2])
    assert np.allclose(view.any, 1.0 - np.prod(1.0 - p, axis=1))


@pytest.mark.parametrize("wrong", ["rows", "columns", "nan", "infinite"])
def test_what_is_not_a_detectors_output_is_refused(wrong: str) -> None:
    scene = make_scene(0)
    logits, deltas = scene.cls_logits.copy(), scene.box_deltas.copy()
    if wrong == "rows":
        logits = logits[1:]
    elif wrong == "columns":
        deltas = deltas[:, :3]
    elif wrong == "nan":
        logits[3, 1] = np.nan
    else:
        deltas[3, 1] = np.inf
    with pytest.raises(InvalidInput):
        view_image(HostLogits(logits), deltas, ANCHORS)


def test_huge_deltas_do_not_overflow() -> None:
    scene = make_scene(0)
    view = view_image(HostLogits(scene.cls_logits), np.full(scene.box_deltas.shape, 1e300), ANCHORS)
    assert np.isfinite(view.boxes).all()
    owned, _ = own_anchors(view, scene.truth.xyxy, SPEC)
    assert len(owned) == len(scene.truth)


def test_own_anchors_are_those_that_would_learn_the_box_were_it_alone() -> None:
    scene = make_scene(4)
    owned, known = own_anchors(scene.view, scene.truth.xyxy, SPEC)
    assert known.tolist() == list(range(len(scene.truth)))
    for k in known:
        alone = match_anchors(ANCHORS, scene.truth.xyxy[k : k + 1], SPEC)
        assert owned.anchor[owned.box == k].tolist() == np.flatnonzero(alone == 0).tolist()


def test_a_box_that_no_anchor_overlaps_is_left_out() -> None:
    boxes = np.array([[900.0, 900.0, 950.0, 950.0], [10.0, 10.0, 40.0, 40.0]])
    owned, known = own_anchors(make_scene(0).view, boxes, SPEC)
    assert known.tolist() == [1] and len(owned) == 1
    assert (box_iou(boxes[1:], ANCHORS[owned.anchor]) > 0.0).all()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in GOLDEN])
def test_dense_sums_and_boxes_losses_are_the_golden_ones(case: Case) -> None:
    """Anchors in a row, far from each other; a box upon each whose target is 1."""
    left = np.arange(len(case.logits)) * 100.0
    anchors = np.stack([left, left * 0.0, left + 10.0, left * 0.0 + 10.0], axis=1)
    positive = np.flatnonzero(case.targets == 1)
    view = view_image(HostLogits(case.logits[:, None]), np.zeros((len(anchors), 4)), anchors)
    labels = np.zeros(len(positive), np.int64)
    options = ScoreOptions(gamma=case.gamma, alpha=case.alpha, label_smoothing=case.smoothing)
    loss = detector_loss(view, anchors[positive], labels, np.zeros(len(positive), bool), SPEC, options)
    want = np.asarray(case.expected["loss"], np.float64)
    assert (loss.positives, loss.counted, loss.location) == (len(positive), len(anchors), 0.0)
    assert_close(loss.classification, want.sum(), 1e-12, 1e-290, "sum")
    owned, _ = own_anchors(view, anchors[positive], SPEC)
    got = box_focal(view, owned, labels, case.gamma, case.alpha, case.smoothing)
    assert_close(got, want[positive], 1e-12, 1e-290, "boxes")


def test_there_are_golden_cases() -> None:
    assert len(GOLDEN) >= 10 and {case.gamma for case in GOLDEN} >= {0.0, 0.5, 2.0, 5.0}
