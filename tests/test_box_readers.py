"""Every format of boxes, whole and broken, on garments at known places."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import InvalidInput
from models.image import decode_image
from scripts.box_readers import BOX_READERS, infer_box_format, is_detection, read_boxes
from scripts.box_tables import turn_box
from tests.box_files import HEIGHT, LABELS, PAGES, WIDTH, box_csv, coco, fails, found, voc, yolo
from tests.labelled_files import pictures, table


def test_every_format_gives_the_same_boxes(tmp_path: Path) -> None:
    paths = {
        "coco": coco(tmp_path / "coco").write(),
        "yolo": yolo(tmp_path / "yolo"),
        "voc": voc(tmp_path / "voc"),
        "csv": box_csv(tmp_path / "csv"),
    }
    assert set(paths) == set(BOX_READERS)
    for kind, path in paths.items():
        assert infer_box_format(path) == kind
        data = read_boxes(path, progress=False)
        assert (data.labels, found(data)) == (LABELS, PAGES), kind
        assert data.counts.tolist() == [1, 1, 1]
        assert (data.skipped, data.dropped, data.clipped) == ((), (), 0)
        assert {(sample.width, sample.height) for sample in data.samples} == {(WIDTH, HEIGHT)}
        assert all(sample.boxes.xyxy.dtype == np.float64 for sample in data.samples)
        assert all(sample.boxes.xyxy.shape == (len(sample.boxes.ids), 4) for sample in data.samples)


def test_what_holds_labels_of_whole_pictures_is_no_detection_set(tmp_path: Path) -> None:
    pictures(tmp_path, "a/x.png", "labels/y.png")
    assert not is_detection(tmp_path)
    assert not is_detection(table(tmp_path, "image,label\na/x.png,a\n"))
    assert not is_detection(table(tmp_path, '{"image": "a/x.png", "label": "a"}\n', "list.jsonl"))
    assert is_detection(table(tmp_path, "image,label,xmin,ymin,xmax,ymax\n", "boxes.csv"))
    assert "no such file" in fails(tmp_path / "absent.json")
    assert "holds no boxes" in fails(tmp_path)


def test_coco_finds_pictures_beside_in_images_and_where_told(tmp_path: Path) -> None:
    for place in (".", "images", "elsewhere"):
        path = coco(tmp_path / place, place).write()
        images = None if place != "elsewhere" else tmp_path / place / place
        data = read_boxes(path, images=images, progress=False)
        assert found(data) == PAGES
        assert all(data.relative(sample) for sample in data.samples)
    assert "no file 'one.png'" in fails(tmp_path / "elsewhere" / "instances.json")


def test_coco_keeps_ids_crowds_splits_and_groups(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.document["annotations"][1]["iscrowd"] = 1
    file.document["images"][0] |= {"split": "val", "group": "g"}
    data = read_boxes(file.write(), progress=False)
    first = data.samples[0]
    assert (first.boxes.ids, first.boxes.ignored.tolist()) == ((100, 101), [False, True])
    assert (first.split, first.group, first.image_id, data.samples[1].split) == ("val", "g", 1, None)
    assert (first.classes, data.counts.tolist()) == ((LABELS.index("Dress"),), [0, 1, 1])


BROKEN: list[tuple[dict[str, object], str]] = [
    ({"id": 201, "bbox": [5, 5, 0, 9]}, "annotation 201: no area"),
    ({"id": 202, "bbox": [5, 5, 9, -3]}, "annotation 202: swapped corners or a negative side"),
    ({"id": 203, "bbox": [200, 5, 9, 9]}, "annotation 203: wholly outside the picture of 96 x 64"),
    ({"id": 204, "bbox": [float("nan"), 5, 9, 9]}, "annotation 204: nan is not a finite number"),
    ({"id": 205, "bbox": [5, float("inf"), 9, 9]}, "annotation 205: inf is not a finite number"),
    ({"id": 206, "bbox": [5, 5, 9]}, "annotation 206: 3 numbers where a box has 4"),
    ({"id": 207, "category_id": 99}, "annotation 207: there is no category 99"),
    ({"id": 100}, "annotation 100: the id is there more than once"),
    ({"id": 208, "image_id": 77}, "annotation 208: there is no image 77"),
    ({"id": 209, "bbox": None}, "annotation 209: there is no bbox"),
    ({"id": 210, "bbox": [5, 5, True, 9]}, "annotation 210: 'True' is not a number"),
    ({"id": None, "bbox": "5 5 9 9"}, "annotation #15: bbox is not a list"),
    ({"id": 211, "bbox": [5, 5, 10**400, 9]}, "annotation 211: "),
    ({"id": 212, "bbox": [5, 5, 9, 0]}, "annotation 212: no area"),
    ({"id": 213, "bbox": [5, 5, 1e-9, 1e-9]}, "annotation 213: no area"),
    ({"id": 214, "bbox": [95.9999, 5, 9, 9]}, "annotation 214: wholly outside the picture of 96 x 64"),
    ({"id": 215, "iscrowd": "0"}, "annotation 215: iscrowd is '0', not 0 or 1"),
    ({"id": 216, "iscrowd": float("nan")}, "annotation 216: iscrowd is nan, not 0 or 1"),
    ({"id": 217, "iscrowd": 2}, "annotation 217: iscrowd is 2, not 0 or 1"),
    ({"id": "\x1b[31m\nall fine", "bbox": []}, "annotation \x1b[31m\nall fine: 0 numbers"),
]


def test_a_coco_file_with_every_kind_of_broken_annotation(tmp_path: Path) -> None:
    file = coco(tmp_path)
    whole = {"image_id": 1, "category_id": 3, "bbox": [5, 5, 9, 9]}
    file.document["annotations"] += [whole | change for change, _ in BROKEN]
    path = file.write()
    message = fails(path)
    assert message.startswith(f"{len(BROKEN)} problems in instances.json:")
    assert message.endswith(f"and {len(BROKEN) - 10} more")
    data = read_boxes(path, on_bad_box="drop", progress=False)
    said = [f"{one.origin}: {one.reason}" for one in data.dropped]
    assert len(said) == len(BROKEN) and found(data) == PAGES
    for _, want in BROKEN:
        assert any(line.startswith(f"instances.json: {want}") for line in said), want


@pytest.mark.parametrize("change, want", BROKEN)
def test_each_broken_annotation_alone_is_refused(tmp_path: Path, change: dict[str, object], want: str) -> None:
    file = coco(tmp_path)
    file.document["annotations"].append({"image_id": 1, "category_id": 3, "bbox": [5, 5, 9, 9]} | change)
    message = fails(file.write())
    assert want.replace("#15", "#4").replace("\x1b", "\\x1b").replace("\n", "\\n") in message
    assert message.isprintable(), "what a file says cannot write over the terminal"


def test_boxes_that_stick_out_are_cut_and_counted(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.document["annotations"][0]["bbox"] = [-7, 4, 37, 1000]
    file.document["annotations"][1]["bbox"] = [0, 0, WIDTH + 1e-4, HEIGHT]  # rounding is no fault
    data = read_boxes(file.write(), progress=False)
    assert data.samples[0].boxes.xyxy.tolist() == [[0, 4, 30, HEIGHT], [0, 0, WIDTH, HEIGHT]]
    assert data.clipped == 1


def test_coco_documents_that_are_none_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, want in [("{", "not JSON"), ("[]", "not a COCO file"), ("[" * 100_000, "not JSON"), ("", "not JSON"),
                       ('{"images": 3, "categories": []}', "is not a list of objects"),
                       ('{"images": [], "categories": []}', "there are no categories"),
                       ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', "no pictures")]:  # fmt: skip
        path.write_text(text)
        assert want in fails(path) and "\n" not in fails(path)
    file = coco(tmp_path)
    file.document["categories"].append({"id": 3, "name": "Bag"})
    assert "category 3: the id is there more than once" in fails(file.write())
    file = coco(tmp_path)
    file.document["images"].append(dict(file.document["images"][0], id=9))
    assert "'one.png' is already in" in fails(file.write())


def test_pictures_that_are_missing_bad_or_of_another_size_are_refused_or_left_out(tmp_path: Path) -> None:
    file = coco(tmp_path)
    (tmp_path / "images" / "two.png").unlink()
    (tmp_path / "images" / "none.png").write_bytes(b"no picture")
    message = fails(file.write())
    assert "image 2: no file 'two.png'" in message and "image 3: none.png: not a JPEG" in message
    data = read_boxes(file.write(), on_bad_image="skip", progress=False)
    assert [one.origin for one in data.skipped] == ["instances.json: image 2", "instances.json: image 3"]
    file.document["images"] = [dict(file.document["images"][0], width=97)]
    file.document["annotations"] = file.document["annotations"][:2]
    assert "the picture is 96 x 64, not 97 x 64 as stated" in fails(file.write())
    file.document["images"][0] |= {"width": 96, "file_name": "../../one.png"}
    assert "is outside" in fails(file.write())


@pytest.mark.parametrize("orientation, stored", [(k, False) for k in range(1, 9)] + [(k, True) for k in range(5, 9)])
def test_boxes_follow_a_picture_that_exif_turns(tmp_path: Path, orientation: int, stored: bool) -> None:
    # One light rectangle on black; its place upright is read off the decoded picture itself.
    canvas = np.zeros((40, 60, 3), np.uint8)
    canvas[4:14, 6:26] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(canvas).save(tmp_path / "x.png", exif=exif)
    light = decode_image((tmp_path / "x.png").read_bytes())[..., 0] > 128
    rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
    want = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    size = (60, 40) if stored or orientation < 5 else (40, 60)
    box = (6, 4, 26, 14) if stored else want
    document = {
        "images": [{"id": 1, "file_name": "x.png", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "light"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1,
             "bbox": [int(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]}
        ],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(document))
    data = read_boxes(tmp_path / "x.json", progress=False)
    assert data.samples[0].boxes.xyxy.tolist() == [want]
    assert (data.samples[0].height, data.samples[0].width) == light.shape


@given(st.sampled_from([5, 6, 7, 8]), st.integers(1, 50), st.integers(1, 50))
def test_turning_keeps_boxes_inside_and_their_sides(orientation: int, width: int, height: int) -> None:
    x1, y1, x2, y2 = turn_box((0.25, 0.5, width, height), orientation, width, height)
    assert 0 <= x1 < x2 <= height and 0 <= y1 < y2 <= width
    assert (x2 - x1, y2 - y1) == (height - 0.5, width - 0.25)


@pytest.mark.parametrize("width, height", [(1, 1), (8192, 1), (1, 8192), (8192, 64)])
def test_pictures_of_any_size_up_to_8192(tmp_path: Path, width: int, height: int) -> None:
    Image.new("L", (width, height)).save(tmp_path / "x.png")
    data = read_boxes(table(tmp_path, f"image,x1,y1,x2,y2,label\nx.png,0,0,{width},{height},a\n"), progress=False)
    assert data.samples[0].boxes.xyxy.tolist() == [[0, 0, width, height]]


def test_given_labels_keep_their_order_and_refuse_others(tmp_path: Path) -> None:
    path = coco(tmp_path).write()
    data = read_boxes(path, labels=["Sandal", "never", "Dress", "Bag"], progress=False)
    assert (data.labels[0], data.counts.tolist(), found(data)) == ("Sandal", [1, 0, 1, 1], PAGES)
    assert "annotation 101: unknown label 'Bag'" in fails(path, labels=["Sandal", "Dress"])
    assert "must be different" in fails(path, labels=["Bag", "Bag"])


def test_a_set_without_any_box_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.document["annotations"] = []
    assert "no picture has a box" in fails(file.write())


def test_a_set_of_ignore_regions_alone_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    for one in file.document["annotations"]:
        one["iscrowd"] = 1
    assert "ignore regions do not count" in fails(file.write())


def test_class_names_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.document["categories"][0]["name"] = "Bag\x1b[2J"
    assert "the class name Bag\\x1b[2J has characters that cannot be shown" in fails(file.write())


def test_a_file_name_that_no_file_can_have_is_a_missing_picture(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.document["images"][1]["file_name"] = "a" * 5000
    path = file.write()
    message = fails(path)
    assert message.startswith("instances.json: image 2: aaaa") and len(message) < 200
    data = read_boxes(path, on_bad_image="skip", progress=False)
    assert [one.origin for one in data.left_out] == ["instances.json: image 2"]


def test_the_fingerprint_ignores_order_and_place_and_sees_boxes_labels_and_content(tmp_path: Path) -> None:
    file = coco(tmp_path / "a")
    first = read_boxes(file.write(), progress=False).fingerprint()
    for key in ("images", "annotations", "categories"):
        file.document[key].reverse()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read_boxes(file.write(), progress=False).fingerprint() == first
    assert read_boxes(tmp_path / "b" / "instances.json", progress=False).fingerprint() == first
    file.document["annotations"][0]["bbox"][0] += 1
    assert read_boxes(file.write(), progress=False).fingerprint() != first
    file.document["annotations"][0]["bbox"][0] -= 1
    file.document["annotations"][0]["iscrowd"] = 1
    assert read_boxes(file.write(), progress=False).fingerprint() != first
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b" / "images" / "one.png")
    assert read_boxes(tmp_path / "b" / "instances.json", progress=False).fingerprint() != first


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "x", "\0", "\ud800", "../x.png", "1e999", 10**400, -(2**63)]),
    st.lists(st.integers(0, 3), max_size=5),
    st.dictionaries(st.sampled_from(["id", "bbox"]), st.integers(), max_size=2),
)
KEYS = ["id", "image_id", "category_id", "bbox", "iscrowd", "file_name", "width", "height", "name", "split", "group"]


@given(st.sampled_from(["images", "annotations", "categories"]), st.sampled_from(KEYS), JUNK, st.booleans())
def test_junk_anywhere_in_a_coco_file_is_read_or_refused_in_words(part: str, key: str, junk: object, row: bool) -> None:
    with TemporaryDirectory() as folder:
        file = coco(Path(folder), ".")
        if row:
            file.document[part][0][key] = junk
        else:
            file.document[part] = [junk, *file.document[part]] if key < "d" else junk
        path = file.write()
        try:
            data = read_boxes(path, on_bad_box="drop", on_bad_image="skip", progress=False)
        except InvalidInput:
            return
        assert all((one.boxes.xyxy[:, 2:] > one.boxes.xyxy[:, :2]).all() for one in data.samples)
        assert len(data.fingerprint()) == 64
