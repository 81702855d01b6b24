"""`focalserve audit-rows`: what it finds in rows without pictures, what it writes, and what it refuses."""

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.audit import audit_labels
from models.errors import InvalidInput
from scripts import cli, rows_file
from scripts.row_audit import main
from tests.noisy import load, synthesize


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def issues(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "issues.jsonl").read_text(encoding="utf-8").splitlines()]


def good() -> dict[str, Any]:
    cell = synthesize(3, 120, 0.1, "sym", seed=0)
    return {"probabilities": cell.p.astype(np.float32), "labels": cell.given}


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_judged_as_their_arrays_are_and_the_worst_come_first(
    compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows_file, "_CHUNK_NUMBERS", 7_770)
    cell = load("lt_pair_10")
    p = cell.p.astype(np.float32)
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "rows.npz", probabilities=p, labels=cell.given)
    assert main([str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'issues.csv'}\n"
    found, rows = audit_labels(p, cell.given), issues(tmp_path / "out")
    order = np.argsort(found.quality, kind="stable")
    assert [row["row"] for row in rows] == order.tolist()
    assert [row["rank"] for row in rows] == list(range(1, len(p) + 1))
    assert [row["label_score"] for row in rows] == found.quality[order].tolist()
    assert [row["given_label"] for row in rows] == cell.given[order].tolist()
    assert [row["is_label_issue"] for row in rows] == found.is_issue[order].tolist()
    for row in rows:
        flagged = row["is_label_issue"]
        assert row["suggested_label"] == (found.suggested[row["row"]] if flagged else None)
        assert row["p_suggested"] == (found.p_suggested[row["row"]] if flagged else None)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["rows"] == len(p) and summary["classes"] == 10 and summary["quality_method"] == ["posterior"]
    assert summary["estimated_wrong_labels"] == pytest.approx(found.noise.wrong)
    assert summary["issues"] == found.is_issue.sum()


def test_logits_are_the_same_as_their_softmax_and_may_have_any_offset(tmp_path: Path) -> None:
    cell = synthesize(4, 400, 0.1, "pair", seed=1)
    shifted = np.log(cell.p) + np.linspace(-900, 900, 400)[:, None]
    save(tmp_path / "p.npz", probabilities=cell.p, labels=cell.given)
    save(tmp_path / "z.npz", logits=shifted, labels=cell.given.astype(np.uint8))
    for name in ("p", "z"):
        main([str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / name)])
    ours, theirs = issues(tmp_path / "z"), issues(tmp_path / "p")
    scores = {row["row"]: row["label_score"] for row in theirs}
    assert [row["label_score"] for row in ours] == pytest.approx([scores[row["row"]] for row in ours], abs=1e-5)


def test_both_files_say_the_same_and_ids_are_quoted_and_made_harmless(tmp_path: Path) -> None:
    ids = np.array([f"row {k}" for k in range(120)])
    ids[:4] = ['a "b", c', "=1+1", "line\nbreak", "ü"]
    save(tmp_path / "rows.npz", **good(), ids=ids)
    main([str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out")])
    lines = issues(tmp_path / "out")
    assert {row["row"]: row["id"] for row in lines} == dict(enumerate(ids.tolist()))
    with (tmp_path / "out" / "issues.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 120 and list(table[0]) == list(lines[0])
    for row, line in zip(table, lines, strict=True):
        assert row["id"] == ("'=1+1" if line["id"] == "=1+1" else line["id"])
        assert row["is_label_issue"] == str(line["is_label_issue"])
        for column in ("suggested_label", "p_suggested"):
            assert row[column] == ("" if line[column] is None else str(line[column]))
        for column in ("rank", "row", "given_label", "label_score", "posterior", "p_given", "margin", "loss"):
            assert float(row[column]) == line[column]


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    save(tmp_path / "rows.npz", **good(), ids=np.arange(120) + 1_000)
    main([str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out")])
    assert all(row["id"] == row["row"] + 1_000 for row in issues(tmp_path / "out"))


def changed(row: int, value: float, name: str = "probabilities") -> dict[str, Any]:
    arrays = good()
    arrays[name] = arrays[name].copy()
    arrays[name][row] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": np.zeros((4, 3))}, "needs logits or probabilities, and labels; it holds logits"),
        ({"labels": np.zeros(4, int)}, "needs logits or probabilities, and labels; it holds labels"),
        ({**good(), "logits": np.zeros((120, 3))}, "it holds labels, logits, probabilities"),
        ({**good(), "probabilities": np.zeros(120)}, "probabilities: has the shape (120,)"),
        ({**good(), "probabilities": np.ones((120, 1))}, "probabilities: has the shape (120, 1)"),
        ({**good(), "probabilities": np.ones((0, 3))}, "probabilities: has the shape (0, 3)"),
        ({**good(), "probabilities": np.ones((120, 3), int)}, "probabilities: is of int64; floats are needed"),
        ({**good(), "probabilities": np.ones((3, 120)).T}, "probabilities: is stored by column"),
        ({**good(), "labels": np.zeros(119, int)}, "labels: has the shape (119,); probabilities has 120 rows"),
        ({**good(), "labels": np.zeros((120, 1), int)}, "labels: has the shape (120, 1)"),
        ({**good(), "labels": np.zeros(120)}, "labels: is of float64; class indices are integers"),
        (changed(17, 3, "labels"), "labels: row 17 is 3, the classes are 0 to 2 (1 such rows)"),
        (changed(17, -1, "labels"), "labels: row 17 is -1, the classes are 0 to 2"),
        (changed(99, np.nan), "probabilities: row 99 holds a number that is not finite"),
        (changed(99, 0.5), "probabilities: row 99 holds no probabilities that sum to 1"),
        ({**good(), "ids": np.zeros(120)}, "ids: is of float64; text or integers are needed"),
        ({**good(), "ids": np.array(["a"])}, "ids: has the shape (1,); probabilities has 120 rows"),
        ({**good(), "ids": np.array([{}] * 120)}, "ids: holds Python objects, which are not read"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_with_its_place(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = save(tmp_path / "rows.npz", **arrays)
    with pytest.raises(InvalidInput) as caught:
        main([str(path), "--out", str(tmp_path / "out")])
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert not (tmp_path / "out" / "issues.csv").exists()


def test_a_negative_probability_and_infinite_logits_are_refused(tmp_path: Path) -> None:
    negative = good()
    negative["probabilities"][5] = [1.25, -0.25, 0.0]
    with pytest.raises(InvalidInput, match="row 5 holds no probabilities"):
        main([str(save(tmp_path / "p.npz", **negative)), "--out", str(tmp_path / "out")])
    logits = np.zeros((40, 3), np.float16)
    logits[39, 1] = np.inf
    with pytest.raises(InvalidInput, match="logits: row 39 holds a number that is not finite"):
        main([str(save(tmp_path / "z.npz", logits=logits, labels=np.zeros(40, int))), "--out", str(tmp_path / "out")])


def test_a_file_that_is_damaged_or_none_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "rows.npz", **good()).read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    flipped = whole[:700] + bytes([whole[700] ^ 255]) + whole[701:]
    texts = {"text": b"label,score\n", "cut": whole[:-50], "flipped": flipped}
    texts["one"] = (tmp_path / "one.npy").read_bytes()
    for name, data in texts.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(InvalidInput, match=rf"{name}\.npz: is no \.npz file, or a damaged one"):
            main([str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / "out")])
    with pytest.raises(InvalidInput, match="cannot be read"):
        main([str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")])


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 400
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("logits.npy", member)
        archive.writestr("labels.npy", member)
    with pytest.raises(InvalidInput, match="logits: holds more or fewer numbers than its shape"):
        main([str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out")])


def test_an_audit_of_pictures_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidInput, match="holds an audit of pictures"):
        main([str(save(tmp_path / "rows.npz", **good())), "--out", str(tmp_path)])


def test_nothing_but_what_was_found_is_left_and_it_may_be_done_again(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.npz", **good())
    for _ in range(2):
        assert cli.main(["audit-rows", str(path), "--out", str(tmp_path / "out")]) == 0
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["issues.csv", "issues.jsonl", "summary.json"]


def test_torch_is_not_needed() -> None:
    code = "import sys; sys.modules['torch'] = None; import scripts.row_audit"
    subprocess.run([sys.executable, "-c", code], check=True)
