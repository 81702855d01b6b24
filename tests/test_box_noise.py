"""Boxes spoilt on purpose: what is done is what is said to have been done."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.box_causes import BADLY_LOCATED, NONE, SPURIOUS, SWAPPED
from models.box_noise import WAYS, BoxNoise, Spoilt, Way, move_box, spoil_boxes
from models.boxes import BoxLabels, Floats, box_iou, intersections
from models.errors import InvalidInput
from tests.fake_detector import SIDE, boxes_of, make_scene

MUCH = BoxNoise(drop=0.2, shift=0.25, swap=0.25, invent=0.3)


def spoilt(labels: BoxLabels, seed: int = 0, how: BoxNoise = MUCH, classes: int = 5) -> Spoilt:
    return spoil_boxes(labels, (SIDE, SIDE), classes, how, np.random.default_rng(seed))


@given(st.integers(0, 200))
def test_what_was_done_is_what_is_said(seed: int) -> None:
    truth = make_scene(seed % 20).truth
    found = spoilt(truth, seed)
    now, origin = found.labels, found.origin
    assert sorted([*origin[origin >= 0].tolist(), *found.dropped.tolist()]) == list(range(len(truth)))
    assert ((origin == -1) == (found.causes == SPURIOUS)).all()
    for k, (cause, old) in enumerate(zip(found.causes, origin, strict=True)):
        same_class = old >= 0 and now.labels[k] == truth.labels[old]
        iou = box_iou(now.xyxy[k : k + 1], truth.xyxy[old : old + 1])[0, 0] if old >= 0 else 0.0
        if cause == NONE:
            assert same_class and (now.xyxy[k] == truth.xyxy[old]).all()
        elif cause == BADLY_LOCATED:
            assert same_class and 0.3 - 1e-6 <= iou <= 0.6 + 1e-6
        elif cause == SWAPPED:
            assert not same_class and iou == 1.0
        else:
            assert not intersections(now.xyxy[k : k + 1], truth.xyxy).any()
    assert (now.xyxy[:, :2] >= -1e-9).all() and (now.xyxy[:, 2:] <= SIDE + 1e-9).all()
    assert ((now.labels >= 0) & (now.labels < 5)).all() and len(now.ids) == len(now)


def test_the_same_seed_gives_the_same_boxes() -> None:
    truth = make_scene(3).truth
    first, second, third = spoilt(truth, 1), spoilt(truth, 1), spoilt(truth, 2)
    assert (first.labels.xyxy == second.labels.xyxy).all() and (first.causes == second.causes).all()
    assert first.labels.xyxy.shape != third.labels.xyxy.shape or (first.labels.xyxy != third.labels.xyxy).any()


def test_rates_are_kept() -> None:
    truth = boxes_of(np.tile([[10.0, 10.0, 40.0, 40.0]], (4000, 1)), np.zeros(4000))
    found = spoilt(truth, how=BoxNoise(drop=0.1, shift=0.05, swap=0.2))
    shares = [len(found.dropped), *np.bincount(found.causes, minlength=4)[1:].tolist()]
    assert np.allclose(np.array(shares) / 4000, [0.1, 0.05, 0.2, 0.0], atol=0.02)


def test_the_names_of_boxes_stay_with_them() -> None:
    truth = make_scene(3).truth
    named = BoxLabels(truth.xyxy, truth.labels, truth.ignored, tuple(range(100, 100 + len(truth))))
    found = spoilt(named, 4)
    assert found.labels.ids == tuple(None if old < 0 else 100 + old for old in found.origin.tolist())


def test_crowds_are_left_alone_and_nothing_is_invented_upon_them() -> None:
    crowd = boxes_of([[0, 0, 128, 64]], [0], [True])
    for seed in range(30):
        found = spoilt(crowd, seed, BoxNoise(drop=0.4, shift=0.3, swap=0.3, invent=1.0))
        assert found.labels.ignored.tolist()[:1] == [True] and found.causes[0] == NONE and len(found.dropped) == 0
        assert (found.labels.xyxy[1:, 1] >= 64).all()


def test_a_single_class_is_not_swapped() -> None:
    truth = make_scene(3, classes=1).truth
    found = spoilt(truth, how=BoxNoise(swap=1.0), classes=1)
    assert (found.causes == NONE).all() and (found.labels.xyxy == truth.xyxy).all()


def test_an_image_without_boxes_may_get_one() -> None:
    found = spoilt(boxes_of([], []), how=BoxNoise(invent=1.0))
    assert found.causes.tolist() == [SPURIOUS] and found.labels.xyxy.shape == (1, 4)
    assert len(spoilt(boxes_of([], []), how=BoxNoise(drop=1.0)).labels) == 0


def test_a_full_picture_takes_no_more() -> None:
    assert len(spoilt(boxes_of([[0, 0, SIDE, SIDE]], [0]), how=BoxNoise(invent=1.0)).labels) == 1


def test_swaps_go_where_the_confusion_leads() -> None:
    confusion = np.eye(5)[[1, 0, 3, 2, 4]]
    truth = boxes_of(np.tile([[10.0, 10.0, 40.0, 40.0]], (2000, 1)), np.zeros(2000))
    counts = np.bincount(spoilt(truth, how=BoxNoise(swap=1.0, confusion=confusion)).labels.labels, minlength=5)
    assert counts[0] == 0 and np.allclose(counts[1:] / 2000, [0.625, 0.125, 0.125, 0.125], atol=0.04)
    unseen = boxes_of(truth.xyxy, np.full(2000, 4))
    counts = np.bincount(spoilt(unseen, how=BoxNoise(swap=1.0, confusion=confusion)).labels.labels, minlength=5)
    assert counts[4] == 0 and np.allclose(counts[:4] / 2000, 0.25, atol=0.04)


@given(st.integers(0, 500), st.floats(0.05, 0.95))
def test_a_box_moves_to_the_iou_asked_for(seed: int, iou: float) -> None:
    box = np.array([20.0, 30.0, 60.0, 50.0])
    moved = move_box(box, iou, (SIDE, SIDE), np.random.default_rng(seed))
    assert box_iou(box[None], moved[None])[0, 0] == pytest.approx(iou, abs=1e-6)


def test_a_box_as_large_as_the_picture_shrinks() -> None:
    box = np.array([0.0, 0.0, SIDE, SIDE])
    moved = move_box(box, 0.5, (SIDE, SIDE), np.random.default_rng(0))
    assert (moved[:2] > 0.0).all() and (moved[2:] < SIDE).all()
    assert box_iou(box[None], moved[None])[0, 0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"drop": -0.1}, "drop"),
        ({"invent": float("nan")}, "invent"),
        ({"drop": 0.5, "shift": 0.6}, "together"),
        ({"shift_iou": (0.6, 0.3)}, "shift_iou"),
        ({"shift_iou": (0.0, 0.3)}, "shift_iou"),
    ],
)
def test_noise_that_cannot_be_is_refused(how: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        BoxNoise(**how)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_in_every_way_a_box_is_drawn_as_badly_as_was_asked(way: Way, seed: int, iou: float) -> None:
    box = np.array([40.0, 50.0, 80.0, 70.0])
    found = move_box(box, iou, (SIDE, SIDE), np.random.default_rng(seed), way)
    assert (found >= -1e-9).all() and (found <= SIDE + 1e-9).all() and (found[2:] > found[:2]).all()
    assert box_iou(box[None], found[None])[0, 0] == pytest.approx(iou, abs=1e-6)


@given(st.integers(0, 1000))
def test_ways_are_what_they_are_called(seed: int) -> None:
    box = np.array([1040.0, 1050.0, 1080.0, 1070.0])  # with room on all sides

    def change(way: Way) -> Floats:
        return np.asarray(move_box(box, 0.5, (2000, 2000), np.random.default_rng(seed), way) - box)

    moved, resized, side, sides = (change(way) for way in WAYS[1:])
    assert moved[:2] == pytest.approx(moved[2:]) and abs(moved).max() > 1.0
    assert resized[:2] == pytest.approx(-resized[2:]) and abs(resized).max() > 1.0
    assert (side != 0.0).sum() == 1 and (sides != 0.0).all()


def test_all_ways_that_are_asked_for_occur() -> None:
    truth = boxes_of(np.tile([[40.0, 50.0, 80.0, 70.0]], (300, 1)), np.zeros(300))
    found = spoilt(truth, how=BoxNoise(shift=1.0, ways=("moved", "side"))).labels.xyxy
    one_side = ((found != truth.xyxy).sum(axis=1) == 1).mean()
    assert 0.4 < one_side < 0.6
