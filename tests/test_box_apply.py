"""`focalserve apply` on boxes: every kind of change in COCO and YOLO, all else as it was, every change told."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts import cli
from scripts.box_data import BoxDataSet
from scripts.box_decisions import BoxEdits, Drawn
from scripts.box_readers import infer_box_format, read_boxes
from scripts.box_writers import BOX_WRITERS
from tests.box_files import box_csv, coco, found, voc, yolo

Row = dict[str, object]
Write = Callable[[Path], Path]


def write_coco_pages(folder: Path) -> Path:
    file = coco(folder)
    file.document.update({"info": {"year": 2026}, "licenses": [{"id": 1, "name": "CC0"}], "extra": [1.5]})
    file.document["annotations"][0] |= {"attributes": {"occluded": True}, "segmentation": [[2, 4, 30, 4, 30, 32]]}
    file.document["images"][0]["license"] = 1
    return file.write()


SOURCES: dict[str, Write] = {"coco": write_coco_pages, "yolo": yolo, "voc": voc, "csv": box_csv}
IDS = {"coco": (100, 101, 102), "yolo": (1, 2, 1), "voc": (1, 2, 1), "csv": (2, 3, 4)}


def audit_of(folder: Path, source: Path, *issues: Row) -> Path:
    """The two files of an audit that `apply` reads."""
    folder.mkdir()
    data = read_boxes(source, progress=False)
    config = {"data": str(source), "settings": {"task": "detection", "fingerprint": data.fingerprint()}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "issues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in issues))
    return folder


def decide(path: Path, *rows: Row) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ["image", "box_id", "decision", "label", "box"])
        out.writeheader()
        out.writerows(rows)
    return path


@pytest.fixture(params=list(SOURCES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(kind: str, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return SOURCES[kind](tmp_path / "data")


def images(data: BoxDataSet) -> dict[str, str]:
    return {sample.path.name: data.relative(sample) for sample in data.samples}


def run(tmp_path: Path, source: Path, issues: list[Row], rows: list[Row]) -> tuple[int, Path]:
    audit = audit_of(tmp_path / "audit", source, *issues)
    file = decide(tmp_path / "decisions.csv", *rows)
    code = cli.main(["apply", str(audit), "--decisions", str(file), "--out", str(tmp_path / "fixed")])
    return code, tmp_path / "fixed" if source.is_dir() else tmp_path / "fixed" / source.name


def test_boxes_are_renamed_moved_removed_and_drawn(kind: str, source: Path, tmp_path: Path) -> None:
    before = read_boxes(source, progress=False)
    path, (dress, bag, sandal) = images(before), IDS[kind]
    one, two, none = path["one.png"], path["two.png"], path["none.png"]
    issues: list[Row] = [
        {"image": one, "box_id": dress, "cause": "swapped", "suggested_label": "Sandal", "suggested_box": None},
        {"image": one, "box_id": bag, "cause": "badly_located", "suggested_label": None,
         "suggested_box": [38.0, 28.0, 70.0, 60.0]},
        {"image": two, "box_id": sandal, "cause": "spurious", "suggested_label": None, "suggested_box": None},
        {"image": none, "box_id": "new-1", "cause": "missing", "suggested_label": "Bag",
         "suggested_box": [1.0, 2.0, 21.0, 12.0]},
        {"image": none, "box_id": "new-2", "cause": "missing", "suggested_label": "Bag",
         "suggested_box": [1.0, 2.0, 9.0, 12.0]},
    ]  # fmt: skip
    rows: list[Row] = [
        *({"image": row["image"], "box_id": row["box_id"], "decision": "accept"} for row in issues[:4]),
        {"image": none, "box_id": "new-2", "decision": "keep"},
        {"image": two, "label": "Dress", "box": "5|6|25|36"},
    ]
    code, fixed = run(tmp_path, source, issues, rows)
    assert code == 0
    after = read_boxes(fixed, progress=False)
    assert found(after) == {
        "one.png": [("Sandal", (2, 4, 30, 32)), ("Bag", (38, 28, 70, 60))],
        "two.png": [("Dress", (5, 6, 25, 36))],
        "none.png": [("Bag", (1, 2, 21, 12))],
    }
    with (tmp_path / "fixed" / "changes.csv").open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    assert [(row["image"], row["box_id"], row["action"]) for row in log if row["image"] != none] == [
        (one, str(dress), "relabelled"), (one, str(bag), "moved"), (two, str(sandal), "removed"), (two, "", "added")
    ]  # fmt: skip
    assert found(read_boxes(source, progress=False)) == found(before)


def test_without_a_change_the_new_data_set_means_the_same(kind: str, source: Path, tmp_path: Path) -> None:
    code, fixed = run(tmp_path, source, [], [])
    before, after = read_boxes(source, progress=False), read_boxes(fixed, progress=False)
    assert code == 0 and after.fingerprint() == before.fingerprint()
    if kind == "coco":
        assert json.loads(fixed.read_text()) == json.loads(source.read_text())
    folder = source if source.is_dir() else source.parent
    for file in (file for suffix in ("txt", "xml", "csv") for file in folder.rglob(f"*.{suffix}")):
        assert (tmp_path / "fixed" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_a_dropped_picture_goes_with_its_boxes(source: Path, tmp_path: Path) -> None:
    path = images(read_boxes(source, progress=False))
    code, fixed = run(tmp_path, source, [], [{"image": path["one.png"], "decision": "drop"}])
    after = read_boxes(fixed, progress=False)
    assert code == 0 and set(found(after)) == {"two.png", "none.png"} and not after.dropped
    assert not list((tmp_path / "fixed").rglob("one.*"))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": "nowhere.png", "decision": "keep"}, "the data set has no image 'nowhere.png'"),
        ({"box_id": 999, "decision": "drop"}, "the picture has no box 999"),
        ({"box_id": 999, "decision": "accept"}, "the picture has no box 999"),
        ({"decision": "maybe"}, "decision 'maybe' is none of accept, keep, drop"),
        ({"label": "Hat", "box": "1|2|3|4"}, "unknown label 'Hat'"),
        ({"label": "Bag"}, "a new box needs a label and a box"),
        ({"label": "Bag", "box": "1|2|3"}, "3 numbers where a box has 4"),
        ({"label": "Bag", "box": "9|2|3|4"}, "swapped corners"),
        ({"label": "Bag", "box": "900|2|903|4"}, "wholly outside the picture"),
    ],
)
def test_a_wrong_decision_is_refused_with_its_line_and_nothing_is_written(
    row: Row, complaint: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images(read_boxes(source, progress=False))["one.png"]
    code, _ = run(tmp_path, source, [], [{"image": image} | row])
    said = capsys.readouterr().err
    assert code == 2 and "decisions.csv:2: " in said and complaint in said
    assert not (tmp_path / "fixed").exists()


def test_the_same_box_is_decided_once_and_boxes_are_not_accepted_unseen(
    kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images(read_boxes(source, progress=False))["one.png"]
    twice: Row = {"image": image, "box_id": IDS[kind][0], "decision": "keep"}
    assert run(tmp_path, source, [], [twice, twice])[0] == 2
    assert cli.main(["apply", str(tmp_path / "audit"), "--accept-issues", "--out", str(tmp_path / "fixed")]) == 2
    said = capsys.readouterr().err
    assert "a second decision" in said and "not accepted unseen" in said


def test_cocos_other_keys_and_ids_stay(tmp_path: Path) -> None:
    source = write_coco_pages(tmp_path)
    data = read_boxes(source, progress=False)
    image = images(data)["one.png"]
    out = tmp_path / "out"
    out.mkdir()
    moved = BoxEdits(changed={100: Drawn(None, (1.0, 2.0, 11.0, 22.0))}, added=[Drawn("Bag", (0.0, 0.0, 5.0, 4.0))])
    BOX_WRITERS["coco"](source, data, {image: moved}, out)
    was, now = (json.loads(file.read_text()) for file in (source, out / source.name))
    assert now["annotations"][0] == was["annotations"][0] | {"bbox": [1.0, 2.0, 10.0, 20.0]}
    assert now["annotations"][1:3] == was["annotations"][1:]
    assert now["annotations"][3] == {
        "id": 103, "image_id": 1, "category_id": 3, "bbox": [0.0, 0.0, 5.0, 4.0], "area": 20.0, "iscrowd": 0
    }  # fmt: skip
    assert now | {"annotations": None} == was | {"annotations": None}


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_table_keeps_its_other_columns_and_the_pictures_that_lose_all_their_boxes(
    ending: str, tmp_path: Path
) -> None:
    source = box_csv(tmp_path)
    rows = ["image;x1;y1;x2;y2;label;who", 'one.png;2;4;30;32;Dress;"a ""b"""', "one.png;40;30;68;58;Bag;c"]
    source.write_text("\r\n".join([*rows, "two.png;10;10;38;38;Sandal;d"]) + ending, newline="")
    data = read_boxes(source, progress=False)
    (tmp_path / "out").mkdir()
    edits = {
        "one.png": BoxEdits(changed={3: Drawn("Dress", None)}, added=[Drawn("Bag", (1.0, 2.0, 3.5, 4.0))]),
        "two.png": BoxEdits(removed={4}),
    }
    BOX_WRITERS["csv"](source, data, edits, tmp_path / "out")
    assert (tmp_path / "out" / "boxes.csv").read_bytes().decode() == "\r\n".join(
        [*rows[:2], "one.png;40;30;68;58;Dress;c", 'one.png;1;2;3.5;4;Bag;"a ""b"""', "two.png;;;;;;d", ""]
    )
    more = {"two.png": BoxEdits(added=[Drawn("Bag", (1.0, 2.0, 3.0, 4.0))])}
    BOX_WRITERS["csv"](source, data, more, tmp_path / "out")
    now = (tmp_path / "out" / "boxes.csv").read_bytes().decode().splitlines()
    assert now == [*rows, "two.png;10;10;38;38;Sandal;d", "two.png;1;2;3;4;Bag;d"]


def test_pascals_own_files_keep_counting_from_one(tmp_path: Path) -> None:
    folder = voc(tmp_path)
    file = folder / "one.xml"
    source = "<source><database>The VOC2007 Database</database></source><size>"
    file.write_text(file.read_text().replace("<size>", source, 1))
    data = read_boxes(folder, progress=False)
    out = tmp_path / "out"
    out.mkdir()
    moved, new = Drawn(None, (4.0, 5.0, 20.0, 21.5)), Drawn("Bag", (0.0, 0.0, 9.0, 9.0))
    edits = {"one.png": BoxEdits(changed={1: moved}, added=[new])}
    BOX_WRITERS["voc"](folder, data, edits, out)
    corners = [[one.text for one in box] for box in ElementTree.parse(out / "one.xml").getroot().iter("bndbox")]
    assert corners == [["5", "6", "20", "21.5"], ["40", "30", "68", "58"], ["1", "1", "9", "9"]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_of_a_turned_photograph_is_written_as_the_file_is_stored(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 10, 20, 15]}
    picture = {"id": 1, "file_name": "x.jpg", "width": 60, "height": 40}
    source = tmp_path / "turned.json"
    source.write_text(
        json.dumps({"images": [picture], "annotations": [annotation], "categories": [{"id": 1, "name": "a"}]})
    )
    data = read_boxes(source, progress=False)
    x1, y1, x2, y2 = data.samples[0].boxes.xyxy[0].tolist()
    (tmp_path / "out").mkdir()
    again = {"x.jpg": BoxEdits(changed={1: Drawn(None, (x1, y1, x2, y2))})}
    BOX_WRITERS["coco"](source, data, again, tmp_path / "out")
    written: Any = json.loads((tmp_path / "out" / "turned.json").read_text())
    assert written["annotations"][0]["bbox"] == [5, 10, 20, 15]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in SOURCES.items()}


@settings(max_examples=25)
@given(
    corners=st.tuples(*(st.floats(0, 40) for _ in range(2)), *(st.floats(45, 60) for _ in range(2))),
    label=st.sampled_from([None, "Bag", "Dress", "Sandal"]),
    which=st.sampled_from([0, 1]),
)
def test_what_is_written_is_what_is_read(
    corners: tuple[float, float, float, float], label: str | None, which: int, both: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    for kind, source in both.items():
        data = read_boxes(source, progress=False)
        image, out = images(data)["one.png"], tmp_path_factory.mktemp("out")
        assert infer_box_format(source) == kind
        edits = {image: BoxEdits(changed={IDS[kind][which]: Drawn(label, corners)})}
        BOX_WRITERS[kind](source, data, edits, out)
        for name, path in images(data).items():
            (out / path).parent.mkdir(exist_ok=True)
            (out / path).symlink_to(next(sample.path for sample in data.samples if sample.path.name == name))
        after = read_boxes(out if source.is_dir() else out / source.name, progress=False)
        boxes = next(sample for sample in after.samples if sample.path.name == "one.png").boxes
        assert boxes.xyxy[which] == pytest.approx(corners, abs=1e-4)
        was = next(sample for sample in data.samples if sample.path.name == "one.png").boxes
        wanted = data.labels[int(was.labels[which])] if label is None else label
        assert after.labels[int(boxes.labels[which])] == wanted
        assert boxes.xyxy[1 - which].tolist() == was.xyxy[1 - which].tolist()
