import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.audited_boxes import box_items, without_rank
from tests.audits import NDJSON, by_line, items_of, labelled, ndjson
from tests.integration.launch import Server, launched, wait
from tests.serving import SIZE, Json, b64, pictures, png_of, write_linear

LABELS = ("a", "b", "c")
COUNT = 6000
WITH_BOXES = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_linear(root, LABELS)
    return root


@pytest.fixture(scope="module")
def body() -> bytes:
    """Pictures and rows with labels, among them lines that are bad."""
    seen = [b64(png_of(picture)) for picture in pictures(50, SIZE)]
    rows = items_of(labelled(COUNT // 2))
    items: list[Any] = []
    for n, item in enumerate(rows):
        items += [item, {"id": f"picture {n}", "image": seen[n % 50], "label": LABELS[n % 3]}]
        items[-1 - (n % 2)] = "bad" if n % 100 == 7 else items[-1 - (n % 2)]
    return ndjson(items)


def start(server: Server, body: bytes) -> str:
    server.until("process began")
    answer = httpx.post(f"{server.url}/audits", content=body, headers=NDJSON, timeout=30)
    assert answer.status_code == 202, answer.text
    audit: str = answer.json()["id"]
    return audit


def info_of(server: Server, audit: str) -> Json:
    info: Json = httpx.get(f"{server.url}/audits/{audit}").json()
    return info


def rows_of(server: Server, audit: str) -> list[Json]:
    wait(lambda: info_of(server, audit)["state"] not in ("queued", "running"), 60)
    assert info_of(server, audit)["state"] == "done", info_of(server, audit)
    rows: list[Json] = []
    after: int | None = 0
    while after is not None:
        page = httpx.get(f"{server.url}/audits/{audit}/results?page_size=1000&after={after}").json()
        rows, after = rows + page["items"], page["next"]
    return rows


def compare(found: list[Json], want: list[Json]) -> None:
    """Equal but for the last digits, which may depend on how pictures shared batches."""
    assert sorted(row["line"] for row in found) == list(range(1, COUNT + 1))
    assert [row["rank"] for row in found] == list(range(1, COUNT + 1))
    assert [row.get("error") for row in found] == [row.get("error") for row in want]
    scored = [(a, b) for a, b in zip(found, want, strict=True) if "error" not in a]
    np.testing.assert_allclose([a["quality"] for a, _ in scored], [b["quality"] for _, b in scored], atol=1e-6)
    swapped = [(a, b) for a, b in scored if a["line"] != b["line"]]
    assert all(abs(a["quality"] - b["quality"]) < 1e-6 for a, b in swapped)
    alike = {row["line"]: row for row in want}
    for row, _ in scored:
        other = alike[row["line"]]
        assert (row.get("id"), row["given_label"], row["suggested_label"], row["is_issue"]) == (
            other.get("id"),
            other["given_label"],
            other["suggested_label"],
            other["is_issue"],
        )


def test_a_killed_service_goes_on_and_ends_as_if_nothing_had_happened(
    models: Path, body: bytes, tmp_path: Path
) -> None:
    with launched(models, audit_dir=str(tmp_path / "whole")) as server:
        audit = start(server, body)
        want, summary = rows_of(server, audit), info_of(server, audit)["summary"]
    settings = {"audit_dir": str(tmp_path / "killed")}
    done: list[int] = []
    with launched(models, **settings) as server:
        audit = start(server, body)
        wait(lambda: info_of(server, audit)["done"] > COUNT // 6, 30)
        done.append(info_of(server, audit)["done"])
        server.signal(signal.SIGKILL)
        server.ended(10)
    with launched(models, **settings) as server:
        server.until("process began")
        done.append(info_of(server, audit)["done"])
        wait(lambda: info_of(server, audit)["done"] > 2 * COUNT // 3, 30)
        server.signal(signal.SIGKILL)
        server.ended(10)
    with launched(models, **settings) as server:
        server.until("process began")
        found = rows_of(server, audit)
        assert info_of(server, audit)["summary"]["issues"] == summary["issues"]
    assert COUNT > done[1] >= done[0] > 0, "it was not killed midway"
    compare(found, want)
    with launched(models, **settings) as server:
        server.until("process began")
        assert rows_of(server, audit) == found


def test_an_audit_of_boxes_goes_on_after_a_kill_and_says_what_loss_says(
    detector_artifacts: Path, tmp_path: Path
) -> None:
    items, settings = box_items(40), {"audit_dir": str(tmp_path / "audits"), "max_batch": "4", "threads": "1"}
    many = [{**items[n % 40], "id": str(n)} for n in range(WITH_BOXES)]
    many[7] = {"id": "bad", "label": "tops", "image": items[0]["image"]}
    with launched(detector_artifacts, **settings) as server:
        audit = start(server, ndjson(many))
        wait(lambda: info_of(server, audit)["done"] > 16, 30)
        server.signal(signal.SIGKILL)
        server.ended(10)
    with launched(detector_artifacts, **settings) as server:
        server.until("process began")
        assert 0 < info_of(server, audit)["done"] < WITH_BOXES, "it was not killed midway"
        rows = rows_of(server, audit)
        answer = httpx.post(f"{server.url}/loss", json={"inputs": items}, timeout=60)
        summary = info_of(server, audit)["summary"]
    assert [row["rank"] for row in rows] == list(range(1, WITH_BOXES + 1))
    assert (rows[-1]["id"], rows[-1]["line"], "error" in rows[-1]) == ("bad", 8, True)
    scored = [row for row in by_line(rows) if row["id"] != "bad"]
    assert [row["id"] for row in scored] == [str(n) for n in range(WITH_BOXES) if n != 7]
    assert summary["scored"] == WITH_BOXES - 1 and summary["issues"] == sum(row["is_issue"] for row in scored)
    for row in scored:
        want = answer.json()["items"][int(row["id"]) % 40]
        assert row["loss"] == pytest.approx(want["loss"], rel=1e-4)
        assert [box.keys() for box in row["boxes"]] == [box.keys() for box in without_rank(want["boxes"])]
        for box, other in zip(row["boxes"], want["boxes"], strict=True):
            assert box["label"] == other["label"] and box.get("id") == other.get("id")
            assert box.get("quality") == (other.get("quality") and pytest.approx(other["quality"], abs=1e-4))


def test_a_service_that_is_told_to_stop_leaves_an_audit_that_goes_on(models: Path, body: bytes, tmp_path: Path) -> None:
    settings = {"audit_dir": str(tmp_path / "audits"), "drain_seconds": "0"}
    with launched(models, **settings) as server:
        audit = start(server, body)
        wait(lambda: info_of(server, audit)["done"] > 0, 30)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended(20) == 0
        assert time.monotonic() - began < 10.0
        assert "ERROR" not in server.log and "Traceback" not in server.log, server.log
    with launched(models, **settings) as server:
        server.until("process began")
        assert sorted(row["line"] for row in rows_of(server, audit)) == list(range(1, COUNT + 1))


def test_an_upload_that_breaks_off_leaves_nothing(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audits"
    with launched(models, audit_dir=str(folder), body_timeout="30") as server:
        server.until("process began")
        stop = threading.Event()

        def part() -> Any:
            yield b'{"label": 0, "logits": [1, 2, 3]}\n' * 100_000
            stop.wait(10)
            raise ConnectionError

        def send() -> None:
            with contextlib.suppress(ConnectionError):
                httpx.post(f"{server.url}/audits", content=part(), headers=NDJSON)

        sender = threading.Thread(target=send)
        sender.start()
        wait(lambda: len(list(folder.glob("*/items.ndjson"))) == 1)
        assert len(list(folder.glob("*/items.ndjson"))) == 1
        assert httpx.get(f"{server.url}/audits").json() == {"audits": []}
        stop.set()
        sender.join(10)
        wait(lambda: not list(folder.glob("*/items.ndjson")))
        assert [path.name for path in folder.iterdir()] == ["lock"]
