import shutil
from pathlib import Path

from scripts.readers import READERS, SUFFIXES, read_dataset
from tests.labelled_files import fails, picture, pictures, table


def test_a_labels_column_is_multilabel_and_an_empty_cell_is_no_label(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png", "z.png")
    data = read_dataset(table(tmp_path, "image,labels\nx.png,dog| cat |dog\ny.png,\nz.png,cat\n"))
    assert (data.task, data.labels) == ("multilabel", ("cat", "dog"))
    assert [sample.label for sample in data.samples] == [(0, 1), (), (0,)]
    assert data.counts.tolist() == [2, 1]


def test_the_separator_and_the_task_can_be_chosen(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    path = table(tmp_path, "image,label\nx.png,a+b\ny.png,b\n")
    assert read_dataset(path).labels == ("a+b", "b")
    assert read_dataset(path, task="multilabel", separator="+").labels == ("a", "b")


def test_labels_zero_and_one_are_binary_and_two_classes_are_when_asked(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    numbers = read_dataset(table(tmp_path, "image,label\nx.png,1\ny.png,0\n", "n.csv"))
    assert (numbers.task, numbers.labels, numbers.samples[0].label) == ("binary", ("0", "1"), 1)
    words = table(tmp_path, "image,label\nx.png,sick\ny.png,well\n", "w.csv")
    assert read_dataset(words).task == "multiclass"
    assert read_dataset(words, task="binary").labels == ("sick", "well")
    assert read_dataset(words, task="binary", labels=["well", "sick"]).samples[0].label == 1


def test_binary_with_three_labels_and_an_unknown_task_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a/x.png", "b/y.png", "c/z.png")
    assert "needs two labels; there are 3" in fails(tmp_path, task="binary")
    assert "none of auto, multiclass, multilabel, binary" in fails(tmp_path, task="detect")


def test_given_labels_keep_their_order_and_refuse_others_by_line(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    path = table(tmp_path, "image,label\nx.png,b\ny.png,a\n")
    data = read_dataset(path, labels=["b", "never seen", "a"])
    assert (data.labels, data.counts.tolist()) == (("b", "never seen", "a"), [1, 0, 1])
    assert fails(path, labels=["b", "c"]) == "list.csv:3: unknown label 'a'; known: b, c"
    assert "must be different" in fails(path, labels=["a", "a", "b"])


def test_bad_images_are_all_named_or_skipped_and_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    whole = (tmp_path / "b" / "3.png").read_bytes()
    (tmp_path / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "page.jpg").write_text("<html>")
    message = fails(tmp_path)
    assert message.startswith("3 problems in")
    assert all(name in message for name in ("a/empty.png", "b/cut.png", "b/page.jpg"))
    data = read_dataset(tmp_path, on_bad_image="skip")
    assert (len(data.samples), data.counts.tolist()) == (3, [2, 1])
    assert [entry.origin for entry in data.skipped] == ["a/empty.png", "b/cut.png", "b/page.jpg"]
    assert all(entry.reason for entry in data.skipped)


def test_a_set_whose_every_image_is_bad_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    assert "none of the 1 images can be read" in fails(tmp_path, on_bad_image="skip")


def test_every_suffix_leads_to_a_reader_and_others_name_the_known_ones(tmp_path: Path) -> None:
    assert set(SUFFIXES.values()) | {"folder"} == set(READERS)
    path = table(tmp_path, "", "data.parquet")
    assert all(suffix in fails(path) for suffix in SUFFIXES)
    assert "no such file" in fails(tmp_path / "absent.csv")
    assert "no samples" in fails(table(tmp_path, "image,label\n"))


def test_the_fingerprint_ignores_order_and_place_and_sees_labels_names_and_content(tmp_path: Path) -> None:
    rows = ["x.png,a", "y.png,b", "z.png,a"]
    here, there = tmp_path / "here", tmp_path / "there"
    pictures(here, "x.png", "y.png", "z.png")
    shutil.copytree(here, there)

    def fingerprint(root: Path, lines: list[str]) -> str:
        return read_dataset(table(root, "image,label\n" + "\n".join(lines))).fingerprint()

    first = fingerprint(here, rows)
    assert first == fingerprint(there, rows[::-1])
    assert first != fingerprint(here, ["x.png,b", *rows[1:]])
    picture(there / "x.png", 200)
    assert first != fingerprint(there, rows)
    (here / "x.png").rename(here / "w.png")
    assert first != fingerprint(here, ["w.png,a", *rows[1:]])
