from pathlib import Path

import numpy as np
import pytest

from scripts.readers import read_dataset
from tests.labelled_files import fails, labelled, pictures


def test_class_folders_are_read_with_sorted_classes_and_nested_images(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/a.png", "cat/deep/er/b.JPG", "ant/c.webp", "ant/d.bmp", "ant/e.JPEG")
    data = read_dataset(tmp_path)
    assert (data.task, data.labels, data.counts.tolist()) == ("multiclass", ("ant", "cat"), [3, 2])
    assert data.counts.dtype == np.int64
    assert labelled(data)["cat/deep/er/b.JPG"] == "cat"
    assert {sample.origin for sample in data.samples} == set(labelled(data))


def test_hidden_files_and_files_that_are_no_images_are_counted_and_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, "a/x.png", "b/y.png")
    for name in ("a/.hidden.png", "a/Thumbs.db", "b/notes.txt", "README.md", ".DS_Store"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / ".git").mkdir()
    data = read_dataset(tmp_path)
    assert (len(data.samples), data.ignored, data.skipped) == (2, 5, ())


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_train_and_validation_folders_are_recognised(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "train/a/1.png", "train/b/2.png", f"{name}/a/3.png", "test/b/4.png")
    data = read_dataset(tmp_path)
    assert data.labels == ("a", "b")
    assert [sample.split for sample in sorted(data.samples, key=lambda s: s.path.name)] == [
        "train",
        "train",
        "val",
        "test",
    ]


def test_classes_that_happen_to_be_called_train_and_plane_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path, "train/1.png", "plane/2.png")
    assert read_dataset(tmp_path).labels == ("plane", "train")


def test_images_beside_train_that_belong_to_no_split_are_an_error_and_other_files_are_not(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "notes.txt").write_text("?")
    assert read_dataset(tmp_path).ignored == 1
    pictures(tmp_path, "extra/a/3.png")
    assert "extra" in fails(tmp_path)


def test_every_empty_class_folder_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png")
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    message = fails(tmp_path)
    assert message.startswith("2 problems in") and "b: the class folder" in message and "c: the class" in message


def test_a_folder_without_class_folders_says_what_was_expected(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png")
    assert "expected CLASS/IMAGE" in fails(tmp_path)


def test_a_link_back_to_its_own_folder_ends(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(read_dataset(tmp_path).samples) == 2


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    pictures(tmp_path, "set/a/1.png", "set/b/2.png", "store/3.png", "store/deep/4.png")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "store")
    assert labelled(read_dataset(tmp_path / "set"))["a/more/deep/4.png"] == "a"


def test_folders_named_by_numbers_are_in_numeric_order(tmp_path: Path) -> None:
    pictures(tmp_path, "10/a.png", "9/b.png", "2/c.png")
    assert read_dataset(tmp_path).labels == ("2", "9", "10")
