"""What is wrong with boxes, as rows and as a report, and back into the data set."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from models.box_causes import CAUSES
from models.boxes import BoxLabels, Floats, box_iou
from scripts import cli
from scripts.box_data import BoxDataSet
from scripts.box_fiftyone import write_box_fiftyone
from scripts.box_issues import COLUMNS, MISSING, find_box_issues, make_box_rows
from scripts.box_readers import read_boxes
from scripts.box_report import write_box_report
from scripts.issues import write_issues
from tests.audited_scenes import Audited, audit_scenes


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    return audit_scenes(tmp_path_factory.mktemp("scenes"))


def errors(data: BoxDataSet, truth: list[BoxLabels]) -> int:
    """True boxes that nobody drew at IoU .75 with their class, and drawn ones that are of no true box."""
    count = 0
    for sample, true in zip(data.samples, truth, strict=True):
        iou: Floats = box_iou(sample.boxes.xyxy, true.xyxy)
        fits = (iou >= 0.7) & (sample.boxes.labels[:, None] == true.labels[None])
        count += int((~fits.any(axis=0)).sum() + (~fits.any(axis=1)).sum())
    return count


def test_every_judged_box_is_a_row_and_the_worst_are_first(audited: Audited) -> None:
    rows = [row for _, row in make_box_rows(audited.data, audited.issues)]
    assert [row["label_score"] for row in rows] == sorted(row["label_score"] for row in rows)
    given = [row for row in rows if row["given_box"] is not None]
    assert len(given) == sum(int(one.valid.sum()) for one in audited.scores)
    assert {row["cause"] for row in rows} == {*CAUSES[1:], MISSING, None}
    assert all(set(row) == set(COLUMNS) for row in rows)
    for row in rows:
        drawn = {"swapped": (True, False), "badly_located": (False, True), "missing": (True, True)}
        offered = row["suggested_label"] is not None, row["suggested_box"] is not None
        assert all(has <= may for has, may in zip(offered, drawn.get(row["cause"], (False, False)), strict=True))
    ids = {(row["image"], row["box_id"]) for row in rows}
    assert len(ids) == len(rows)


def test_as_many_scores_as_pictures_are_needed_and_faint_objects_are_left_out(audited: Audited) -> None:
    with pytest.raises(ValueError):
        find_box_issues(audited.data, audited.scores[:-1])
    sure = find_box_issues(audited.data, audited.scores, least_missing=0.9)
    left = [issue for issue in sure if issue.cause == MISSING]
    assert len(left) < sum(issue.cause == MISSING for issue in audited.issues)
    assert all(issue.quality <= 0.1 for issue in left)


def test_suggestions_that_are_accepted_mend_more_than_they_break(audited: Audited, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    audit.mkdir()
    write_issues(audit, make_box_rows(audited.data, audited.issues), COLUMNS)
    config = {"task": "detection", "fingerprint": audited.data.fingerprint()}
    (audit / "config.json").write_text(json.dumps({"data": str(audited.source), "settings": config}))
    with (audit / "issues.csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"decision": "accept"} for row in csv.DictReader(file)
                if row["is_label_issue"] == "True" and (row["cause"] == "spurious" or row["suggested_label"]
                                                        or row["suggested_box"])]  # fmt: skip
    with (tmp_path / "decided.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, [*COLUMNS, "decision"])
        out.writeheader()
        out.writerows(rows)
    command = ["apply", str(audit), "--decisions", str(tmp_path / "decided.csv"), "--out", str(tmp_path / "fixed")]
    assert cli.main([*command, "--link"]) == 0
    fixed = read_boxes(tmp_path / "fixed" / "scenes.json", progress=False)
    before, after = errors(audited.data, audited.truth), errors(fixed, audited.truth)
    assert before > 60 and after <= 0.5 * before


def test_the_report_draws_the_worst_boxes_and_needs_nothing_else(audited: Audited, tmp_path: Path) -> None:
    write_box_report(tmp_path / "report.html", audited.data, audited.issues, 25, "<scenes>")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;scenes&gt;" in html and "<scenes>" not in html and "<dress>" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:)", html) and "<script" not in html
    assert html.count("data:image/jpeg;base64,") == 25
    worst = audited.issues[:25]
    assert html.count('class="box was"') == sum(issue.given is not None for issue in worst)
    assert html.count('class="box new"') == sum(issue.box is not None for issue in worst)
    for part in ("badly located", "swapped", "spurious", "missing", "Swapped classes", "Classes"):
        assert part in html


def test_fiftyone_gets_given_and_suggested_boxes_as_coco(audited: Audited, tmp_path: Path) -> None:
    write_box_fiftyone(tmp_path / "fiftyone", audited.data, audited.issues)
    paths = json.loads((tmp_path / "fiftyone" / "data.json").read_text(encoding="utf-8"))
    assert set(paths) == {sample.path.name for sample in audited.data.samples}
    given = read_boxes(tmp_path / "fiftyone" / "labels.json", images=audited.data.root, progress=False)
    judged = zip(audited.data.samples, audited.scores, strict=True)
    for found, (sample, scores) in zip(given.samples, judged, strict=True):
        wanted = sample.boxes.xyxy[scores.valid]
        assert np.sort(found.boxes.xyxy, axis=0) == pytest.approx(np.sort(wanted, axis=0), abs=0.011)
    suggested = json.loads((tmp_path / "fiftyone" / "suggestions.json").read_text(encoding="utf-8"))["annotations"]
    assert len(suggested) == sum(issue.label is not None or issue.box is not None for issue in audited.issues)
    assert {one["cause"] for one in suggested} == {"swapped", "badly_located", MISSING}
