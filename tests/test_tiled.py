"""Tiles put together: every object once, whole, in the pixels of the picture; a fair model in the place of a net."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.boxes import box_iou
from models.image import decode_image
from scripts.box_metrics import Detections
from scripts.clients import LabelledImage
from scripts.tiled import detect_tiled, merge, tile_starts

SIDE, OVERLAP = 64, 24


class Bright:
    """Finds light rectangles on black: a box round all pixels of one shade; the class is the shade's parity."""

    detects = True

    def predict(self, images: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"boxes": self._boxes(decode_image(data)[..., 0], options["score_threshold"])} for _, data in images]

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _boxes(self, grey: Any, least: float) -> list[dict[str, Any]]:
        found = []
        for shade in np.unique(grey[grey > 0]).tolist():
            rows, columns = np.nonzero(grey == shade)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if shade / 255 > least:
                found.append({"box": list(map(float, box)), "label": "ab"[shade % 2], "score": shade / 255})
        return found


@given(
    st.lists(st.tuples(st.integers(0, 180), st.integers(0, 110), st.integers(3, 20), st.integers(3, 20)), max_size=6),
    st.integers(40, 200),
    st.integers(40, 130),
)
def test_every_object_is_found_once_and_whole(
    objects: list[tuple[int, int, int, int]], width: int, height: int
) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    kept: list[list[float]] = []
    for x, y, wide, high in objects:
        box = [x, y, min(x + wide, width), min(y + high, height)]
        apart = all(box[2] + 1 < a[0] or a[2] + 1 < box[0] or box[3] + 1 < a[1] or a[3] + 1 < box[1] for a in kept)
        if apart and box[2] - x >= 3 and box[3] - y >= 3:
            kept.append([float(side) for side in box])
            pixels[y : box[3], x : box[2]] = 100 + 20 * len(kept)
    found = detect_tiled(Bright(), pixels, ("a", "b"), SIDE, OVERLAP, 0.1)
    assert sorted(found.xyxy.tolist()) == sorted(kept)
    assert (np.diff(found.scores) <= 0).all()


def test_scores_below_the_least_are_not_asked_for() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:20, 10:20], pixels[30:40, 30:40] = 100, 201
    found = detect_tiled(Bright(), pixels, ("a", "b"), SIDE, OVERLAP, 0.5)
    assert found.xyxy.tolist() == [[30, 30, 40, 40]]
    assert found.labels.tolist() == [1]


def test_merging_keeps_the_surer_of_a_class_and_both_of_two() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [0, 0, 10, 10], [20, 20, 30, 30]], np.float64)
    merged = merge(Detections(boxes, np.array([0, 0, 1, 0]), np.array([0.5, 0.9, 0.7, 0.1])))
    assert merged.scores.tolist() == [0.9, 0.7, 0.1]
    assert merged.labels.tolist() == [0, 1, 0]
    same = merged.labels[:, None] == merged.labels[None]
    assert (box_iou(merged.xyxy, merged.xyxy)[same & ~np.eye(3, dtype=bool)] <= 0.5).all()


@given(st.integers(1, 3000), st.integers(8, 300), st.integers(0, 100))
def test_tiles_cover_a_side_and_overlap_enough(length: int, side: int, overlap: int) -> None:
    overlap = min(overlap, side - 1)
    starts = tile_starts(length, side, overlap)
    assert starts[0] == 0 and starts[-1] + side >= length
    assert starts == [0] or starts[-1] + side == length
    assert all(0 < b - a <= side - overlap for a, b in pairwise(starts))


def test_an_empty_picture_gives_no_boxes() -> None:
    found = detect_tiled(Bright(), np.zeros((50, 90, 3), np.uint8), ("a", "b"), SIDE, OVERLAP, 0.1)
    assert found.xyxy.shape == (0, 4) and len(found) == 0


@pytest.mark.parametrize("length", [64, 1])
def test_a_side_that_fits_is_one_tile(length: int) -> None:
    assert tile_starts(length, 64, 24) == [0]
