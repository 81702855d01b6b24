"""models.boxes against the definitions, and where float32 would tip the scales."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.boxes import (
    BACKGROUND,
    TIE,
    UNCOUNTED,
    box_iou,
    decode_boxes,
    encode_boxes,
    make_anchors,
    match_anchors,
    overlapping_pairs,
    suppress,
    to_input,
    to_original,
)
from models.detector_spec import AnchorLevel, DetectorSpec
from models.errors import InvalidInput

SPEC = DetectorSpec(
    levels=[AnchorLevel(stride=8, sizes=[16, 20]), AnchorLevel(stride=16, sizes=[32, 40])], ratios=[0.5, 1.0, 2.0]
)


def some_boxes(count: int, seed: int = 0, side: float = 128.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, side * 0.8, (count, 2)), rng.uniform(4, side * 0.3, (count, 2))
    return np.concatenate([corner, corner + size], axis=1)


def test_iou_of_known_boxes() -> None:
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4], [5, 5, 5, 5]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]], float)
    assert np.allclose(np.diag(box_iou(first, second)), [1.0, 1 / 3, 0.0, 0.0], atol=1e-15)


def test_overlapping_pairs_are_what_is_not_zero_in_the_matrix() -> None:
    first, second = np.round(some_boxes(30)), np.round(some_boxes(40, seed=1))
    matrix, found = box_iou(first, second), overlapping_pairs(first, second)
    assert np.array_equal(np.stack(np.nonzero(matrix)), np.stack([found.first, found.second]))
    assert np.array_equal(matrix[found.first, found.second], found.iou)
    for none in (overlapping_pairs(first[:0], second), overlapping_pairs(first, second[:0])):
        assert len(none.first) == len(none.second) == len(none.iou) == 0


@pytest.mark.parametrize(("iou", "cells"), [(0.0, 10**6), (0.3, 10**6), (0.3, 100), (0.5, 1), (1.0, 100)])
def test_suppression_is_greedy(iou: float, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.boxes._CELLS_AT_ONCE", cells)
    for seed in range(20):
        boxes, scores = some_boxes(60, seed, side=64.0), np.random.default_rng(seed).integers(0, 20, 60) / 20
        kept = list[int]()
        for k in np.argsort(-scores, kind="stable").tolist():
            if not kept or box_iou(boxes[k : k + 1], boxes[kept]).max() <= iou:
                kept.append(k)
        assert suppress(boxes, scores, iou).tolist() == kept


def match_by_hand(boxes: NDArray[np.float64], anchors: NDArray[np.float64], spec: DetectorSpec) -> list[int]:
    """The rule of `match_anchors` without ignored boxes, anchor by anchor."""
    overlap, found = box_iou(anchors, boxes), list[int]()
    for row in overlap:
        rescued = [m for m in range(len(boxes)) if row[m] > 0.0 and row[m] >= overlap[:, m].max() - TIE]
        if row.max() >= spec.positive_iou - TIE:
            found.append(next(m for m in range(len(boxes)) if row[m] >= row.max() - TIE))
        elif rescued:
            found.append(max(rescued, key=lambda m: (row[m], -m)))
        else:
            found.append(UNCOUNTED if row.max() >= spec.negative_iou - TIE else BACKGROUND)
    return found


@pytest.mark.parametrize("cells", [1, 400_000])
@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_rule(seed: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.boxes._CELLS_AT_ONCE", cells)
    anchors, boxes = make_anchors(SPEC, 64, 64), np.round(some_boxes(14, seed, side=64.0))
    boxes = np.concatenate([boxes, boxes[:2], boxes[:1] + 1.0])
    assert match_anchors(anchors, boxes, SPEC).tolist() == match_by_hand(boxes, anchors, SPEC)


def test_anchors_are_torchvisions() -> None:
    # AnchorGenerator(((16, 20),), ((.5, 1., 2.),)) of torchvision 0.28 on a cell, written down.
    first = make_anchors(SPEC, 64, 64)[:6]
    want = [[-11, -6, 11, 6], [-14, -7, 14, 7], [-8, -8, 8, 8], [-10, -10, 10, 10], [-6, -11, 6, 11], [-7, -14, 7, 14]]
    assert first.tolist() == want


def test_anchors_cover_sides_that_are_no_multiple_of_the_stride() -> None:
    assert len(make_anchors(SPEC, 33, 17)) == 6 * (5 * 3 + 3 * 2)
    assert make_anchors(SPEC, 33, 17)[6:12, 0].tolist() == [-3, -6, 0, -2, 2, 1]


def test_coding_goes_there_and_back() -> None:
    anchors = make_anchors(SPEC, 128, 128)
    boxes = some_boxes(len(anchors))
    assert np.allclose(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=1e-9)


def test_decoding_limits_growth() -> None:
    box = decode_boxes(np.array([[0.0, 0.0, 50.0, 50.0]]), np.array([[0.0, 0.0, 16.0, 16.0]]))
    assert np.allclose(box[0, 2:] - box[0, :2], 1000.0)


def test_a_box_without_area_is_not_encoded() -> None:
    with pytest.raises(InvalidInput, match="without width or height"):
        encode_boxes(np.array([[3.0, 3.0, 3.0, 9.0]]), np.array([[0.0, 0.0, 8.0, 8.0]]))


def test_every_box_has_an_anchor_and_anchors_have_their_best_box() -> None:
    anchors, boxes = make_anchors(SPEC, 128, 128), some_boxes(12, seed=3)
    found, overlap = match_anchors(anchors, boxes, SPEC), box_iou(anchors, boxes)
    assert set(range(12)) <= set(found.tolist())
    strong = overlap.max(axis=1) >= 0.5
    assert (found[strong] == overlap[strong].argmax(axis=1)).all()
    assert (overlap.max(axis=1)[found == BACKGROUND] < 0.4).all()
    between = overlap.max(axis=1)[found == UNCOUNTED]
    assert len(between) and ((between >= 0.4 - 1e-5) & (between < 0.5)).all()


@pytest.mark.parametrize("factor", [0.01, 0.37, 7.3, 1000.0])
def test_matching_does_not_depend_on_the_scale_of_pixels(factor: float) -> None:
    anchors, boxes = make_anchors(SPEC, 128, 128), np.round(some_boxes(40, seed=1))
    want = match_anchors(anchors, boxes, SPEC)
    small = np.asarray(anchors * factor, np.float32), np.asarray(boxes * factor, np.float32)
    scaled = match_anchors(small[0], small[1], SPEC)
    assert (want == scaled).all()


def test_an_iou_of_exactly_a_half_is_positive_whatever_the_rounding() -> None:
    anchors = np.array([[0, 0, 10, 10]], float)
    for nudge in (0.0, 1e-7, -1e-7):
        assert match_anchors(anchors, np.array([[0, 0, 10, 5 + nudge]]), SPEC)[0] == 0


def test_crowds_are_not_learnt_and_not_background() -> None:
    anchors = make_anchors(SPEC, 128, 128)
    boxes = np.array([[10, 10, 30, 30], [60, 60, 128, 128]], float)
    found = match_anchors(anchors, boxes, SPEC, np.array([False, True]))
    assert not (found == 1).any()
    inside = (anchors[:, :2] >= 60).all(axis=1) & (anchors[:, 2:] <= 128).all(axis=1)
    assert (found[inside] == UNCOUNTED).all() and (found == 0).any()


def test_an_image_without_boxes_is_all_background() -> None:
    anchors = make_anchors(SPEC, 64, 64)
    assert (match_anchors(anchors, np.zeros((0, 4)), SPEC) == BACKGROUND).all()


def test_suppression_keeps_the_best_of_what_overlaps() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 10]], float)
    assert suppress(boxes, np.array([0.5, 0.9, 0.1, 0.5]), 0.5).tolist() == [1, 2]
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_geometry_goes_there_and_back() -> None:
    boxes = some_boxes(5)
    there = to_input(boxes, (0.5, 0.25), (3.0, -7.0))
    assert np.allclose(there[:, 0], boxes[:, 0] * 0.5 + 3.0) and np.allclose(there[:, 3], boxes[:, 3] * 0.25 - 7.0)
    assert np.allclose(to_original(there, (0.5, 0.25), (3.0, -7.0)), boxes)
