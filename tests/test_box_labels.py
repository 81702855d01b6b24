"""Given boxes as people write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.box_labels import read_boxes, refuse_outside
from models.errors import InvalidLabel
from tests.fake_detector import boxes_of

NAMES = ["tops", "trouser", "bag"]
GOOD: dict[str, Any] = {"box": [1, 2.5, 30, 40], "label": "trouser"}


def refusal(*items: Any) -> str:
    with pytest.raises(InvalidLabel) as caught:
        read_boxes(list(items), NAMES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_boxes_are_read_with_names_indices_crowds_and_ids() -> None:
    found = read_boxes([GOOD, {"box": [0, 0, 5, 5], "label": 2, "iscrowd": 1, "id": "b7"}, GOOD | {"id": 9}], NAMES)
    assert found.xyxy.tolist() == [[1, 2.5, 30, 40], [0, 0, 5, 5], [1, 2.5, 30, 40]]
    assert found.labels.tolist() == [1, 2, 1] and found.ignored.tolist() == [False, True, False]
    assert found.ids == (None, "b7", 9)
    assert [part.dtype.name for part in (found.xyxy, found.labels, found.ignored)] == ["float64", "int64", "bool"]


def test_a_picture_may_have_no_boxes() -> None:
    found = read_boxes([], NAMES)
    assert (found.xyxy.shape, found.labels.shape, found.ignored.shape, found.ids) == ((0, 4), (0,), (0,), ())


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([1, 2, 3], "four numbers"),
        ("1,2,3,4", "four numbers"),
        ([1, 2, True, 4], "four numbers"),
        ([1, 2, None, 4], "four numbers"),
        ([1, 2, float("nan"), 4], "finite"),
        ([1, 2, float("inf"), 4], "finite"),
        ([1, 2, 10**400, 4], "finite"),
        ([1, 2, 1e7, 4], "at most 1,000,000"),
        ([5, 2, 3, 4], "swapped"),
        ([1, 9, 3, 4], "swapped"),
        ([1, 2, 1, 4], "no area"),
        ([1, 2, 3, 2 + 1e-9], "no area"),
    ],
)
def test_what_is_no_box_is_refused_with_its_place(box: Any, words: str) -> None:
    found = refusal(GOOD, GOOD, GOOD, GOOD | {"box": box})
    assert found.startswith("boxes.3.box: ") and words in found


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"label": "hat"}, "boxes.0.label", "no label of that name"),
        ({"label": 3}, "boxes.0.label", "0 to 2"),
        ({"label": -1}, "boxes.0.label", "0 to 2"),
        ({"label": True}, "boxes.0.label", "name or an index"),
        ({"label": ["bag"]}, "boxes.0.label", "name or an index"),
        ({"iscrowd": 2}, "boxes.0.iscrowd", "true or false"),
        ({"iscrowd": "no"}, "boxes.0.iscrowd", "true or false"),
        ({"id": 1.5}, "boxes.0.id", "text or a whole number"),
        ({"id": True}, "boxes.0.id", "text or a whole number"),
        ({"bbox": [1, 2, 3, 4]}, "boxes.0.bbox", "no such key"),
    ],
)
def test_what_else_is_wrong_is_refused_with_its_place(change: dict[str, Any], place: str, words: str) -> None:
    found = refusal(GOOD | change)
    assert found.startswith(f"{place}: ") and words in found


def test_what_is_missing_or_no_object_or_no_list_is_refused() -> None:
    assert refusal({"label": 1}) == "boxes.0.box: is missing"
    assert refusal(GOOD, {"box": [1, 2, 3, 4]}) == "boxes.1.label: is missing"
    assert refusal([1, 2, 3, 4]).startswith("boxes.0: ")
    for wrong in (GOOD, "bag", 3, None):
        with pytest.raises(InvalidLabel, match="is a list of"):
            read_boxes(wrong, NAMES)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=6))
def test_whatever_comes_is_read_or_refused(anything: Any) -> None:
    for label in (anything, [anything], [{"box": anything, "label": 0}], [{"box": [0, 0, 1, 1], "label": anything}]):
        try:
            read_boxes(label, NAMES)
        except InvalidLabel:
            continue


def test_a_box_outside_the_picture_is_refused_one_that_sticks_out_is_not() -> None:
    refuse_outside(boxes_of([[-50, -50, 1, 1], [99, 79, 500, 500], [0, 0, 100, 80]], [0, 0, 0]), 100, 80)
    for box in ([-9, 5, 0, 9], [5, -9, 9, 0], [100, 5, 120, 9], [5, 80, 9, 90]):
        with pytest.raises(InvalidLabel, match=r"boxes.1.box: lies outside the picture of 100 x 80"):
            refuse_outside(boxes_of([[1, 1, 9, 9], box], [0, 0]), 100, 80)
