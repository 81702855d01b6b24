"""Audits of a detector's boxes: a row is a picture, and what it says is what /loss says of that picture alone."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import pytest_asyncio

from models.box_missing import MissingBoxes
from models.bundle import read_bundle
from models.card import TaskName
from models.detect import Detection
from models.image import load_input
from service.app import create_app
from service.audit_boxes import BoxJudge
from service.audit_file import AuditFile
from service.audit_kinds import KINDS
from service.audit_records import AuditRecord, Item, Row
from service.audit_spool import Inspection
from service.audit_store import bytes_of
from service.detector import RAW, DetectorEngine, Raw
from service.schemas import AuditOptions, LossInput
from tests.audited_boxes import LABELS, box_items, close, decoded, without_rank
from tests.audits import NDJSON, by_line, ended, ndjson, rows_of, sent
from tests.serving import Json, b64, problem_of, running, settings_of
from tests.test_audit_store import record_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
ITEMS = box_items(40)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(detector_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    settings = settings_of(models=detector_artifacts, device="cpu", audit_dir=tmp_path_factory.mktemp("audits"))
    async with running(settings) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def audited(http: httpx.AsyncClient) -> Json:
    """The audit of all items, done."""
    return await ended(http, (await sent(http, ndjson(ITEMS)))["id"])


@pytest.fixture(scope="module")
def engine(detector_artifacts: Path) -> DetectorEngine:
    return DetectorEngine(read_bundle(detector_artifacts / "scenes" / "1"), "cpu", 1)


async def loss_of(http: httpx.AsyncClient, *items: Json) -> Json:
    answer = await http.post("/loss", json={"inputs": items})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_each_picture_is_scored_as_loss_scores_it_alone(http: httpx.AsyncClient, audited: Json) -> None:
    assert (audited["state"], audited["done"], audited["errors"]) == ("done", 40, 0), audited
    rows = await rows_of(http, audited["id"])
    assert [row["rank"] for row in rows] == list(range(1, 41))
    assert [row["quality"] for row in rows] == sorted(row["quality"] for row in rows)
    for row, item in zip(by_line(rows), ITEMS, strict=True):
        want = (await loss_of(http, item))["items"][0]
        assert (row["id"], row["given_label"]) == (item["id"], item["boxes"])
        assert row["suggested_label"] is None and "p_given" not in row
        close(row["boxes"], without_rank(want["boxes"]))
        for key in ("loss", "classification", "location", "positives", "missing"):
            close(row[key], want[key])
        qualities = [box["quality"] for box in want["boxes"] if "quality" in box]
        strongest = want["missing"][0]["score"]
        assert row["quality"] == pytest.approx(min([*qualities, 1.0 - strongest]), abs=1e-4)
        assert row["is_issue"] == (strongest >= 0.5 or any(box.get("is_issue") for box in want["boxes"]))
    assert {row["is_issue"] for row in rows if not row["boxes"]} == {True, False}


async def test_the_summary_counts_pictures_and_by_label_boxes_as_loss_does(
    http: httpx.AsyncClient, audited: Json
) -> None:
    summary, rows = audited["summary"], await rows_of(http, audited["id"])
    assert (summary["scored"], summary["issues"]) == (40, sum(row["is_issue"] for row in rows))
    assert 0 < summary["issues"] < 40
    want = await loss_of(http, *ITEMS)
    assert summary["quality_method"] == want["parameters"]["quality_method"]
    close([dict(sorted(one.items())) for one in summary["classes"]], [dict(sorted(o.items())) for o in want["classes"]])
    assert [one["label"] for one in summary["classes"]] == list(LABELS)
    assert summary["estimated_wrong_labels"] is None and summary["estimated_error_rate"] is None
    assert summary["guards"] == [] and "no estimate" in summary["note"]


async def test_only_issues_say_what_a_label_is_taken_for(engine: DetectorEngine, tmp_path: Path) -> None:
    def row(line: int, is_issue: bool, *boxes: tuple[str, float | None, bool, str | None]) -> Row:
        keys = ("label", "quality", "is_issue", "suggested_label")
        facts = {"boxes": [{**dict(zip(keys, box, strict=True)), "loss": 0.5 * line} for box in boxes]}
        return Row(line, [], facts, quality=0.5, is_issue=is_issue, loss=1.0)

    record, file = record_of("x", task="detection", methods=["focal mean"]), AuditFile(tmp_path)
    file.create(record)
    doubted = ("tops", 0.1, True, "dress")
    rows = [
        row(1, True, doubted, ("tops", 0.9, False, "trouser"), ("dress", None, True, "tops")),
        row(2, True, ("tops", 0.9, False, "trouser"), ("trouser", 0.1, True, "dress"), ("trouser", 0.1, True, "tops")),
        row(3, False),
    ]
    file.append(record, rows)
    summary = BoxJudge(engine.card, record).conclude(record, file)[0].summary
    assert summary is not None and (summary.scored, summary.issues) == (3, 2)
    assert [tuple(one.model_dump().values()) for one in summary.classes] == [
        ("tops", 3, 1, pytest.approx((0.5 + 0.5 + 1.0) / 3), "dress"),
        ("trouser", 2, 2, 1.0, "tops"),  # as often as dress: the first of the two
    ]


async def test_losses_are_told_by_label_once(detector_artifacts: Path, tmp_path: Path) -> None:
    async with running(settings_of(models=detector_artifacts, device="cpu", audit_dir=tmp_path / "audits")) as http:
        info = await ended(http, (await sent(http, ndjson(ITEMS)))["id"])
        text = (await http.get("/metrics")).text
    for one in info["summary"]["classes"]:
        series = f'{{label="{one["label"]}",model="scenes",version="1"}}'
        told = dict(line.rsplit(" ", 1) for line in text.splitlines())
        assert float(told[f"focalserve_label_loss_count{series}"]) == one["count"]
        total = float(told[f"focalserve_label_loss_sum{series}"])
        assert total == pytest.approx(one["count"] * one["mean_loss"], rel=1e-6)


async def test_pages_lines_and_table_agree(http: httpx.AsyncClient, audited: Json) -> None:
    address, rows = f"/audits/{audited['id']}/results", await rows_of(http, audited["id"])
    paged: list[Json] = []
    after: int | None = 0
    while after is not None:
        page = (await http.get(f"{address}?page_size=7&after={after}")).json()
        assert len(page["items"]) == min(7, 40 - after)
        paged, after = paged + page["items"], page["next"]
    assert paged == rows
    answer = await http.get(address, headers={"accept": "text/csv"})
    table = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert set(table[0]) == set(KINDS["detection"].columns) and "p_given" not in table[0]
    for cells, row in zip(table, rows, strict=True):
        assert [json.loads(cells[key]) for key in ("given_label", "boxes", "missing")] == [
            row["given_label"],
            row["boxes"],
            row["missing"],
        ]
        assert (cells["id"], cells["is_issue"], cells["error"]) == (row["id"], str(row["is_issue"]), "")
        assert [float(cells[key]) for key in ("quality", "loss")] == [row["quality"], row["loss"]]


async def test_long_rows_make_short_pages_and_none_is_left_out(
    http: httpx.AsyncClient, audited: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, rows = f"/audits/{audited['id']}/results", await rows_of(http, audited["id"])
    table = (await http.get(address, headers={"accept": "text/csv"})).text
    monkeypatch.setattr("service.audit_file._PAGE_TEXT", len(json.dumps(rows[0])) * 3)
    assert await rows_of(http, audited["id"]) == rows
    assert (await http.get(address, headers={"accept": "text/csv"})).text == table
    page = (await http.get(f"{address}?page_size=1000")).json()
    count = len(page["items"])
    assert 1 < count < 10 and page["next"] == count
    rest = (await http.get(f"{address}?page_size=1000&after=39")).json()
    assert (rest["items"], rest["next"]) == (rows[39:], None)


async def test_one_that_runs_is_cancelled_and_keeps_its_rows(detector_artifacts: Path, tmp_path: Path) -> None:
    many = ndjson([{**ITEMS[n % 40], "id": str(n)} for n in range(800)])
    async with running(settings_of(models=detector_artifacts, device="cpu", audit_dir=tmp_path / "audits")) as http:
        audit = (await sent(http, many))["id"]
        async with asyncio.timeout(20):
            while (await http.get(f"/audits/{audit}")).json()["done"] == 0:
                await asyncio.sleep(0.005)
        info = (await http.delete(f"/audits/{audit}")).json()
        assert info["state"] == "cancelled" and 0 < info["done"] < 800 and info["done"] % 16 == 0
        rows = await rows_of(http, audit)
        assert [row["rank"] for row in rows] == list(range(1, info["done"] + 1)) and "boxes" in rows[0]
        assert (await http.delete(f"/audits/{audit}")).status_code == 204


async def test_text_in_the_table_is_no_formula(http: httpx.AsyncClient) -> None:
    items = [{**ITEMS[1], "id": "=1+1"}, {"id": "-2", "image": ITEMS[0]["image"], "label": "=now()"}]
    info = await ended(http, (await sent(http, ndjson(items)))["id"])
    answer = await http.get(f"/audits/{info['id']}/results", headers={"accept": "text/csv"})
    good, bad = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert good["id"] == "'=1+1" and (bad["id"], bad["given_label"]) == ("'-2", "'=now()")
    assert "give boxes, not a label" in bad["error"]


async def test_a_bad_line_is_its_own_error_and_harms_no_other(http: httpx.AsyncClient, audited: Json) -> None:
    image, few = ITEMS[1]["image"], [{"box": [1, 1, 30, 30], "label": 0}]
    bad: list[tuple[Json | bytes, int, str]] = [
        (b"{", 400, "not valid JSON"),
        (b"[1]", 422, ""),
        ({"image": image, "label": "tops"}, 422, "is a detector; give boxes, not a label"),
        ({"logits": [1.0, 2.0, 3.0], "label": 0}, 422, "is a detector; give boxes, not a label"),
        ({"image": image, "boxes": [*few, {"box": [9, 9, 3, 30], "label": 0}]}, 422, "boxes.1.box: the corners are"),
        ({"image": image, "boxes": [{"box": [1, 1, 3, 30], "label": "cat"}]}, 422, "boxes.0.label"),
        ({"image": image, "boxes": [{"box": [900, 900, 990, 990], "label": 0}]}, 422, "outside the picture"),
        ({"image": image, "boxes": few * 5001}, 413, "more than 5000"),
        ({"image": b64(b"no picture"), "boxes": few}, 422, ""),
        ({"image": "=", "boxes": few}, 422, "base64"),
        ({"boxes": few}, 422, "exactly one of"),
        ({"boxes": few, "cls_logits": [[0.0]], "box_deltas": [[0.0]]}, 422, "of model scenes are"),
        ({"image": image, "boxes": [{"box": [1, 1, 9, 9], "label": 0, "id": "\ud800"}]}, 422, "boxes.0.id"),
        (b'{"boxes": [{"box": [1, 1, 1e999, 9], "label": 0}], "image": ""}', 422, "finite"),
    ]
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line, _, _ in bad]
    mixed = [part for n, line in enumerate(lines) for part in (ndjson([ITEMS[n]]).strip(), line)]
    info = await ended(http, (await sent(http, b"\n".join(mixed)))["id"])
    assert (info["state"], info["items"], info["errors"]) == ("done", 2 * len(bad), len(bad)), info
    rows = await rows_of(http, info["id"])
    assert ["error" in row for row in rows] == [False] * len(bad) + [True] * len(bad)
    for row, (_, status, words) in zip(rows[len(bad) :], bad, strict=True):
        assert row["error"]["status"] == status and words in row["error"]["detail"], row
        assert "inputs." not in row["error"]["detail"]
    assert [row["given_label"][0] for row in rows[-2:]] == [
        {"box": [1, 1, 9, 9], "label": 0, "id": "?"},
        {"box": [1, 1, None, 9], "label": 0},
    ]
    table = (await http.get(f"/audits/{info['id']}/results", headers={"accept": "text/csv"})).text
    assert "[1,1,null,9]" in table and '""id"":""?""' in table
    alone = {row["id"]: row for row in await rows_of(http, audited["id"])}
    for row in rows[: len(bad)]:
        close({**row, "rank": 0, "line": 0}, {**alone[row["id"]], "rank": 0, "line": 0})
    assert info["summary"]["scored"] == len(bad)


async def test_arrays_of_the_model_are_taken_as_loss_takes_them(
    http: httpx.AsyncClient, engine: DetectorEngine, audited: Json
) -> None:
    raw = engine.run([load_input(decoded(ITEMS[1]), engine.card.input)], RAW)[0]
    assert isinstance(raw, Raw)
    logits = raw.cls_logits.rows(np.arange(raw.cls_logits.shape[0]))
    item = {"boxes": ITEMS[1]["boxes"], "cls_logits": logits.tolist(), "box_deltas": raw.box_deltas.tolist()}
    huge = {**item, "cls_logits": [[1e300] * 3, *item["cls_logits"][1:]]}
    info = await ended(http, (await sent(http, ndjson([item, huge])))["id"])
    rows = await rows_of(http, info["id"])
    want = (await loss_of(http, item))["items"][0]
    close(rows[0]["boxes"], without_rank(want["boxes"]))
    assert rows[0]["loss"] == pytest.approx(want["loss"], rel=1e-6)
    assert rows[1]["error"]["status"] == 422 and "finite" in rows[1]["error"]["detail"]


async def test_activation_is_refused_before_the_body_is_read(http: httpx.AsyncClient) -> None:
    before = (await http.get("/audits")).json()
    answer = await http.post("/audits?activation=softmax", content=b"{", headers=NDJSON)
    assert "model scenes is a detector" in problem_of(answer, 422, "invalid-request")["detail"]
    assert (await http.get("/audits")).json() == before


@pytest.mark.parametrize(
    ("scores", "given", "quality", "is_issue"),
    [
        ([], False, 1.0, False),
        ([0.25], False, 0.75, False),
        ([0.5, 0.1], False, 0.5, True),
        ([0.25], True, 0.1, False),
        ([0.95], True, 0.05, True),
    ],
    ids=["a correct negative", "hardly anything missing", "an object missing", "a doubtful box", "both"],
)
async def test_a_picture_is_as_good_as_the_worst_in_it(
    engine: DetectorEngine,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    given: bool,
    quality: float,
    is_issue: bool,
) -> None:
    score = Detection.score

    def told(task: Detection, *arguments: Any) -> Any:
        found = score(task, *arguments)
        count = len(scores)
        missing = MissingBoxes(np.tile([1.0, 1.0, 9.0, 9.0], (count, 1)), np.zeros(count, np.int64), np.array(scores))
        boxes = {"quality": np.full(len(found.valid), 0.1), "is_issue": np.zeros(len(found.valid), bool)}
        return type(found)(**{**vars(found), **boxes, "missing": missing})

    monkeypatch.setattr(Detection, "score", told)
    boxes = [{"box": [5, 5, 60, 60], "label": 0}] if given else []
    sent = LossInput.model_validate({"image": ITEMS[1]["image"], "boxes": boxes}).item()
    raw = engine.run([load_input(decoded(ITEMS[1]), engine.card.input)], RAW)[0]
    judge = BoxJudge(engine.card, record_of("x", task="detection"))
    row = judge.score([Item(3, sent, raw)], lambda _label, _losses: None).rows[0]
    assert (row.line, row.is_issue) == (3, is_issue)
    assert row.quality == pytest.approx(quality)


async def test_room_is_kept_for_what_is_said_of_boxes(engine: DetectorEngine) -> None:
    kind, asked = KINDS["detection"], AuditOptions()
    none, many = (kind.room(engine.card, asked, Inspection(10, boxes, None)) for boxes in (0, 1000))
    assert none.outputs == many.outputs == 0 and none.row_bytes > 10_000
    assert many.row_bytes - none.row_bytes == 700 * 100
    record = record_of("x", task="detection", outputs=0, row_bytes=many.row_bytes, items=10, size=5)
    assert bytes_of(record) == 5 + 10 * many.row_bytes


async def test_every_task_has_a_kind_of_audit() -> None:
    assert set(KINDS) == set(get_args(TaskName))


async def test_a_record_of_an_earlier_release_is_one_of_a_classifier() -> None:
    stored = record_of("x").model_dump(mode="json")
    del stored["task"], stored["row_bytes"]
    record = AuditRecord.model_validate(stored)
    assert (record.task, bytes_of(record)) == ("multiclass", bytes_of(record_of("x")))


async def test_openapi_shows_an_item_with_boxes_and_rows_of_pictures(detector_artifacts: Path) -> None:
    schema = create_app(settings_of(models=detector_artifacts)).openapi()
    examples = schema["paths"]["/audits"]["post"]["requestBody"]["content"]["application/x-ndjson"]["examples"]
    items = [LossInput.model_validate_json(line) for line in examples["boxes"]["value"].splitlines()]
    assert items and all(item.boxes is not None for item in items)
    row = schema["components"]["schemas"]["AuditRow"]["properties"]
    assert {"boxes", "missing", "classification", "location", "positives"} <= set(row)
    assert "rank" not in schema["components"]["schemas"]["JudgedBox"]["properties"]
    assert "rank" in schema["components"]["schemas"]["LossBox"]["properties"]
