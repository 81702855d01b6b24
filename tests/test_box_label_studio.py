"""Boxes to Label Studio and back: what an audit writes, edited as a reviewer would, is what `apply` writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from PIL import Image

from models.errors import InvalidInput
from scripts.box_issues import MISSING, BoxIssue
from scripts.box_label_studio import read_box_export, write_box_tasks
from scripts.box_readers import read_boxes
from tests.audited_scenes import audit_scenes
from tests.box_files import HEIGHT, LABELS, WIDTH, Page, coco
from tests.box_reviews import (
    NAMES,
    SOURCES,
    Corners,
    Review,
    Task,
    annotation,
    export,
    issue,
    read_pages,
    region,
    value,
)  # fmt: skip

MOVED: Corners = (12.345678, 9.87654321, 37.2, 40.987654321)
DRAWN: Corners = (1.25, 2.123456789, 33.3333333333, 44.0)


def assert_pages(got: dict[str, Page], wanted: dict[str, Page]) -> None:
    assert {name: [label for label, _ in page] for name, page in got.items()} == {
        name: [label for label, _ in page] for name, page in wanted.items()
    }
    for name, page in wanted.items():
        for (_, box), (_, right) in zip(got[name], page, strict=True):
            assert box == pytest.approx(right, abs=1e-3)


def assert_value(part: Task, label: str, corners: Corners) -> None:
    wanted = value(label, corners)
    assert part["value"]["rectanglelabels"] == wanted.pop("rectanglelabels")
    # YOLO's six digits
    assert {key: part["value"][key] for key in wanted} == pytest.approx(wanted, abs=1e-3)


@pytest.fixture(params=list(SOURCES))
def review(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Review:
    return Review(request.param, tmp_path, monkeypatch)


@pytest.fixture
def one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Review:
    return Review("coco", tmp_path, monkeypatch)


def test_a_task_has_the_given_boxes_and_the_picture_as_it_should_be(review: Review) -> None:
    assert [Path(task["data"]["path"]).name for task in review.tasks] == ["one.png", "none.png", "two.png"]
    one, none, two = review.tasks
    dress, bag, sandal = (f"box-{key}" for key in NAMES[review.kind])
    assert one["data"] == {
        "image": f"/files/?d={one['data']['path']}", "path": one["data"]["path"], "label_score": 0.01,
        "causes": ["spurious"], "data_fingerprint": review.data.fingerprint(),
    }  # fmt: skip
    (given,), (suggested,) = one["annotations"], one["predictions"]
    assert not given["ground_truth"] and not given["was_cancelled"] and isinstance(given["id"], int)
    assert [part["id"] for part in given["result"]] == [dress, bag]
    first = given["result"][0]
    assert_value(first, "Dress", (2, 4, 30, 32))
    assert (first["original_width"], first["original_height"]) == (WIDTH, HEIGHT)
    assert (first["type"], first["from_name"], first["to_name"]) == ("rectanglelabels", "label", "image")
    assert first["score"] == 0.01 and first["meta"]["cause"] == "spurious" and first["meta"]["label_score"] == 0.01
    assert given["result"][1]["score"] == 0.9 and "meta" not in given["result"][1]
    assert (suggested["score"], suggested["model_version"]) == (0.01, "focalserve audit")
    assert suggested["result"] == given["result"][1:]
    assert none["annotations"][0]["result"] == []
    (new,) = none["predictions"][0]["result"]
    assert new["id"] == "new-1" and new["meta"]["cause"] == "missing"
    assert_value(new, "Bag", (1, 2, 21, 12))
    (moved,) = two["predictions"][0]["result"]
    assert moved["id"] == sandal
    assert_value(moved, "Sandal", (12, 9, 40, 41))


def test_the_interface_has_a_rectangle_for_each_class(one_kind: Review) -> None:
    view = parse(one_kind.folder / "audit" / "label_studio.xml").getroot()
    assert view is not None
    image, tool = view
    assert [one.tag for one in (view, image, tool)] == ["View", "Image", "RectangleLabels"]
    assert image.attrib == {"name": "image", "value": "$image"}
    assert tool.attrib == {"name": "label", "toName": "image", "canRotate": "false"}
    assert [label.attrib["value"] for label in tool.findall("Label")] == list(LABELS)


def test_what_the_reviewer_does_is_what_is_written(review: Review) -> None:
    dress, bag = review.regions("one.png")
    dress["value"]["rectanglelabels"] = ["Sandal"]
    review.regions("one.png").remove(bag)
    review.regions("two.png")[0]["value"] = value("Bag", MOVED)
    review.regions("none.png").append(region("Dress", DRAWN))
    assert_pages(
        review.apply(),
        {"one.png": [("Sandal", (2, 4, 30, 32))], "two.png": [("Bag", MOVED)], "none.png": [("Dress", DRAWN)]},
    )


def test_an_export_that_nobody_touched_changes_nothing(review: Review) -> None:
    wanted = read_pages(review.data)
    for name in ("one.png", "two.png"):
        for part in review.regions(name):
            part["value"]["x"] += 100 * 0.49 / WIDTH
    assert review.apply() == wanted
    folder = review.source if review.source.is_dir() else review.source.parent
    for file in (file for suffix in ("txt", "xml", "csv") for file in folder.rglob(f"*.{suffix}")):
        assert (review.folder / "fixed" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_more_than_half_a_pixel_is_a_move(one_kind: Review) -> None:
    one_kind.regions("two.png")[0]["value"]["width"] += 100 * 0.51 / WIDTH
    assert_pages(one_kind.apply(), read_pages(one_kind.data) | {"two.png": [("Sandal", (10, 10, 38.51, 38))]})


def test_a_copy_of_the_prediction_accepts_all_of_it(review: Review) -> None:
    for task in review.export:
        task["annotations"].append(annotation(7, task["predictions"][0]["result"], parent_prediction=3))
    assert_pages(
        review.apply(),
        {
            "one.png": [("Bag", (40, 30, 68, 58))],
            "two.png": [("Sandal", (12, 9, 40, 41))],
            "none.png": [("Bag", (1, 2, 21, 12))],
        },
    )


def test_skipped_and_open_tasks_are_left_alone_and_an_emptied_one_is_not(one_kind: Review) -> None:
    one_kind.task("one.png")["annotations"] = [annotation(1, [], was_cancelled=True)]
    one_kind.task("none.png")["annotations"] = []
    one_kind.regions("two.png").clear()
    assert one_kind.apply() == read_pages(one_kind.data) | {"two.png": []}


def test_a_box_that_reaches_out_of_the_picture_is_cut_at_its_edge(one_kind: Review) -> None:
    one_kind.regions("none.png").append(region("Bag", (-3.0, 10.0, 20.0, HEIGHT + 0.25)))
    wanted = read_pages(one_kind.data) | {"none.png": [("Bag", (0.0, 10.0, 20.0, float(HEIGHT)))]}
    assert_pages(one_kind.apply(), wanted)


def test_boxes_with_odd_ids_come_back_and_those_without_one_or_ignored_are_locked(tmp_path: Path) -> None:
    file = coco(tmp_path)
    first, second, third = file.document["annotations"]
    first["id"], third["iscrowd"] = 'a#1 "ü"', 1
    del second["id"]
    data = read_boxes(file.write(), progress=False)
    flagged = [issue(data, "one.png", 0, "swapped", 0.1, "Bag"), issue(data, "two.png", 0, "spurious", 0.2)]
    write_box_tasks(tmp_path / "tasks.json", data, flagged, "", "f")
    tasks = export(json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8")))
    (odd, unnamed), (crowd,) = (task["annotations"][0]["result"] for task in tasks)
    assert "#" not in odd["id"] and "readonly" not in odd and unnamed["readonly"] and crowd["readonly"]
    odd["value"]["rectanglelabels"] = ["Sandal"]

    def read() -> Any:
        (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
        return read_box_export(tmp_path / "export.json", data, "f")

    (edits,) = read().values()
    assert {key: drawn.label for key, drawn in edits.changed.items()} == {'a#1 "ü"': "Sandal"} and not edits.removed
    unnamed["value"]["rectanglelabels"] = ["Sandal"]
    with pytest.raises(InvalidInput, match=r"task 40: annotation 900, region 2: .*box 2 has no id"):
        read()
    tasks[0]["annotations"][0]["result"].remove(unnamed)
    with pytest.raises(InvalidInput, match=r"task 40: .*box 2 has no id"):
        read()


def test_boxes_without_an_id_alone_make_no_task(tmp_path: Path) -> None:
    file = coco(tmp_path)
    for one in file.document["annotations"]:
        del one["id"]
    data = read_boxes(file.write(), progress=False)
    write_box_tasks(tmp_path / "tasks.json", data, [issue(data, "one.png", 0, "spurious", 0.1)], "", "f")
    assert json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photograph_is_shown_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2,label\nx.jpg,4,6,20,36,Bag\n", encoding="utf-8")
    data = read_boxes(tmp_path / "boxes.csv", progress=False)
    found_issue = BoxIssue(0, 2, 0.1, True, "spurious", (0, (4.0, 6.0, 20.0, 36.0)), None, None, (), 1.0, 0.5)
    write_box_tasks(tmp_path / "tasks.json", data, [found_issue], "", "f")
    (task,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    (part,) = task["annotations"][0]["result"]
    wide, high = (60, 40) if orientation == 3 else (40, 60)
    assert (part["original_width"], part["original_height"]) == (wide, high)
    assert part["value"]["width"] == pytest.approx(100 * 16 / wide)
    assert part["value"]["height"] == pytest.approx(100 * 30 / high)


def test_every_suggestion_for_composed_scenes_comes_back_as_it_was_made(tmp_path: Path) -> None:
    audited = audit_scenes(tmp_path)
    data, flagged = audited.data, [one for one in audited.issues if one.is_issue]
    write_box_tasks(tmp_path / "tasks.json", data, audited.issues, "", "f")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    worst = [data.relative(data.samples[one.sample]) for one in flagged]
    assert [task["data"]["path"] for task in tasks] == list(dict.fromkeys(worst))
    assert [task["predictions"][0]["score"] for task in tasks] == sorted(task["data"]["label_score"] for task in tasks)
    accepted = export(tasks)
    for task in accepted:
        task["annotations"].append(annotation(7, task["predictions"][0]["result"]))
    (tmp_path / "export.json").write_text(json.dumps(accepted), encoding="utf-8")
    edits = read_box_export(tmp_path / "export.json", data, "f")
    for place, sample in enumerate(data.samples):
        edit = edits.get(data.relative(sample))
        own = [one for one in flagged if one.sample == place]
        assert (edit.removed if edit else set()) == {one.box_id for one in own if one.cause == "spurious"}
        added = [(drawn.label, drawn.xyxy) for drawn in edit.added] if edit else []
        missing = [one for one in own if one.cause == MISSING]
        for (label, box), one in zip(added, missing, strict=True):
            assert one.label is not None and label == data.labels[one.label] and box == pytest.approx(one.box, abs=1e-9)
        relabelled = {key for key, drawn in edit.changed.items() if drawn.label is not None} if edit else set()
        assert relabelled == {one.box_id for one in own if one.cause == "swapped" and one.label is not None}
