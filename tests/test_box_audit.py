"""`focalserve audit` of boxes: cross-validated and by a bundle, gone on with, and applied."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import InvalidInput
from scripts import apply, box_audit
from scripts.audit import main
from scripts.box_readers import read_boxes
from scripts.interrupts import Interrupted
from tests.by_heart import FAST, ByHeart, write_some

FOLDS = [*FAST, "--folds", "2", "--epochs", "2"]


def issues(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "issues.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that `by_heart` was trained on, in a folder of their own."""
    return write_some(tmp_path_factory.mktemp("box-audit") / "scenes", 32)


@pytest.fixture(scope="module")
def swapped(scenes: Path) -> tuple[Path, set[str]]:
    """The scenes with three boxes of another class than they are; the boxes' ids."""
    document = json.loads(scenes.read_text(encoding="utf-8"))
    kinds = [category["id"] for category in document["categories"]]
    wrong = document["annotations"][1:30:12]
    for annotation in wrong:
        annotation["category_id"] = kinds[(kinds.index(annotation["category_id"]) + 1) % len(kinds)]
    path = scenes.parent / "swapped.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path, {str(annotation["id"]) for annotation in wrong}


@pytest.mark.slow
def test_a_detector_that_knows_better_names_the_swapped_boxes(
    swapped: tuple[Path, set[str]], by_heart: ByHeart, tmp_path: Path
) -> None:
    data, wrong = swapped
    assert main([str(data), "--out", str(tmp_path / "a"), "--bundle", str(by_heart.out), "--device", "cpu"]) == 0
    rows = issues(tmp_path / "a")
    first = [row for row in rows if row["cause"] != "missing"][: 2 * len(wrong)]
    assert len(wrong & {str(row["box_id"]) for row in first}) >= 2
    summary = json.loads((tmp_path / "a" / "summary.json").read_text(encoding="utf-8"))
    assert summary["task"] == "detection" and summary["in_sample"] is False
    report = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in report and 'aria-label="histogram of the loss"' in report
    flagged = [row for row in rows if row["is_label_issue"] and row["given_label"]]
    given = len([row for row in rows if row["given_label"]])
    assert f"{len(flagged):,} of them ({len(flagged) / given:.1%}) look wrong" in report
    heat = report[report.index("given \\ suggested") :].split("</table>")[0]
    swaps = sum(row["suggested_label"] is not None for row in flagged)
    assert sum(int(cell) for cell in re.findall(r">(\d+)</td>", heat)) == swaps > 0
    decided = tmp_path / "decisions.jsonl"
    taken = next(row for row in first if str(row["box_id"]) in wrong and row["cause"] == "swapped")
    decision = {"image": taken["image"], "box_id": taken["box_id"], "decision": "accept"}
    decided.write_text(json.dumps(decision) + "\n", encoding="utf-8")
    assert apply.main([str(tmp_path / "a"), "--decisions", str(decided), "--out", str(tmp_path / "new")]) == 0
    before, after = (read_boxes(path) for path in (data, tmp_path / "new" / data.name))
    changed = [
        (one.boxes.ids[k], after.labels[two.boxes.labels[k]])
        for one, two in zip(before.samples, after.samples, strict=True)
        for k in np.flatnonzero(one.boxes.labels != two.boxes.labels).tolist()
    ]
    assert changed == [(taken["box_id"], taken["suggested_label"])]


@pytest.mark.slow
def test_every_box_is_judged_by_a_detector_that_has_not_seen_it(
    swapped: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = swapped[0], tmp_path / "out"
    judge, seen = box_audit.judge_fold, list[Sequence[int]]()

    def once(config: Any, all_data: Any, held: Any, *rest: Any) -> None:
        if seen:
            raise Interrupted(15)
        seen.append(held.tolist())
        judge(config, all_data, held, *rest)

    monkeypatch.setattr(box_audit, "judge_fold", once)
    assert main([str(data), "--out", str(out), *FOLDS]) == 143
    assert not (out / "issues.jsonl").exists()

    def again(config: Any, all_data: Any, held: Any, *rest: Any) -> None:
        seen.append(held.tolist())
        judge(config, all_data, held, *rest)

    monkeypatch.setattr(box_audit, "judge_fold", again)
    assert main([str(data), "--out", str(out), *FOLDS]) == 0
    read = read_boxes(data)
    assert sorted(row for held in seen for row in held) == list(range(len(read.samples)))
    given = [(row["image"], row["box_id"]) for row in issues(out) if row["given_label"] is not None]
    known = {(read.relative(one), name) for one in read.samples for name in one.boxes.ids}
    assert len(given) == len(set(given)) and set(given) <= known and len(given) > 0.9 * len(known)
    scores = [row["label_score"] for row in issues(out)]
    assert scores == sorted(scores)
    with pytest.raises(InvalidInput, match="another epochs"):
        main([str(data), "--out", str(out), *FOLDS[:-1], "3"])


def test_too_few_boxes_for_the_folds_are_refused(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    shutil.copytree(scenes.parent, folder)
    document = json.loads(scenes.read_text(encoding="utf-8"))
    document["annotations"] = document["annotations"][:1]
    (folder / scenes.name).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidInput, match="no box to train on"):
        main([str(folder / scenes.name), "--out", str(tmp_path / "out"), *FOLDS])
