"""Average precision against cases small enough to compute by hand."""

import numpy as np
import pytest

from models.boxes import BoxLabels
from models.errors import InvalidInput
from scripts.box_metrics import BoxMetrics, Detections, measure_boxes, redrawn_precision

Rows = list[tuple[list[float], int]]


def boxes(rows: Rows, ignored: tuple[int, ...] = ()) -> BoxLabels:
    xyxy = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    classes = np.array([label for _, label in rows], np.int64)
    return BoxLabels(xyxy, classes, np.isin(np.arange(len(rows)), ignored), (None,) * len(rows))


def found(rows: list[tuple[list[float], int, float]]) -> Detections:
    xyxy = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    scores = np.array([score for *_, score in rows], np.float64)
    return Detections(xyxy, np.array([label for _, label, _ in rows], np.int64), scores)


def one_class(given: Rows, detections: list[tuple[list[float], int, float]], max_dets: int = 100) -> BoxMetrics:
    return measure_boxes([boxes(given)], [found(detections)], ["a"], max_dets=max_dets)


A, B, FAR = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [50.0, 50, 60, 60]


def test_all_found_is_one_and_nothing_found_is_zero() -> None:
    right = one_class([(A, 0), (B, 0)], [(A, 0, 0.9), (B, 0, 0.8)])
    assert (right.ap, right.ap50, right.ap75, right.recall) == (1.0, 1.0, 1.0, 1.0)
    assert (right.ap_small, right.ap_medium, right.ap_large) == (1.0, None, None)
    assert (right.images, right.boxes, right.max_dets) == (1, 2, 100)
    nothing = one_class([(A, 0)], [])
    assert (nothing.ap, nothing.ap50, nothing.recall) == (0.0, 0.0, 0.0)


def test_without_boxes_there_is_no_precision() -> None:
    empty = one_class([], [(A, 0, 0.9)])
    assert (empty.ap, empty.ap50, empty.per_class[0].ap, empty.boxes) == (None, None, None, 0)


def test_a_false_alarm_between_two_hits() -> None:
    # Recall 1/2 at precision 1, then 1 at 2/3: of 101 recall steps 51 have precision 1, 50 have 2/3.
    metrics = one_class([(A, 0), (B, 0)], [(A, 0, 0.9), (FAR, 0, 0.8), (B, 0, 0.7)])
    assert metrics.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.ap == pytest.approx(metrics.ap50) and metrics.recall == 1.0


def test_a_second_detection_of_a_box_is_a_false_alarm() -> None:
    metrics = one_class([(A, 0), (B, 0)], [(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)])
    assert metrics.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_iou_thresholds_one_by_one() -> None:
    # IoU exactly .72: a hit at .50 to .70, five of COCO's ten thresholds.
    metrics = measure_boxes([boxes([(A, 0)])], [found([([0, 0, 10, 7.2], 0, 0.9)])], ["a"], ious=(0.4, 0.71, 0.73))
    assert (metrics.ap50, metrics.ap75) == (1.0, 0.0)
    assert metrics.ap == pytest.approx(0.5) and metrics.recall == pytest.approx(0.5)
    assert metrics.at_iou == {0.4: 1.0, 0.71: 1.0, 0.73: 0.0}


def test_classes_count_alike_and_one_without_boxes_not_at_all() -> None:
    given = [boxes([(A, 0), (B, 0), (FAR, 1)]), boxes([(A, 0)])]
    detections = [found([(A, 0, 0.9), (B, 0, 0.8), (FAR, 0, 0.7)]), found([(A, 0, 0.9), (B, 2, 0.9)])]
    metrics = measure_boxes(given, detections, ["a", "b", "c"])
    assert [(one.label, one.boxes, one.ap50) for one in metrics.per_class] == [
        ("a", 3, 1.0),
        ("b", 1, 0.0),
        ("c", 0, None),
    ]
    assert metrics.ap50 == 0.5 and metrics.boxes == 4


def test_sizes_are_those_of_coco() -> None:
    small, medium, large = [0.0, 0, 31, 31], [40.0, 40, 100, 100], [120.0, 120, 300, 300]
    metrics = one_class([(small, 0), (medium, 0), (large, 0)], [(small, 0, 0.9), (large, 0, 0.8)])
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == (1.0, 0.0, 1.0)


def test_a_crowd_is_no_miss_and_what_lies_in_it_is_no_error() -> None:
    crowd = [40.0, 40, 90, 90]
    detections = found([(FAR, 0, 0.9), ([52, 52, 58, 58], 0, 0.8), (A, 0, 0.7)])
    metrics = measure_boxes([boxes([(A, 0), (crowd, 0)], ignored=(1,))], [detections], ["a"])
    assert (metrics.ap, metrics.boxes) == (1.0, 1)
    as_box = measure_boxes([boxes([(A, 0), (crowd, 0)])], [detections], ["a"])
    assert as_box.ap50 is not None and as_box.ap50 < 0.5


def test_detections_beyond_max_dets_do_not_count() -> None:
    given: Rows = [([20.0 * k, 0, 20.0 * k + 10, 10], 0) for k in range(150)]
    detections = [(box, label, 1 - k / 1000) for k, (box, label) in enumerate(given)]
    assert one_class(given, detections).recall == pytest.approx(100 / 150)
    assert one_class(given, detections, max_dets=1000).ap == 1.0
    assert one_class(given, detections, max_dets=15).recall == pytest.approx(0.1)


def test_what_does_not_fit_together_is_refused() -> None:
    for given, detections, want in [
        ([boxes([])], [], "detections of 0 images"),
        ([boxes([(A, 1)])], [found([])], "image 0: there is no class 1"),
        ([boxes([])], [found([(A, -1, 0.5)])], "image 0: there is no class -1"),
        ([boxes([])], [found([([0, 0, float("nan"), 1], 0, 0.5)])], "not finite"),
        ([boxes([])], [Detections(np.zeros((2, 4)), np.zeros(1, np.int64), np.zeros(1))], "2 boxes, 1 labels"),
    ]:  # fmt: skip
        with pytest.raises(InvalidInput, match=want):
            measure_boxes(given, detections, ["a"])
    with pytest.raises(InvalidInput, match="IoU between"):
        measure_boxes([boxes([])], [found([])], ["a"], ious=(1.0,))


def test_draws_of_the_images_are_measured_as_if_each_were_a_data_set_of_its_own() -> None:
    rng = np.random.default_rng(3)
    given, detected = [], []
    for _ in range(12):
        corners = rng.uniform(0, 100, (int(rng.integers(0, 5)), 2))
        boxed = [([*map(float, (x, y, x + 20, y + 30))], int(rng.integers(2))) for x, y in corners]
        given.append(boxes(boxed, ignored=(1,)))
        near = [([float(v + rng.normal(0, 3)) for v in box], label, float(rng.random())) for box, label in boxed]
        detected.append(found([*near, ([0.0, 0, 9, 9], 0, float(rng.random()))]))
    draws = [np.arange(12), np.zeros(12, np.int64), *(rng.integers(0, 12, 12) for _ in range(5))]
    for row, draw in zip(redrawn_precision(given, detected, ["a", "b"], draws, max_dets=7), draws, strict=True):
        alone = measure_boxes([given[k] for k in draw], [detected[k] for k in draw], ["a", "b"], max_dets=7)
        wanted = [alone.ap, alone.ap50, alone.ap75, alone.ap_small, alone.ap_medium, alone.ap_large]
        assert np.array_equal(row, np.asarray(wanted, np.float64), equal_nan=True)
    assert len(set(redrawn_precision(given, detected, ["a", "b"], draws)[:, 0].tolist())) > 4
