import asyncio
import csv
import io
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.audits import LABELS, NDJSON, Labelled, by_line, ended, images_of, items_of, labelled, ndjson, rows_of, sent
from tests.noisy import synthesize
from tests.serving import SIZE, Json, b64, pictures, png_of, problem_of, running, settings_of, write_linear

SOME = ndjson(items_of(labelled(7)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_linear(root, LABELS)
    return root


@pytest.fixture
async def http(models: Path, tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", audit_max_bytes=2_000_000)) as client:
        yield client


async def test_each_row_is_scored_as_loss_scores_it_alone(http: httpx.AsyncClient) -> None:
    items = images_of(40)
    info = await ended(http, (await sent(http, ndjson(items), "?name=mine"))["id"])
    assert (info["state"], info["name"], info["done"], info["errors"], info["progress"]) == ("done", "mine", 40, 0, 1.0)
    want = (await http.post("/loss", json={"inputs": items})).json()["items"]
    rows = await rows_of(http, info["id"])
    assert [row["rank"] for row in rows] == list(range(1, 41))
    for row, alone, item in zip(by_line(rows), want, items, strict=True):
        assert (row["id"], row["given_label"], row["line"]) == (item["id"], item["label"], alone["index"] + 1)
        assert row["suggested_label"] == alone["suggested_label"] and row["is_issue"] == alone["is_issue"]
        assert row["rank"] == alone["rank"]
        for key in ("loss", "quality", "p_given", "margin", "log_p_given"):
            assert row[key] == pytest.approx(alone[key], abs=1e-5)
    assert info["summary"]["estimated_wrong_labels"] is None and "100 rows" in info["summary"]["note"]
    assert sum(one["count"] for one in info["summary"]["classes"]) == 40


async def test_labels_of_a_whole_data_set_are_judged_by_its_own_noise(http: httpx.AsyncClient) -> None:
    data = labelled(1000, rate=0.05)
    info = await ended(http, (await sent(http, ndjson(items_of(data))))["id"])
    summary, rows = info["summary"], await rows_of(http, info["id"])
    count = int(data.wrong.sum())
    assert summary["guards"][0]["passed"] and 0.6 * count < summary["estimated_wrong_labels"] < 1.4 * count
    assert summary["issues"] == sum(row["is_issue"] for row in rows) == round(summary["estimated_wrong_labels"])
    assert "this audit's own labels" in summary["quality_method"] and summary["note"] is None
    worst = [data.wrong[row["line"] - 1] for row in rows[: count // 2]]
    assert np.mean(worst) > 0.9
    alone = (await http.post("/loss", json={"inputs": items_of(data)})).json()["items"]
    assert [row["quality"] for row in by_line(rows)] != [item["quality"] for item in alone]
    # The noise goes to the next class, and the audit has learnt that: the class before is suggested.
    first = rows[0]
    assert first["suggested_label"] == LABELS[(first["given_label"] - 1) % 3]
    assert {one["label"]: one["most_confused_with"] for one in summary["classes"]} == {"a": "c", "b": "a", "c": "b"}


async def test_a_model_that_is_less_sure_than_right_gives_no_estimate(http: httpx.AsyncClient) -> None:
    data = labelled(400, rate=0.0)
    flat = data.p**0.4
    unsure = Labelled(flat / flat.sum(axis=1, keepdims=True), data.given, data.wrong)
    info = await ended(http, (await sent(http, ndjson(items_of(unsure))))["id"])
    summary = info["summary"]
    assert summary["estimated_wrong_labels"] is None and "less sure" in summary["note"]
    assert not summary["guards"][0]["passed"] and summary["guards"][0]["gap"] < -0.1
    alone = (await http.post("/loss", json={"inputs": items_of(unsure)})).json()["items"]
    rows = by_line(await rows_of(http, info["id"]))
    assert [row["quality"] for row in rows] == pytest.approx([item["quality"] for item in alone], abs=1e-12)


async def test_many_wrong_labels_are_told_from_a_bad_model(http: httpx.AsyncClient) -> None:
    data = labelled(1000, rate=0.2)
    info = await ended(http, (await sent(http, ndjson(items_of(data))))["id"])
    summary = info["summary"]
    assert summary["guards"][0]["gap"] > 0.1 and "over-confident, or many" in summary["note"]
    assert 0.7 * data.wrong.sum() < summary["estimated_wrong_labels"] < 1.3 * data.wrong.sum()
    rows = await rows_of(http, info["id"])
    assert np.mean([data.wrong[row["line"] - 1] for row in rows[:100]]) > 0.9


async def test_hundreds_of_classes_are_counted_too(tmp_path: Path) -> None:
    cell = synthesize(260, 2600, 0.1, "sym", seed=0)
    labels = tuple(f"class {k}" for k in range(260))
    write_linear(tmp_path / "models", labels)
    body = ndjson(items_of(Labelled(cell.p.round(6), cell.given, cell.wrong)))
    async with running(settings_of(models=tmp_path / "models", audit_dir=tmp_path / "audits")) as http:
        info = await ended(http, (await sent(http, body))["id"])
        worst = (await http.get(f"/audits/{info['id']}/results?page_size=100")).json()["items"]
    assert info["summary"]["note"] is None, info
    assert 0.7 * cell.wrong.sum() < info["summary"]["estimated_wrong_labels"] < 1.4 * cell.wrong.sum()
    assert np.mean([cell.wrong[row["line"] - 1] for row in worst]) > 0.9


async def test_pages_follow_each_other_and_agree_with_lines_and_table(http: httpx.AsyncClient) -> None:
    audit = (await sent(http, ndjson([{**item, "id": "=1+1"} for item in items_of(labelled(25))])))["id"]
    await ended(http, audit)
    paged: list[Json] = []
    after: int | None = 0
    while after is not None:
        page = (await http.get(f"/audits/{audit}/results?page_size=10&after={after}")).json()
        paged += page["items"]
        after = page["next"]
    assert paged == await rows_of(http, audit) and len(paged) == 25
    answer = await http.get(f"/audits/{audit}/results", headers={"accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    table = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [float(row["quality"]) for row in table] == [row["quality"] for row in paged]
    assert {row["id"] for row in table} == {"'=1+1"}
    problem_of(await http.get(f"/audits/{audit}/results?page_size=0"), 422, "invalid-request")


async def test_rows_of_another_model_are_scored_by_their_own_width(http: httpx.AsyncClient) -> None:
    rows = [{"logits": [3.0, 0.0, 0.0, 1.0], "label": n % 4} for n in range(8)]
    body = ndjson([*rows, {"logits": [1.0], "label": 0}, {"image": b64(b"x"), "label": 0}])
    info = await ended(http, (await sent(http, body, "?activation=softmax"))["id"])
    assert (info["items"], info["errors"]) == (10, 2)
    found = await rows_of(http, info["id"])
    assert found[0]["given_label"] in (1, 2) and found[0]["suggested_label"] == "0"
    problem_of(
        await http.post("/audits?activation=softmax", content=ndjson(images_of(1)), headers=NDJSON),
        422,
        "invalid-request",
    )


@pytest.mark.parametrize("task", ["binary", "multilabel"])
async def test_other_tasks_are_audited_too(models: Path, tmp_path: Path, task: Any) -> None:
    rng = np.random.default_rng(0)
    labels = ("no", "yes") if task == "binary" else ("s", "t")
    p = 1.0 / (1.0 + np.exp(-4.0 * rng.normal(size=(600, 1 if task == "binary" else 2))))
    true = rng.random(p.shape) < p
    given = true ^ (rng.random(p.shape) < 0.1)
    write_linear(tmp_path / "models", labels, task=task)
    items = [
        {"probabilities": row.tolist(), "label": int(y[0]) if task == "binary" else y.astype(float).tolist()}
        for row, y in zip(p, given, strict=True)
    ]
    async with running(settings_of(models=tmp_path / "models", audit_dir=tmp_path / "audits")) as http:
        info = await ended(http, (await sent(http, ndjson(items)))["id"])
        rows = await rows_of(http, info["id"])
    assert info["state"] == "done" and info["errors"] == 0, info
    wrong = np.asarray((given ^ true).any(axis=1))
    assert 0.5 < info["summary"]["estimated_wrong_labels"] / (given ^ true).sum() < 1.5
    assert np.mean([wrong[row["line"] - 1] for row in rows[:20]]) > 0.8
    assert sum(row["is_issue"] for row in rows) == info["summary"]["issues"] > 10
    assert {one["label"] for one in info["summary"]["classes"]} == set(labels)


async def test_an_audit_that_runs_can_be_cancelled_and_then_removed(models: Path, tmp_path: Path) -> None:
    many = ndjson(images_of(1500))
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", max_batch=1)) as http:
        first, second = (await sent(http, many))["id"], (await sent(http, SOME))["id"]
        assert [one["id"] for one in (await http.get("/audits")).json()["audits"]] == [first, second]
        assert (await http.get(f"/audits/{second}")).json()["state"] == "queued"
        async with asyncio.timeout(10):
            while (await http.get(f"/audits/{first}")).json()["done"] == 0:
                await asyncio.sleep(0.005)
        problem_of(await http.get(f"/audits/{first}/results"), 409, "conflict")
        running_now = (await http.get(f"/audits/{first}")).json()
        assert running_now["state"] == "running" and running_now["items_per_second"] > 0
        info = (await http.delete(f"/audits/{first}")).json()
        assert info["state"] == "cancelled" and 0 < info["done"] < 1500
        rows = await rows_of(http, first)
        assert [row["rank"] for row in rows] == list(range(1, info["done"] + 1))
        assert (await ended(http, second))["state"] == "done"
        assert (await http.delete(f"/audits/{first}")).status_code == 204
        problem_of(await http.get(f"/audits/{first}"), 404, "not-found")
        assert not (tmp_path / "audits" / first).exists()


async def test_an_audit_that_waits_is_cancelled_while_another_runs(models: Path, tmp_path: Path) -> None:
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", max_batch=1)) as http:
        first, second = (await sent(http, ndjson(images_of(1500))))["id"], (await sent(http, SOME))["id"]
        async with asyncio.timeout(2):
            assert (await http.delete(f"/audits/{second}")).json()["state"] == "cancelled"
        assert (await http.get(f"/audits/{first}")).json()["state"] in ("queued", "running")


async def test_predictions_are_answered_while_an_audit_runs(models: Path, tmp_path: Path) -> None:
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", queue_size=8)) as http:
        audit = (await sent(http, ndjson(images_of(3000))))["id"]
        for picture in pictures(50, SIZE):
            assert (await http.post("/predict", content=png_of(picture))).status_code == 200
        assert (await http.get(f"/audits/{audit}")).json()["done"] < 3000
        info = await ended(http, audit)
        assert (info["state"], info["errors"]) == ("done", 0)


@pytest.mark.parametrize("path", ["/audits/0123456789abcdef", "/audits/%2e%2e%2e", "/audits/0123456789abcdef/results"])
async def test_an_unknown_audit_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    problem_of(await http.get(path), 404, "not-found")
    if not path.endswith("results"):
        problem_of(await http.delete(path), 404, "not-found")


async def test_a_model_that_is_another_one_now_fails_the_audit(models: Path, tmp_path: Path) -> None:
    write_linear(tmp_path / "models", LABELS)
    settings = settings_of(models=tmp_path / "models", audit_dir=tmp_path / "audits", max_batch=1)
    async with running(settings) as http:
        audit = (await sent(http, ndjson(images_of(2000))))["id"]
        folder = tmp_path / "models" / "linear" / "1"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        write_linear(tmp_path / "models", LABELS, created="2027-01-01")
        assert (await http.post("/v2/repository/models/linear/load")).status_code == 200
        info = await ended(http, audit)
    assert info["state"] == "failed" and "another one now" in info["reason"]


async def test_losses_by_class_and_version_are_counted(http: httpx.AsyncClient) -> None:
    items = images_of(9)
    await http.post("/loss", json={"inputs": items[:6]})
    await http.post("/loss", json={"inputs": items[:6], "gamma": 0.5})  # not the model's own loss
    await http.post("/loss", json={"inputs": items_of(labelled(4))})  # not the model's own rows
    await ended(http, (await sent(http, ndjson(items[6:])))["id"])
    losses = [item["loss"] for item in (await http.post("/loss", json={"inputs": items[:0] + items})).json()["items"]]
    text = (await http.get("/metrics")).text

    def value(name: str, label: str, **more: str) -> float:
        wanted = {"model": "linear", "version": "1", "label": label, **more}
        for line in text.splitlines():
            if line.startswith(name + "{") and all(f'{key}="{text}"' in line for key, text in wanted.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(name)

    for k, label in enumerate(LABELS):
        mine = np.asarray(losses[k::3])
        assert value("focalserve_label_loss_count", label) == 3 + 3
        assert value("focalserve_label_loss_sum", label) == pytest.approx(2 * mine.sum(), rel=1e-4)
        for bound in ("0.1", "1.0", "10.0"):
            assert value("focalserve_label_loss_bucket", label, le=bound) == 2 * (mine <= float(bound)).sum()
        assert value("focalserve_label_loss_bucket", label, le="+Inf") == 6
