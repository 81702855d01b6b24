"""`focalserve apply`: the data set back in its own format, corrected, the original untouched, every change told."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import cli
from scripts.readers import read_dataset
from scripts.rewrite import rewrite_jsonl, rewrite_table
from tests.pictures import draw_folders, draw_list


def pretend_audit(
    folder: Path, source: Path, suggestions: dict[str, str | list[str]], task: str = "auto", sure: float | None = 0.9
) -> Path:
    """The two files of an audit that `apply` reads."""
    data = read_dataset(source, task=task, progress=False)
    folder.mkdir()
    settings = {"task": task, "fingerprint": data.fingerprint()}
    (folder / "config.json").write_text(json.dumps({"data": str(source), "settings": settings}))
    rows = [
        {
            "image": image,
            "is_label_issue": image in suggestions,
            "suggested_label": suggestions.get(image),
            "p_suggested": sure if image in suggestions else None,
        }
        for image in map(data.relative, data.samples)
    ]
    (folder / "issues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def decisions(path: Path, *rows: tuple[str, str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerows([("image", "decision", "label"), *rows])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def changes(out: Path) -> list[dict[str, str]]:
    with (out / "changes.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = draw_folders(tmp_path / "pictures", per_class=4)
    (root / "plain" / "red_000.png").write_bytes((root / "red" / "red_001.png").read_bytes())
    return root


def test_class_folders_come_back_with_the_images_in_the_folders_of_their_new_labels(
    folders: Path, tmp_path: Path
) -> None:
    before = contents(folders)
    audit = pretend_audit(tmp_path / "audit", folders, {"plain/red_000.png": "red", "red/red_002.png": "barred"})
    file = decisions(
        tmp_path / "decisions.csv",
        ("plain/red_000.png", "accept", ""),
        ("red/red_002.png", "keep", ""),
        ("red/red_003.png", "drop", ""),
        ("barred/barred_000.png", "", "plain"),
    )
    assert cli.main(["apply", str(audit), "--decisions", str(file), "--out", str(tmp_path / "fixed")]) == 0
    assert contents(folders) == before
    now = contents(tmp_path / "fixed")
    assert now["red/red_000.png"] == before["red/red_000.png"]
    assert now["red/red_000-2.png"] == before["plain/red_000.png"]
    assert now["plain/barred_000.png"] == before["barred/barred_000.png"]
    assert "red/red_003.png" not in now and "red/red_002.png" in now
    assert len(now) == len(before) - 1 + 1
    assert {
        (row["image"], row["action"], row["new_label"], row["new_image"]) for row in changes(tmp_path / "fixed")
    } == {
        ("plain/red_000.png", "relabelled", "red", "red/red_000-2.png"),
        ("red/red_003.png", "dropped", "", ""),
        ("barred/barred_000.png", "relabelled", "plain", "plain/barred_000.png"),
    }
    assert read_dataset(tmp_path / "fixed", progress=False).counts.sum() == 12


@pytest.mark.parametrize(("sure", "count"), [(0.84, [4, 5, 4]), (0.86, [4, 4, 5])])
def test_only_sure_suggestions_are_accepted_unseen(
    sure: float, count: list[int], folders: Path, tmp_path: Path
) -> None:
    audit = pretend_audit(tmp_path / "audit", folders, {"plain/red_000.png": "red"}, sure=sure)
    assert cli.main(["apply", str(audit), "--accept-issues", "--out", str(tmp_path / "fixed")]) == 0
    assert read_dataset(tmp_path / "fixed", progress=False).counts.tolist() == count


def test_an_audit_that_does_not_say_how_sure_it_is_is_not_accepted_unseen(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = pretend_audit(tmp_path / "audit", folders, {"plain/red_000.png": "red"}, sure=None)
    assert cli.main(["apply", str(audit), "--accept-issues", "--out", str(tmp_path / "fixed")]) == 2
    assert "how sure its suggestions are" in capsys.readouterr().err


def test_sure_suggestions_can_be_accepted_at_once_and_images_linked(folders: Path, tmp_path: Path) -> None:
    audit = pretend_audit(tmp_path / "audit", folders, {"plain/red_000.png": "red"})
    assert cli.main(["apply", str(audit), "--accept-issues", "--link", "--out", str(tmp_path / "fixed")]) == 0
    moved = tmp_path / "fixed" / "red" / "red_000-2.png"
    assert moved.is_symlink() and moved.resolve() == folders / "plain" / "red_000.png"
    assert read_dataset(tmp_path / "fixed", progress=False).counts.tolist() == [4, 4, 5]


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_list_comes_back_with_only_the_decided_cells_changed(multilabel: bool, tmp_path: Path) -> None:
    source = draw_list(tmp_path / "data", multilabel=multilabel)
    before = source.read_text(encoding="utf-8").splitlines()
    data = read_dataset(source, progress=False)
    first, second = data.relative(data.samples[0]), data.relative(data.samples[1])
    audit = pretend_audit(tmp_path / "audit", source, {})
    new = "|".join(data.labels) if multilabel else data.labels[1 - data.samples[0].classes[0]]
    file = decisions(tmp_path / "decisions.csv", (first, "", new), (second, "drop", ""))
    assert cli.main(["apply", str(audit), "--decisions", str(file), "--out", str(tmp_path / "fixed")]) == 0
    now = (tmp_path / "fixed" / source.name).read_text(encoding="utf-8").splitlines()
    assert [line for line in before if line not in now] == before[1:3]
    assert len(now) == len(before) - 1
    fixed = read_dataset(tmp_path / "fixed" / source.name, progress=False)
    assert [fixed.labels[k] for k in fixed.samples[0].classes] == new.split("|")
    assert len(fixed.samples) == len(data.samples) - 1


def test_rows_that_do_not_change_stay_as_they_are_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes('\ufeffimage;note;label\r\na.png;"two\r\nlines";x\r\nb.png;"q";y\r\nc.png;;x'.encode())
    assert rewrite_table(file, {4: ("=z",)}, {5}, "|") == (
        '\ufeffimage;note;label\r\na.png;"two\r\nlines";x\r\nb.png;q;\'=z\r\n'.encode()
    )
    assert rewrite_table(file, {}, set(), "|") == file.read_bytes()


def test_json_lines_keep_their_other_keys_and_their_kind_of_label(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    lines = ['{"image": "a.png", "labels": ["x"],  "who": 1}', '{"image":"b.png","labels":["y"]}', ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    found = rewrite_jsonl(file, {2: ("x", "y")}, set(), "|").decode().split("\n")
    assert found == [lines[0], '{"image": "b.png", "labels": ["x", "y"]}', ""]
    file.write_text('{"Image": "a.png", "Label": 3}\n', encoding="utf-8")
    assert json.loads(rewrite_jsonl(file, {1: ("4",)}, set(), "|")) == {"Image": "a.png", "Label": 4}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (("plain/none.png", "drop", ""), "decisions.csv:2: the data set has no image 'plain/none.png'"),
        (("plain/plain_000.png", "accept", ""), "no suggestion to accept"),
        (("plain/plain_000.png", "maybe", ""), "decision 'maybe' is none of accept, keep, drop"),
        (("plain/plain_000.png", "", "blue"), "unknown label 'blue'"),
    ],
)
def test_a_wrong_decision_is_refused_with_its_line_and_nothing_is_written(
    row: tuple[str, str, str], complaint: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = pretend_audit(tmp_path / "audit", folders, {})
    file = decisions(tmp_path / "decisions.csv", row)
    assert cli.main(["apply", str(audit), "--decisions", str(file), "--out", str(tmp_path / "fixed")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


def test_nothing_is_written_over_and_changed_data_is_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = pretend_audit(tmp_path / "audit", folders, {})
    out = tmp_path / "fixed"
    command = ["apply", str(audit), "--accept-issues", "--out", str(out)]
    assert cli.main(["apply", str(audit), "--out", str(out)]) == 2
    assert cli.main(command) == 0
    assert cli.main(command) == 2
    (folders / "plain" / "plain_000.png").unlink()
    assert cli.main([*command[:-1], str(tmp_path / "again")]) == 2
    said: Any = capsys.readouterr().err
    assert "exists already" in said and "has changed since it was audited" in said and "say what to change" in said
