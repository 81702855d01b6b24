"""What is measured of detections: hits, the threshold, the facts of each class."""

import numpy as np
import pytest

from models.boxes import BoxLabels
from scripts.box_metrics import Detections
from scripts.box_validation import (
    best_threshold,
    choose_boxes,
    estimate_precision,
    hits,
    measure_classes,
    score_validation,
)

LABELS = ["cat", "dog"]
Row = tuple[float, float, float, float, int]


def given(*rows: Row, ignored: tuple[int, ...] = ()) -> BoxLabels:
    table = np.array(rows, float).reshape(-1, 5)
    skip = np.isin(np.arange(len(table)), ignored)
    return BoxLabels(table[:, :4], table[:, 4].astype(np.int64), skip, (None,) * len(table))


def found(*rows: tuple[Row, float]) -> Detections:
    table = np.array([row for row, _ in rows], float).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4].astype(np.int64), np.array([score for _, score in rows], float))


A: Row = (0, 0, 10, 10, 0)
B: Row = (50, 50, 70, 70, 1)


def test_a_box_is_found_once_by_the_surest_of_its_class() -> None:
    one = found((A, 0.9), ((1, 0, 11, 10, 0), 0.8), ((50, 50, 70, 70, 0), 0.7), (B, 0.6), ((0, 0, 4, 10, 0), 0.5))
    assert hits(one, given(A, B)).tolist() == [1, 0, 0, 1, 0]
    assert hits(found(), given(A)).tolist() == []
    assert hits(one, given()).tolist() == [0] * 5


def test_what_lies_in_an_ignored_region_does_not_count() -> None:
    one = found((A, 0.9), ((52, 52, 60, 60, 0), 0.8), ((66, 66, 90, 90, 1), 0.7))
    assert hits(one, given(A, B, ignored=(1,))).tolist() == [1, -1, 0]


def test_the_threshold_is_where_f1_is_highest() -> None:
    scores = np.array([0.9, 0.8, 0.62, 0.3, 0.2])
    hit = np.array([1, 1, 1, 0, 0], np.int8)
    assert 0.3 <= best_threshold(scores, hit, 3) < 0.62
    assert best_threshold(scores, np.array([1, 1, 1, 1, 1], np.int8), 5) < 0.2
    assert best_threshold(np.zeros(0), np.zeros(0, np.int8), 3) == 0.05


def test_the_facts_of_each_class() -> None:
    truth = [given(A, B), given(A), given()]
    seen = [found((A, 0.9), (B, 0.8)), found(((30, 30, 40, 40, 0), 0.7)), found()]
    report = measure_classes(seen, truth, LABELS, np.array([30, 10]), 100)
    cat, dog = report.classes
    assert (cat.train_count, cat.validation_count, cat.prior) == (30, 2, 0.75)
    assert (dog.precision, dog.recall, dog.f1) == (1.0, 1.0, 1.0)
    assert 0.7 <= report.threshold < 0.8
    assert dog.ap == dog.ap50 == 1.0 and cat.ap50 is not None and 0.4 < cat.ap50 < 0.6
    assert (cat.precision, cat.recall) == (1.0, 0.5) and cat.f1 == pytest.approx(2 / 3)
    assert "cat" in report.text and "ap50" in report.text


def test_perfect_detections_have_an_average_precision_of_one_without_doubt() -> None:
    truth = [given(A, B)] * 4
    perfect = [found((A, 0.9), (B, 0.8))] * 4
    sure, classes = estimate_precision(perfect, truth, LABELS, 100)
    assert list(sure) == ["ap", "ap50", "ap75", "ap_small"]
    assert [(one.label, one.ap, one.ap50) for one in classes] == [("cat", 1.0, 1.0), ("dog", 1.0, 1.0)]
    for each in sure.values():
        assert [each.low, each.value, each.high] == pytest.approx([1.0, 1.0, 1.0])
    half = estimate_precision([*perfect[:2], found(), found()], truth, LABELS, 100)[0]["ap50"]
    assert 0.0 <= half.low < half.value < half.high <= 1.0 and half.value == pytest.approx(0.5, abs=0.01)


def test_an_epochs_score_has_the_error_of_a_share_of_the_boxes() -> None:
    truth = [given(A, B)] * 8
    half = score_validation([found((A, 0.9), (B, 0.8))] * 4 + [found()] * 4, truth, LABELS, 100)["ap50"]
    assert half.value == pytest.approx(0.5, abs=0.01) and half.error == pytest.approx(0.125, abs=0.001)
    assert score_validation([found()] * 8, truth, LABELS, 100)["ap50"].error == 0.0


def test_suppression_is_within_a_class_and_by_falling_score() -> None:
    boxes = np.array([A[:4], (1, 0, 11, 10), A[:4], B[:4], B[:4]], np.float32)
    scores, labels = np.array([0.6, 0.9, 0.5, 0.7, 0.01], np.float32), np.array([0, 0, 1, 1, 0])
    one = choose_boxes(boxes, scores, labels)
    assert one.scores.tolist() == pytest.approx([0.9, 0.7, 0.5]) and one.labels.tolist() == [0, 1, 1]
    assert len(choose_boxes(boxes, scores * 0.01, labels)) == 0
