"""Anchor sizes from boxes, and the boxes that no anchor reaches."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.boxes import BoxLabels, box_iou, make_anchors
from models.detector_spec import AnchorLevel, DetectorSpec
from scripts.anchor_check import propose_sizes, unreached_share


def squares(*sides: float, ignored: int = 0) -> BoxLabels:
    """Boxes whose centres lie on cells of stride 8; the first ones ignored."""
    half = np.array(sides)[:, None] / 2
    box = np.concatenate([64 - half, 64 - half, 64 + half, 64 + half], axis=1)
    return BoxLabels(box, np.zeros(len(box), np.int64), np.arange(len(box)) < ignored, (None,) * len(box))


SPEC = DetectorSpec(levels=[AnchorLevel(stride=8, sizes=[16.0]), AnchorLevel(stride=16, sizes=[64.0])], ratios=[1.0])


def test_the_share_is_that_of_boxes_whose_best_anchor_is_below_a_half() -> None:
    boxes = [squares(16, 20, 32, 64), squares(4), squares(200)]
    best = np.concatenate([box_iou(own.xyxy, make_anchors(SPEC, 128, 128)).max(axis=1) for own in boxes])
    assert (best < 0.5).tolist() == [False, False, True, False, True, True]
    assert unreached_share(boxes, SPEC, 128, 128) == pytest.approx(3 / 6)


def test_ignored_boxes_do_not_count() -> None:
    assert unreached_share([squares(4, 16, ignored=1)], SPEC, 128, 128) == 0.0
    assert unreached_share([squares(4, ignored=1)], SPEC, 128, 128) == 0.0
    assert propose_sizes([squares(400, 20, 20, ignored=1)], 1) == [20.0]


def test_sizes_are_the_middles_of_equal_shares_and_sides_count_by_their_geometric_mean() -> None:
    assert propose_sizes([squares(*[10.0] * 8, *[40.0] * 8)], 2) == [10.0, 40.0]
    wide = BoxLabels(np.array([[0.0, 0.0, 40.0, 10.0]]), np.zeros(1, np.int64), np.zeros(1, bool), (None,))
    assert propose_sizes([wide], 1) == [20.0]


@given(st.lists(st.floats(0.3, 900), min_size=1, max_size=30), st.integers(1, 9))
def test_sizes_ascend_and_are_whole(sides: list[float], count: int) -> None:
    found = propose_sizes([squares(*sides)], count)
    assert len(found) == count and found[0] >= 1.0
    assert all(size == round(size) for size in found)
    assert all(before < after for before, after in itertools.pairwise(found))


def test_proposed_sizes_reach_more_than_sizes_for_other_things() -> None:
    rng = np.random.default_rng(0)
    boxes = [squares(*rng.uniform(14, 30, 5)) for _ in range(40)]
    own = propose_sizes(boxes, 2)
    levels = [AnchorLevel(stride=8 * 2**k, sizes=[size]) for k, size in enumerate(own)]
    fitted = SPEC.model_copy(update={"levels": levels})
    assert unreached_share(boxes, fitted, 128, 128) < unreached_share(boxes, SPEC, 128, 128)
