"""`focalserve audit` on small real runs: what it finds, writes, refuses, and goes on with."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from models.noise import combine_evidence
from scripts import cli, crossfit, train
from scripts.audit import main
from scripts.interrupts import Interrupted
from tests.pictures import draw, draw_folders, draw_list

FAST = ["--threads", "1", "--folds", "3", "--epochs", "4", "--batch-size", "16", "--device", "cpu"]
WRONG = {*(f"red/plain_{k:03d}.png" for k in range(5)), "plain/twin.png"}


def mislabel(folder: Path, count: int) -> set[str]:
    """Calls some plain pictures red; their names."""
    moved = set()
    for k in range(count):
        name = f"plain_{k:03d}.png"
        (folder / "plain" / name).rename(folder / "red" / name)
        moved.add(f"red/{name}")
    return moved


def issues(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "issues.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_folders(tmp_path_factory.mktemp("data") / "<pictures>", per_class=50)
    mislabel(folder, 5)
    shutil.copy(folder / "barred" / "barred_007.png", folder / "plain" / "twin.png")
    return folder


@pytest.fixture(scope="module")
def audited(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "out"
    assert main([str(pictures), "--out", str(out), *FAST]) == 0
    return out


def test_the_wrong_labels_are_the_first_and_have_their_suggestion(audited: Path) -> None:
    rows = issues(audited)
    assert [row["rank"] for row in rows] == list(range(1, 152))
    worst = {row["image"]: row for row in rows[:6]}
    assert len(WRONG & set(worst)) >= 5
    flagged = [row for row in rows if row["is_label_issue"] and row["image"] in WRONG]
    assert flagged
    assert all(row["suggested_label"] == ("barred" if "twin" in row["image"] else "plain") for row in flagged)
    assert [row["label_score"] for row in rows] == sorted(row["label_score"] for row in rows)


def test_every_row_tells_its_parts_and_its_fold(audited: Path) -> None:
    rows = issues(audited)
    assert {row["fold"] for row in rows} == {0, 1, 2}
    for row in rows:
        assert all(0.0 <= row[part] <= 1.0 for part in ("label_score", "posterior", "p_given", "p_in_fold", "margin"))
        assert row["loss"] >= 0.0
    with (audited / "issues.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == [row["image"] for row in rows]


def test_the_flagged_labels_are_tasks_for_label_studio(audited: Path) -> None:
    tasks = json.loads((audited / "label_studio.json").read_text(encoding="utf-8"))
    flagged = [row for row in issues(audited) if row["is_label_issue"]]
    assert [task["data"]["path"] for task in tasks] == [row["image"] for row in flagged]
    for task, row in zip(tasks, flagged, strict=True):
        assert task["data"]["image"] == f"/data/local-files/?d={row['image']}"
        (prediction,) = task["predictions"]
        assert prediction["result"][0]["value"]["choices"] == [row["suggested_label"]]
        assert prediction["score"] == row["label_score"]


def test_a_decision_in_label_studio_comes_back(pictures: Path, audited: Path, tmp_path: Path) -> None:
    tasks = json.loads((audited / "label_studio.json").read_text(encoding="utf-8"))
    interface = ElementTree.parse(audited / "label_studio.xml").getroot()
    assert [one.get("value") for one in interface.iter("Choice")] == ["barred", "plain", "red", "drop"]
    for number, task in enumerate(tasks):
        task |= {"id": number, "annotations": [{"result": task["predictions"][0]["result"], "was_cancelled": False}]}
    tasks[0]["annotations"][0]["result"][0]["value"]["choices"] = ["drop"]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    export = tmp_path / "export.json"
    export.write_text(json.dumps(tasks), encoding="utf-8")
    assert cli.main(["apply", str(audited), "--decisions", str(export), "--out", str(tmp_path / "fixed")]) == 0
    with (tmp_path / "fixed" / "changes.csv").open(encoding="utf-8", newline="") as file:
        changes = {row["image"]: (row["action"], row["new_label"]) for row in csv.DictReader(file)}
    wanted = {task["data"]["path"]: ("relabelled", task["predictions"][0]["result"][0]["value"]["choices"][0])
              for task in tasks[2:]}  # fmt: skip
    assert changes == wanted | {tasks[0]["data"]["path"]: ("dropped", "")}


def test_fiftyone_finds_every_image_with_its_given_and_its_suggested_label(pictures: Path, audited: Path) -> None:
    data, labels, suggestions = (
        json.loads((audited / "fiftyone" / name).read_text(encoding="utf-8"))
        for name in ("data.json", "labels.json", "suggestions.json")
    )
    assert labels["classes"] == ["barred", "plain", "red"]
    assert len(labels["labels"]) == 151 == len(data)
    for name, path in data.items():
        stem = name.rpartition(".")[0]
        assert Path(path) == pictures / name
        assert labels["classes"][labels["labels"][stem]] == Path(path).parent.name
    flagged = {
        row["image"].rpartition(".")[0]: row["suggested_label"] for row in issues(audited) if row["is_label_issue"]
    }
    assert {stem: labels["classes"][k] for stem, k in suggestions["labels"].items()} == flagged


def test_copies_with_another_label_are_named(audited: Path) -> None:
    twins = {row["image"]: row for row in issues(audited) if row["duplicate_of"]}
    assert set(twins) == {"plain/twin.png", "barred/barred_007.png"}
    assert twins["plain/twin.png"]["duplicate_of"] == "barred/barred_007.png"
    assert twins["plain/twin.png"]["duplicate_label"] == "barred"
    assert {row["cause"] for row in twins.values()} == {"duplicate with another label"}
    alone = {
        name: float(combine_evidence(np.array([row["posterior"]]), np.array([row["p_in_fold"]]))[0])
        for name, row in twins.items()
    }
    for name, row in twins.items():
        assert 0.0 <= row["label_score"] < alone[name], "each is doubted for the other's sake"


def test_a_suggestion_says_how_sure_it_is(audited: Path) -> None:
    rows = issues(audited)
    assert all((row["p_suggested"] is None) != row["is_label_issue"] for row in rows)
    assert all(row["p_suggested"] <= 1.0 - row["label_score"] + 1e-9 for row in rows if row["is_label_issue"])
    sure = {row["image"]: row["p_suggested"] for row in rows if row["is_label_issue"]}
    assert all(0.0 <= p <= 1.0 for p in sure.values())
    assert {image for image, p in sure.items() if p > 0.5} == WRONG & sure.keys()


def test_the_summary_counts(audited: Path) -> None:
    summary = json.loads((audited / "summary.json").read_text(encoding="utf-8"))
    assert summary["images"] == 151 and summary["labels"] == ["barred", "plain", "red"]
    assert 0 < summary["estimated_wrong_labels"] < 20
    assert not summary["in_sample"] and summary["duplicates_with_other_labels"] == 2


def test_the_report_needs_nothing_else_and_escapes_what_it_is_told(audited: Path) -> None:
    html = (audited / "report.html").read_text(encoding="utf-8")
    assert "&lt;pictures&gt;" in html and "<pictures>" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:)", html) and "<script" not in html and "@import" not in html
    assert html.count("data:image/png;base64,") == 100 + 2  # and the pair of copies
    for part in ("worst labels", "given and suggested", "Classes", "Loss", "Duplicates", "<svg"):
        assert part in html


def test_the_same_command_again_trains_nothing(pictures: Path, audited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (audited / "issues.jsonl").read_bytes()
    monkeypatch.setattr(crossfit, "train_fold", None)
    assert main([str(pictures), "--out", str(audited), *FAST]) == 0
    assert (audited / "issues.jsonl").read_bytes() == before


def test_an_interrupted_audit_goes_on_with_the_next_fold_and_ends_the_same(
    pictures: Path, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = crossfit.train_fold
    trained: list[Path] = []

    def stop_in_the_second(job: Any, interrupts: Any, bar: Any) -> None:
        if trained:
            raise Interrupted(15)
        trained.append(job.folder)
        whole(job, interrupts, bar)

    monkeypatch.setattr(crossfit, "train_fold", stop_in_the_second)
    assert main([str(pictures), "--out", str(tmp_path / "out"), *FAST]) == 143
    assert not (tmp_path / "out" / "issues.csv").exists()

    def count(job: Any, interrupts: Any, bar: Any) -> None:
        trained.append(job.folder)
        whole(job, interrupts, bar)

    monkeypatch.setattr(crossfit, "train_fold", count)
    assert main([str(pictures), "--out", str(tmp_path / "out"), *FAST]) == 0
    assert [folder.name for folder in trained] == ["fold-0", "fold-1", "fold-2"]
    assert issues(tmp_path / "out") == issues(audited)


def test_another_setting_in_the_same_folder_is_refused(
    pictures: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(pictures), "--out", str(audited), *FAST, "--seed", "7"]) == 2
    assert "another seed" in capsys.readouterr().err


def test_a_bundle_is_asked_and_it_is_said_that_it_knows_the_data(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--threads", "1", "--epochs", "3", "--batch-size", "16", "--device", "cpu"]
    assert train.main([str(pictures), "--out", str(tmp_path / "model"), *flags]) == 0
    out = tmp_path / "out"
    command = [str(pictures), "--out", str(out), "--bundle", str(tmp_path / "model"), "--device", "cpu"]
    assert main(command) == 0
    assert "in_sample" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["in_sample"]
    assert "in_sample" in (out / "report.html").read_text(encoding="utf-8")
    assert all(row["fold"] is None and row["p_in_fold"] is None for row in issues(out))
    Image.fromarray(draw(red=True, bar=False, seed=99)).save(pictures / "red" / "new.png")
    try:
        assert main([*command, "--restart"]) == 0
        assert not json.loads((out / "summary.json").read_text(encoding="utf-8"))["in_sample"]
    finally:
        (pictures / "red" / "new.png").unlink()


@pytest.mark.parametrize("multilabel", [True, False])
def test_lists_of_several_labels_and_of_yes_and_no_are_audited_too(multilabel: bool, tmp_path: Path) -> None:
    listed = draw_list(tmp_path / "data", multilabel=multilabel)
    assert main([str(listed), "--out", str(tmp_path / "out"), *FAST]) == 0
    rows = issues(tmp_path / "out")
    assert len(rows) == 48
    assert isinstance(rows[0]["given_label"], list) == multilabel
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
