"""YOLO, Pascal VOC and CSV: their layouts, and what is wrong in them named by file and line."""

import shutil
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput
from scripts.box_readers import read_boxes
from tests.box_files import PAGES, box_csv, fails, found, voc, write_pages, yolo

SPLIT_YAML = """
path: /somebody/elses/machine
train: ../images
val: images_val
names: {0: Bag, 1: Dress, 2: Sandal}
"""


def test_yolo_reads_data_yaml_with_its_splits(tmp_path: Path) -> None:
    yolo(tmp_path, SPLIT_YAML)
    (tmp_path / "images_val").mkdir()
    shutil.move(tmp_path / "images" / "two.png", tmp_path / "images_val" / "two.png")
    shutil.move(tmp_path / "labels" / "two.txt", tmp_path / "images_val" / "two.txt")
    data = read_boxes(tmp_path, progress=False)
    assert found(data) == {name: PAGES[name] for name in ("none.png", "one.png", "two.png")}
    assert [sample.split for sample in data.samples] == ["train", "train", "val"]
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: nowhere\n")
    assert "'nowhere' is not in" in fails(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a, a]\n")
    assert "names must be a list of different names" in fails(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: a, 2: b}\n")
    assert "numbered 0, 1, 2" in fails(tmp_path)
    (tmp_path / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []\n")
    assert "not YAML" in fails(tmp_path)


def test_yolo_lists_of_pictures_and_folders_of_splits(tmp_path: Path) -> None:
    yolo(tmp_path, "train: train.txt\nnames: [Bag, Dress, Sandal]\n")
    (tmp_path / "train.txt").write_text("./images/one.png\nimages/two.png\n")
    assert list(found(read_boxes(tmp_path, progress=False))) == ["one.png", "two.png"]
    (tmp_path / "train.txt").write_text("../secret.png\n")
    assert "outside" in fails(tmp_path)
    split = yolo(tmp_path / "b")
    for kind in ("images", "labels"):
        shutil.move(split / kind, split / "x")
        shutil.move(split / "x", split / kind / "valid")
    data = read_boxes(split, progress=False)
    assert ({sample.split for sample in data.samples}, found(data)["one.png"]) == ({"val"}, PAGES["one.png"])


def test_bad_lines_of_yolo_are_named(tmp_path: Path) -> None:
    yolo(tmp_path)
    lines = ["0 .5 .5 .1", "3 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0 .5 .5 .1 .1 .9", "1.0 .5 .5 .1 .1", "0 nan .5 .1 .1",
             "0 .5 .5 0 .1", "0 1.6 .5 .1 .1", "0 .5 .5 -.1 .1", "", "0 .95 .5 .2 .1"]  # fmt: skip
    (tmp_path / "labels" / "none.txt").write_text("\n".join(lines))
    (tmp_path / "labels" / "lost.txt").write_text("0 .5 .5 .1 .1\n")
    message = fails(tmp_path)
    assert message.startswith("10 problems") and "labels/lost.txt: no picture goes with this file" in message
    assert all(f"labels/none.txt:{number}: " in message for number in range(1, 10))
    data = read_boxes(tmp_path, on_bad_box="drop", progress=False)
    assert (len(data.dropped), data.clipped) == (10, 1)
    boxes = next(sample.boxes for sample in data.samples if sample.path.name == "none.png")
    assert (boxes.xyxy.round(3).tolist(), boxes.ids) == ([[81.6, 28.8, 96.0, 35.2]], (11,))


@pytest.mark.parametrize(
    "text, want",
    [
        ("names: [a, no]", "a name is a bool"),
        ("x: &a [1, 2]\nnames: [*a, b]", "a name is a list"),
        ("names: [Bag, Dress, Sandal]\ntrain: [[images]]", "train should be a folder"),
    ],
)
def test_what_yaml_makes_of_a_name_is_told(tmp_path: Path, text: str, want: str) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    assert want in fails(tmp_path)


@pytest.mark.parametrize(
    "place", ["names: *j", "names: [a, b, c]\ntrain: *j", "names: [a, b, c]\ntrain: images\npath: *j"]
)
def test_aliases_of_aliases_in_yaml_cost_nothing(tmp_path: Path, place: str) -> None:
    yolo(tmp_path)
    levels = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    levels += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise("abcdefghij")]
    (tmp_path / "data.yaml").write_text("\n".join([*levels, place]))
    with pytest.raises(InvalidInput):
        read_boxes(tmp_path, progress=False)


def test_voc_difficult_objects_image_sets_and_pictures_without_xml(tmp_path: Path) -> None:
    voc(tmp_path)
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png")):
        (tmp_path / folder).mkdir()
        for file in tmp_path.glob(f"*{suffix}"):
            shutil.move(file, tmp_path / folder / file.name)
    text = (tmp_path / "Annotations" / "one.xml").read_text()
    text = text.replace("</name>", "</name><difficult>1</difficult>", 1)
    (tmp_path / "Annotations" / "one.xml").write_text(text)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("two\n")
    write_pages(tmp_path / "JPEGImages", {"bare.png": []})
    data = read_boxes(tmp_path, progress=False)
    samples = {sample.path.name: sample for sample in data.samples}
    assert samples["one.png"].boxes.ignored.tolist() == [True, False]
    assert (samples["two.png"].split, samples["one.png"].split) == ("val", None)
    assert [(one.origin, one.reason) for one in data.skipped] == [("JPEGImages/bare.png", "has no annotation file")]


def test_pascals_own_files_count_from_one(tmp_path: Path) -> None:
    voc(tmp_path)
    file = tmp_path / "two.xml"
    file.write_text(
        file.read_text().replace("<size>", "<source><database>The VOC2007 Database</database></source><size>")
    )
    boxes = found(read_boxes(tmp_path, progress=False))["two.png"]
    assert boxes == [("Sandal", (9, 9, 38, 38))]


def test_bad_voc_files_are_named(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "one.xml").write_text("<annotation><object>")
    (tmp_path / "none.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    (tmp_path / "two.xml").write_text("<other/>")
    message = fails(tmp_path, on_bad_box="drop")
    assert "one.xml: not readable as XML" in message and "two.xml: a VOC file holds <annotation>" in message
    assert "none.xml: not readable as XML: entities or a DTD are not allowed" in message
    shutil.rmtree(tmp_path)
    text = (voc(tmp_path) / "two.xml").read_text()
    (tmp_path / "two.xml").write_text(
        text.replace("<xmin>10</xmin>", "").replace("</annotation>", "<object/></annotation>")
    )
    message = fails(tmp_path)
    assert "two.xml: object 1: 3 numbers" in message and "two.xml: object 2: it has no name" in message


@pytest.mark.parametrize(
    "old, new, want",
    [
        ("</name>", "</name><difficult>maybe</difficult>", "difficult is 'maybe', not 0 or 1"),
        ("</bndbox>", "</bndbox><bndbox></bndbox>", "it has more than one bndbox"),
    ],
)
def test_what_voc_leaves_open_is_refused(tmp_path: Path, old: str, new: str, want: str) -> None:
    file = voc(tmp_path) / "two.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    assert f"two.xml: object 1: {want}" in fails(tmp_path)


def test_two_columns_for_a_corner_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = box_csv(tmp_path, "image,x1,y1,x2,y2,label")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",xmin", *(line + ",3" for line in lines[1:])]))
    assert "could each be the x1 column; rename one of them" in fails(path)


def test_csv_aliases_splits_negatives_and_bad_rows(tmp_path: Path) -> None:
    path = box_csv(tmp_path, "file_name,xmin,ymin,xmax,ymax,class")
    assert found(read_boxes(path, progress=False)) == PAGES
    text = path.read_text().replace("\r\n", "\n")
    path.write_text(text + "one.png,1,2,3,,Bag\none.png,a,2,3,4,Bag\none.png,1,2,3,4,\nnone.png,,,,,Bag\n")
    message = fails(path)
    for want in ("boxes.csv:6: 3 numbers", "boxes.csv:7: 'a' is not a number", "boxes.csv:8: the label is empty",
                 "boxes.csv:9: the label 'Bag' without a box"):  # fmt: skip
        assert want in message
    assert found(read_boxes(path, on_bad_box="drop", progress=False)) == PAGES
    path.write_text("image,x1,y1,x2,y2,label,split\none.png,1,2,30,40,Bag,val\none.png,1,2,30,41,Bag,train\n")
    assert "boxes.csv:3: 'one.png' is already in boxes.csv:2 with another split or group" in fails(path)


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_junk_in_a_line_is_named_whatever_it_is(junk: str) -> None:
    with TemporaryDirectory() as folder:
        labels = yolo(Path(folder) / "y") / "labels" / "none.txt"
        labels.write_text(junk, encoding="utf-8")
        read_boxes(Path(folder) / "y", on_bad_box="drop", progress=False)
        table = box_csv(Path(folder) / "c")
        table.write_bytes(table.read_bytes() + junk.replace('"', "").encode())
        try:
            read_boxes(table, on_bad_box="drop", on_bad_image="skip", progress=False)
        except InvalidInput as error:
            assert "boxes.csv" in str(error)
