"""Boxes move with their pictures: a coloured rectangle is found where its box says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.boxes import BoxLabels, box_iou
from models.fit import Pixels
from scripts.box_augment import BoxAugmentation, augment_boxes

EVERYTHING = BoxAugmentation(turn=True, zoom=0.5, light=0.3)
SEEDS = st.tuples(st.integers(0, 2**32), st.integers(0, 50), st.integers(0, 10**6))


def labels(xyxy: list[list[float]], ignored: list[bool] | None = None) -> BoxLabels:
    count = len(xyxy)
    return BoxLabels(
        np.array(xyxy, np.float64).reshape(-1, 4),
        np.arange(count),
        np.array(ignored or [False] * count, bool),
        tuple(range(100, 100 + count)),
    )


def painted(height: int, width: int, box: list[int]) -> Pixels:
    """Red rectangle on dark blue."""
    pixels = np.full((height, width, 3), (10, 20, 60), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (230, 30, 30)
    return pixels


def red_box(pixels: Pixels) -> NDArray[np.float64]:
    red = pixels[..., 0].astype(int) - pixels[..., 2]
    light = red > red.max() / 2
    rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float64)


@given(SEEDS, st.integers(0, 90), st.integers(0, 60), st.integers(24, 60), st.integers(24, 60), st.booleans())
def test_a_rectangle_stays_under_its_box(
    seed: tuple[int, int, int], x: int, y: int, wide: int, high: int, square: bool
) -> None:
    height, width = (128, 128) if square else (96, 128)
    box = [x, y, min(x + wide, width), min(y + high, height)]
    pixels, moved = augment_boxes(painted(height, width, box), labels([[*map(float, box)]]), EVERYTHING, seed)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    if len(moved) and min(moved.xyxy[0, 2:] - moved.xyxy[0, :2]) > 16:  # of less, an edge's pixel is over a tenth
        assert box_iou(moved.xyxy, red_box(pixels))[0, 0] > 0.9


@given(SEEDS, st.lists(st.tuples(*[st.floats(0, 100), st.floats(0, 100), st.floats(1e-6, 28), st.floats(1e-6, 28)])))
def test_boxes_stay_valid_with_their_labels(seed: tuple[int, int, int], sides: list[tuple[float, ...]]) -> None:
    given_boxes = labels([[x, y, x + w, y + h] for x, y, w, h in sides])
    _, moved = augment_boxes(np.zeros((128, 128, 3), np.uint8), given_boxes, EVERYTHING, seed)
    assert (moved.xyxy[:, 2:] > moved.xyxy[:, :2]).all()
    assert (moved.xyxy >= 0).all() and (moved.xyxy <= 128).all()
    assert [100 + label for label in moved.labels.tolist()] == list(moved.ids)
    assert len(moved.ignored) == len(moved.labels) == len(moved.xyxy)


def test_the_same_seed_does_the_same_and_leaves_the_picture_alone() -> None:
    pixels, boxes = painted(128, 128, [10, 20, 60, 70]), labels([[10, 20, 60, 70]])
    before = pixels.copy()
    first, again = (augment_boxes(pixels, boxes, EVERYTHING, (1, 2, 3)) for _ in range(2))
    assert (first[0] == again[0]).all() and (first[1].xyxy == again[1].xyxy).all() and (pixels == before).all()
    assert boxes.xyxy.tolist() == [[10, 20, 60, 70]]
    other = [augment_boxes(pixels, boxes, EVERYTHING, seed)[0] for seed in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert all((one != first[0]).any() for one in other)


@pytest.mark.parametrize(
    "settings, count",
    [
        (BoxAugmentation(flip=False, zoom=0.0, light=0.0), 1),
        (BoxAugmentation(flip=True, zoom=0.0, light=0.0), 2),
        (BoxAugmentation(flip=False, turn=True, zoom=0.0, light=0.0), 8),
    ],
)
def test_mirrored_and_turned_pictures_are_all_there_and_exact(settings: BoxAugmentation, count: int) -> None:
    pixels, boxes = painted(64, 64, [3, 5, 20, 40]), labels([[3, 5, 20, 40]])
    pixels[8, 6] = 255  # without it a rectangle is its own mirror image
    found = set()
    for index in range(100):
        changed, moved = augment_boxes(pixels, boxes, settings, (0, 0, index))
        assert moved.xyxy.tolist() == red_box(np.where(changed == 255, (230, 30, 30), changed)).tolist()
        found.add(changed.tobytes())
    assert len(found) == count


def test_a_box_whose_centre_leaves_is_dropped_and_one_that_stays_is_cut() -> None:
    dropped, cut = 0, 0
    pixels, boxes = np.zeros((64, 64, 3), np.uint8), labels([[0, 0, 12, 12], [24, 24, 40, 40]])
    for index in range(300):
        _, moved = augment_boxes(pixels, boxes, BoxAugmentation(zoom=1.0), (0, 0, index))
        assert 101 in moved.ids  # a factor of 2 at most: what is in the middle cannot leave
        dropped += 100 not in moved.ids
        sides = moved.xyxy[:, 2:] - moved.xyxy[:, :2]
        cut += 100 in moved.ids and abs(sides[0, 0] / sides[0, 1] - 1) > 0.05
    assert 20 < dropped < 280 and cut > 5


def test_an_ignored_region_stays_as_long_as_any_of_it_does() -> None:
    pixels, kept = np.zeros((64, 64, 3), np.uint8), 0
    region = labels([[0, 0, 16, 64], [0, 0, 16, 64]], [True, False])
    for index in range(200):
        _, moved = augment_boxes(pixels, region, BoxAugmentation(zoom=1.0), (0, 0, index))
        kept += moved.ids == (100,)
        assert moved.ids != (101,)
    assert kept > 10


def test_light_has_a_colour_of_its_own_in_every_picture() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    settings = BoxAugmentation(flip=False, zoom=0.0, light=0.2)
    seen = np.array([augment_boxes(grey, labels([]), settings, (0, 0, index))[0][0, 0] for index in range(100)], float)
    share = seen / seen.mean(axis=1, keepdims=True)
    assert (np.abs(share - 1.0) < 0.15).all() and (share.min(axis=0) < 0.95).all() and (share.max(axis=0) > 1.05).all()
    assert np.abs(share.mean(axis=0) - 1.0).max() < 0.02  # no colour is favoured


def test_light_changes_brightness_and_contrast_of_all() -> None:
    pixels, boxes = painted(32, 32, [4, 4, 20, 20]), labels([[4, 4, 20, 20]])
    settings = BoxAugmentation(flip=False, zoom=0.0, light=0.3)
    changed = [augment_boxes(pixels, boxes, settings, (0, 0, index)) for index in range(50)]
    means = [one.mean() / pixels.mean() for one, _ in changed]
    assert 0.65 < min(means) < 0.85 and 1.15 < max(means) < 1.35
    assert len({round(float(one.std() / one.mean()), 2) for one, _ in changed}) > 5
    assert all((moved.xyxy == boxes.xyxy).all() for _, moved in changed)
