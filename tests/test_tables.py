import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cells import neutralize, restore
from scripts.readers import read_dataset
from tests.labelled_files import HOSTILE, fails, labelled, pictures, table


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("image", ["image", "path", "file_name", "filename", "FILE", " Image_Path "])
@pytest.mark.parametrize("label", ["label", "Class", "category", "target", "given_label"])
def test_aliases_delimiters_and_capitals_are_understood(tmp_path: Path, mark: str, image: str, label: str) -> None:
    pictures(tmp_path, "x.png", "y.png")
    path = table(tmp_path, f"{image}{mark}{label}\nx.png{mark}cat\ny.png{mark}dog\n")
    assert labelled(read_dataset(path)) == {"x.png": "cat", "y.png": "dog"}


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    path = table(tmp_path, "\ufeffimage,label\r\nx.png,cat\r\n\r\ny.png,dog\r\n")
    data = read_dataset(path)
    assert [sample.origin for sample in data.samples] == ["list.csv:2", "list.csv:4"]


def test_hostile_file_names_and_labels_are_only_text(tmp_path: Path) -> None:
    pictures(tmp_path, *HOSTILE)
    quoted = ['"' + name.replace('"', '""') + '"' for name in HOSTILE]
    path = table(
        tmp_path, "image,label\n" + "".join(f'{name},"<img onerror=1>, {k % 2}"\n' for k, name in enumerate(quoted))
    )
    data = read_dataset(path)
    assert [data.relative(sample) for sample in data.samples] == HOSTILE
    assert data.labels == ("<img onerror=1>, 0", "<img onerror=1>, 1")


def test_the_apostrophe_of_our_own_csv_files_is_undone(tmp_path: Path) -> None:
    pictures(tmp_path, "=1+1.png", "y.png")
    data = read_dataset(table(tmp_path, "image,label\n'=1+1.png,'=cmd\ny.png,'tis\n"))
    assert labelled(data) == {"=1+1.png": "=cmd", "y.png": "'tis"}


@given(st.text() | st.text("'=+-@x"))
def test_restoring_undoes_neutralizing_and_no_cell_starts_a_formula(text: str) -> None:
    cell = neutralize(text)
    assert restore(cell) == text and not cell.startswith(("=", "+", "-", "@"))


def test_hostile_names_are_read_from_folders_and_json_too(tmp_path: Path) -> None:
    root = tmp_path / "folders"
    pictures(root, *(f"=class {k % 2},/{name}" for k, name in enumerate(HOSTILE)))
    data = read_dataset(root)
    assert len(data.samples) == len(HOSTILE) and data.labels == ("=class 0,", "=class 1,")
    lines = [json.dumps({"image": data.relative(s), "label": data.labels[s.classes[0]]}) for s in data.samples]
    again = read_dataset(table(root, "\n".join(lines), "list.jsonl"))
    assert again.fingerprint() == data.fingerprint()


def test_split_and_group_columns_are_read(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png", "z.png")
    path = table(tmp_path, "image,label,split,group\nx.png,a,Training,p1\ny.png,b,valid,p2\nz.png,b,,\n")
    found = [(sample.split, sample.group) for sample in read_dataset(path).samples]
    assert found == [("train", "p1"), ("val", "p2"), (None, None)]


def test_columns_can_be_named_where_no_alias_fits_or_two_do(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    path = table(tmp_path, "Photo,label,class,patient,part\nx.png,1,a,p,val\ny.png,2,b,q,train\n")
    assert "'label' and 'class' could each be the label column" in fails(path, image_column="photo")
    data = read_dataset(path, image_column="photo", label_column="Class", group_column="patient", split_column="part")
    assert data.labels == ("a", "b")
    assert (data.samples[0].group, data.samples[0].split) == ("p", "val")
    assert "no column 'nope'" in fails(path, image_column="nope")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("x.png", "the row has 1 fields, the header has 3"),
        ("x.png,a,train,more", "the row has 4 fields"),
        ("x.png,,train", "the label is empty"),
        (",a,train", "the image path is empty"),
        ("x.png,a,sometimes", "split 'sometimes' is none of train, val, test"),
        ("../x.png,a,train", "outside the data set's folder"),
        ("sub/../../x.png,a,train", "outside the data set's folder"),
        ("/etc/passwd,a,train", "outside the data set's folder"),
        ("absent.png,a,train", "no file 'absent.png'"),
        ("sub,a,train", "no file 'sub'"),
        ("nul\0.png,a,train", "no file"),
        ("good.png,b,train", "already in list.csv:2 with another label"),
        ("./good.png,b,train", "already in list.csv:2 with another label"),
        ("good.png,a,val", "already in list.csv:2 with another label, split"),
        ('"x.png,a,train', "not readable as CSV"),
        ('"x.png"x,a,train', "not readable as CSV"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    pictures(tmp_path / "data", "good.png", "sub/other.png", "x.png")
    path = table(tmp_path / "data", f"image,label,split\ngood.png,a,train\n{row}\n")
    message = fails(path)
    assert message.startswith("list.csv:3: ") and reason in message


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image,Image,label", "column 'image' more than once"),
        ("image,colour", "no column for the label"),
        ("number,label", "no column for the image"),
        ("", "no column for the image"),
        ("image,path,label", "'image' and 'path' could each be the image column"),
        ('"image,label', "not readable as CSV"),
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, header: str, reason: str) -> None:
    message = fails(table(tmp_path, f"{header}\nx.png,a\n" if header else ""))
    assert message.startswith("list.csv:1: ") and reason in message


def test_of_many_bad_rows_the_first_ten_are_listed_and_all_counted(tmp_path: Path) -> None:
    message = fails(table(tmp_path, "image,label\n" + "".join(f"{k}.png,a\n" for k in range(37))))
    lines = message.split("\n")
    assert lines[0] == "37 problems in list.csv:" and len(lines) == 12
    assert lines[1].strip() == "list.csv:2: no file '0.png'" and lines[-1].strip() == "and 27 more"


def test_a_line_number_is_that_of_the_files_line_even_after_a_quoted_line_break(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png")
    assert fails(table(tmp_path, 'image,label\nx.png,"two\nlines"\nabsent.png,a\n')).startswith("list.csv:4: ")


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"image,label\nx.png,caf\xe9\n")
    assert fails(path).startswith("list.csv:2: not UTF-8")


def test_a_row_that_repeats_another_is_left_out_and_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    data = read_dataset(table(tmp_path, "image,label\nx.png,a\ny.png,b\n./x.png,a\n"))
    assert len(data.samples) == 2
    assert [(entry.origin, entry.reason) for entry in data.skipped] == [("list.csv:4", "repeats list.csv:2")]


def test_an_absolute_path_inside_the_folder_is_accepted(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    data = read_dataset(table(tmp_path, f"image,label\n{tmp_path}/x.png,a\ny.png,b\n"))
    assert data.relative(data.samples[0]) == "x.png"


def test_blanks_around_paths_and_labels_are_dropped_unless_the_file_is_named_so(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", " y.png")
    assert labelled(read_dataset(table(tmp_path, "image, label\n x.png , a \n y.png,b\n"))) == {
        "x.png": "a",
        " y.png": "b",
    }


def test_json_lines_hold_text_numbers_or_lists(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png", "z.png")
    plain = read_dataset(
        table(tmp_path, '{"image": "x.png", "label": 7}\n\n{"Path": "y.png", "label": 12}\n', "a.jsonl")
    )
    assert (plain.task, plain.labels) == ("multiclass", ("7", "12"))
    text = '\ufeff{"image": "x.png", "labels": ["b", "a"]}\r\n{"image": "y.png", "labels": []}\n'
    several = read_dataset(table(tmp_path, text + '{"image": "z.png", "labels": "a|c"}', "b.ndjson"))
    assert (several.task, several.labels) == ("multilabel", ("a", "b", "c"))
    assert [sample.label for sample in several.samples] == [(0, 1), (), (0, 2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "the line holds something else"),
        ("[" * 100_000, "not a JSON object"),
        ('{"image": "x.png", "Image": "y.png", "label": 1}', "key 'image' is there more than once"),
        ('{"image": "x.png"}', "no column for the label"),
        ('{"image": 3, "label": "a"}', "the image path is not text"),
        ('{"image": "x.png", "label": 1.5}', "1.5 is neither text nor a whole number"),
        ('{"image": "x.png", "label": true}', "true is neither"),
        ('{"image": "x.png", "label": null}', "the label is empty"),
        ('{"image": "\\ud800.png", "label": "a"}', "no file"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    pictures(tmp_path, "good.png", "x.png")
    message = fails(table(tmp_path, f'{{"image": "good.png", "label": "a"}}\n{line}\n', "list.jsonl"))
    assert message.startswith("list.jsonl:2: ") and reason in message


def test_a_list_of_labels_is_refused_where_one_label_is_asked_for(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png")
    path = table(tmp_path, '{"image": "x.png", "label": ["a"]}', "list.jsonl")
    assert "use task 'multilabel'" in fails(path, task="multiclass")
