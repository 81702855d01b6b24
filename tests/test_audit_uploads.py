import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.audit_spool import LONGEST_LINE
from tests.audits import LABELS, NDJSON, ended, images_of, items_of, labelled, ndjson, rows_of, sent
from tests.serving import b64, problem_of, running, settings_of, write_linear

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


async def test_a_bad_line_is_its_own_error_and_comes_last(http: httpx.AsyncClient) -> None:
    good = images_of(3)
    bad: list[tuple[bytes, int]] = [
        (b"{", 400),
        (b'{"label": NaN}', 400),
        (b"[1]", 422),
        (ndjson([{"image": b64(b"no picture"), "label": "a"}]).strip(), 422),
        (ndjson([{**good[0], "label": "z"}]).strip(), 422),
        (ndjson([{"logits": [1.0, 2.0], "label": 0}]).strip(), 422),
        (ndjson([{"logits": [1.5e308, -1.5e308, 0.0], "label": 1}]).strip(), 422),
        (ndjson([{"probabilities": [0.5, 0.9, 0.1], "label": 0}]).strip(), 422),
        (ndjson([{"image": good[0]["image"], "boxes": []}]).strip(), 422),
        (b'{"logits": [1.0, 2.0, 3.0], "label": "\\ud800"}', 422),
    ]
    body = b"\n\n".join([*(line for line, _ in bad), ndjson(good)])
    info = await ended(http, (await sent(http, body))["id"])
    assert (info["state"], info["items"], info["errors"]) == ("done", len(bad) + 3, len(bad)), info
    rows = await rows_of(http, info["id"])
    assert [("error" in row) for row in rows] == [False] * 3 + [True] * len(bad)
    assert [row["line"] for row in rows[3:]] == [1 + 2 * n for n in range(len(bad))]
    assert [row["error"]["status"] for row in rows[3:]] == [status for _, status in bad]
    assert [one["line"] for one in info["first_errors"]] == [row["line"] for row in rows[3:]]
    assert not any("inputs." in row["error"]["detail"] for row in rows[3:])
    assert [row["given_label"] for row in rows[-2:]] == [[], "?"]


async def test_a_line_that_is_too_long_is_an_error_and_the_next_is_read(models: Path, tmp_path: Path) -> None:
    body = b'{"image": "' + b"A" * LONGEST_LINE + b'", "label": "a"}\n' + SOME
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits")) as http:
        info = await ended(http, (await sent(http, gzip.compress(body, 1), **{"content-encoding": "gzip"}))["id"])
        assert (info["items"], info["errors"], info["size"]) == (8, 1, len(body))
        assert (await rows_of(http, info["id"]))[-1]["error"]["status"] == 413


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid-request"),
        (b"\n \n", 422, "invalid-request"),
        (b'[\n{"a": 1},\n]', 400, "malformed-request"),
        (b"\x89PNG\r\n\x1a\n", 400, "malformed-request"),
        (b"id,label\n1,a\n", 400, "malformed-request"),
        (b"{}\n" * 700_000, 413, "too-large"),
    ],
    ids=["empty", "blank", "an array", "a picture", "a table", "too long"],
)
async def test_a_body_that_is_not_ndjson_is_refused_and_leaves_nothing(
    http: httpx.AsyncClient, tmp_path: Path, body: bytes, status: int, code: str
) -> None:
    problem_of(await http.post("/audits", content=body, headers=NDJSON), status, code)
    assert (await http.get("/audits")).json() == {"audits": []}
    assert [path.name for path in (tmp_path / "audits").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?model=other", NDJSON, 404, "not-found"),
        ("?modell=linear", NDJSON, 422, "invalid-request"),
        ("?activation=tanh", NDJSON, 422, "invalid-request"),
        ("?name=1&name=2", NDJSON, 422, "invalid-request"),
        ("", {"content-type": "image/png"}, 415, "unsupported-media-type"),
        ("", {**NDJSON, "content-encoding": "br"}, 415, "unsupported-media-type"),
        ("", {**NDJSON, "content-encoding": "gzip"}, 400, "malformed-request"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused(
    http: httpx.AsyncClient, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    problem_of(await http.post(f"/audits{query}", content=SOME, headers=headers), status, code)


@pytest.mark.parametrize("spoil", [lambda packed: packed[:-5], lambda packed: packed + b"x"], ids=["cut", "more"])
async def test_gzip_that_is_cut_off_or_goes_on_is_refused(http: httpx.AsyncClient, spoil: Any) -> None:
    headers = {**NDJSON, "content-encoding": "gzip"}
    problem_of(
        await http.post("/audits", content=spoil(gzip.compress(SOME)), headers=headers), 400, "malformed-request"
    )


async def test_the_cap_counts_decompressed_bytes(http: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await http.post("/audits", content=bomb, headers={**NDJSON, "content-encoding": "gzip"})
    problem_of(answer, 413, "too-large")


async def test_as_many_audits_are_kept_as_are_allowed(models: Path, tmp_path: Path) -> None:
    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", max_audits=2)) as http:
        ids = [(await sent(http, SOME))["id"] for _ in range(2)]
        full = await http.post("/audits", content=SOME, headers=NDJSON)
        problem_of(full, 429, "overloaded")
        assert full.headers["retry-after"] == "1"
        await ended(http, ids[0])
        await http.delete(f"/audits/{ids[0]}")
        await sent(http, SOME)


async def test_a_body_that_stands_still_is_given_up(models: Path, tmp_path: Path) -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield SOME
        await asyncio.sleep(5)

    async with running(settings_of(models=models, audit_dir=tmp_path / "audits", body_timeout=0.1)) as http:
        problem_of(await http.post("/audits", content=stalls(), headers=NDJSON), 408, "request-timeout")
        assert (await http.get("/audits")).json() == {"audits": []}


def test_openapi_shows_the_routes_with_what_they_take_and_answer(models: Path) -> None:
    schema = create_app(settings_of(models=models)).openapi()
    create, results = schema["paths"]["/audits"]["post"], schema["paths"]["/audits/{audit}/results"]["get"]
    taken = create["requestBody"]["content"]["application/x-ndjson"]
    assert taken["schema"] == {"$ref": "#/components/schemas/LossInput"}
    for line in taken["examples"]["labels"]["value"].splitlines():
        assert {"label"} < set(json.loads(line))
    assert {one["name"] for one in create["parameters"]} == {"model", "name", "activation"}
    assert {"202", "400", "404", "413", "415", "422", "429", "503"} <= set(create["responses"])
    assert {"application/json", "application/x-ndjson", "text/csv"} == set(results["responses"]["200"]["content"])
    assert set(schema["paths"]["/audits/{audit}"]) == {"get", "delete"}
    names = {"AuditInfo", "AuditPage", "AuditRow", "AuditSummary", "LossInput", "Problem"}
    assert names <= set(schema["components"]["schemas"])
