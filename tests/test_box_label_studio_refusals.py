"""Exports of Label Studio that cannot be decisions on boxes: each is refused with its file, task and region."""

import copy
import json
from pathlib import Path

import pytest

from models.errors import InvalidInput
from scripts.box_label_studio import read_box_export
from scripts.box_readers import read_boxes
from tests.box_files import HEIGHT, WIDTH
from tests.box_reviews import Review, Task, annotation, read_pages, region


@pytest.fixture
def review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Review:
    return Review("coco", tmp_path, monkeypatch)


def test_annotators_must_agree_or_one_is_the_ground_truth(review: Review) -> None:
    task = review.task("two.png")
    kept, emptied = annotation(5, review.regions("two.png")), annotation(6, [])
    task["annotations"] += [kept, emptied]
    assert "export.json: task 42: its annotators disagree" in review.refused()
    emptied["ground_truth"] = True
    assert review.apply() == read_pages(review.data) | {"two.png": []}


def test_a_person_who_changed_the_imported_annotation_is_an_annotator(review: Review) -> None:
    task = review.task("two.png")
    task["annotations"].append(annotation(5, review.regions("two.png")))
    task["annotations"][0]["result"].clear()
    assert "its annotators disagree" in review.refused()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"type": "polygonlabels"}, "'polygonlabels' is not rectanglelabels"),
        ({"type": "choices", "value": {"choices": ["Bag"]}}, "'choices' is not rectanglelabels"),
        ({"type": "relation", "value": None}, "not a region with a value"),
        ({"value": {"rotation": 12.5}}, "it is rotated"),
        ({"value": {"rotation": float("nan")}}, "it is rotated"),
        ({"image_rotation": 90}, "it is rotated"),
        ({"value": {"rectanglelabels": ["Hat"]}}, "unknown label 'Hat'"),
        ({"value": {"rectanglelabels": [["Bag"]]}}, "unknown label"),
        ({"value": {"rectanglelabels": []}}, "a box has one label"),
        ({"value": {"rectanglelabels": ["Bag", "Dress"]}}, "a box has one label"),
        ({"value": {"rectanglelabels": "Bag"}}, "a box has one label"),
        ({"value": {"x": float("nan")}}, "nan is not a finite number"),
        ({"value": {"width": float("inf")}}, "inf is not a finite number"),
        ({"value": {"y": None}}, "'None' is not a number"),
        ({"value": {"width": -5.0}}, "swapped corners"),
        ({"value": {"height": 0}}, "no area"),
        ({"value": {"x": 140.0}}, "wholly outside the picture of 96 x 64"),
        ({"original_width": HEIGHT, "original_height": WIDTH}, "drawn on a picture of 64 x 96; here it is 96 x 64"),
        ({"original_width": None}, "'None' is not a number"),
        ({"id": "box-101"}, "the region 'box-101' is there twice"),
    ],
)
def test_a_region_that_is_no_box_is_refused_with_its_place(change: Task, complaint: str, review: Review) -> None:
    part = review.regions("one.png")[1]
    part["value"]["x"] += 5.0
    for key, new in change.items():
        part[key] = part[key] | new if isinstance(new, dict) else new
    if "id" in change:
        review.regions("one.png")[0]["id"] = change["id"]
    said = review.refused()
    assert "export.json: task 40: annotation 900, region 2: " in said and complaint in said


def test_a_new_box_is_checked_as_well_and_every_task_is_told(review: Review) -> None:
    review.regions("none.png").append(region("Bag", (200.0, 0.0, 220.0, 20.0)))
    review.regions("two.png").append(region("Hat", (0.0, 0.0, 20.0, 20.0)))
    review.task("one.png")["annotations"][0]["result"] = [3]
    said = review.refused()
    assert "task 40: annotation 900, region 1: not a region" in said
    assert "task 41: annotation 901, region 1: wholly outside" in said
    assert "task 42: annotation 902, region 2: unknown label 'Hat'" in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": {"image": "x"}}, "its data has no `path`"),
        ({"data": {"path": "one.png"}}, "it is of another audit"),
        ({"annotations": None}, "export as JSON, not as JSON-MIN"),
    ],
)
def test_a_task_that_is_not_of_this_audit_is_refused(change: Task, complaint: str, review: Review) -> None:
    review.task("none.png").update(change)
    said = review.refused()
    assert "export.json: task 41: " in said and complaint in said


def test_a_picture_is_known_and_decided_once(review: Review) -> None:
    review.export.append(copy.deepcopy(review.task("two.png")) | {"id": 50})
    review.export[-1]["annotations"] = [annotation(8, [])]
    review.task("two.png")["annotations"] = [annotation(9, [])]
    review.task("one.png")["data"]["path"] = "images/gone.png"
    said = review.refused()
    assert "task 50: a second decision on 'images/two.png'" in said
    assert "task 40: the data set has no image 'images/gone.png'" in said


def test_an_export_of_the_data_before_it_was_corrected_is_refused(review: Review) -> None:
    old = copy.deepcopy(review.export)
    review.regions("one.png").pop(0)
    review.apply()
    file = review.folder / "old.json"
    file.write_text(json.dumps(old), encoding="utf-8")
    again = read_boxes(review.folder / "fixed" / review.source.name, progress=False)
    with pytest.raises(InvalidInput, match=r"old.json: task 40: it is of another audit"):
        read_box_export(file, again, again.fingerprint())
