"""What the tests of audits share: items whose labels are partly wrong, as NDJSON, and waiting for an audit's end."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.serving import SIZE, Json, b64, pictures, png_of

LABELS = ("a", "b", "c")
NDJSON = {"content-type": "application/x-ndjson"}


@dataclass(frozen=True)
class Labelled:
    """Honest probabilities (N, K), labels given (N,), and which of them were made wrong (N,)."""

    p: NDArray[np.float64]
    given: NDArray[np.intp]
    wrong: NDArray[np.bool_]


def labelled(count: int, classes: int = 3, rate: float = 0.1, seed: int = 0) -> Labelled:
    """Labels drawn from the probabilities themselves, a part of them then replaced by the next class."""
    rng = np.random.default_rng(seed)
    z = 4.0 * rng.normal(size=(count, classes))
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    wrong = rng.random(count) < rate
    return Labelled(p, np.where(wrong, (true + 1) % classes, true), wrong)


def items_of(data: Labelled) -> list[Json]:
    """An item with probabilities for each label."""
    return [
        {"id": f"item {n}", "probabilities": row.tolist(), "label": int(y)}
        for n, (row, y) in enumerate(zip(data.p, data.given, strict=True))
    ]


def images_of(count: int) -> list[Json]:
    """An item with a small picture for each, the labels in turn."""
    return [
        {"id": str(n), "image": b64(png_of(picture)), "label": LABELS[n % 3]}
        for n, picture in enumerate(pictures(count, SIZE))
    ]


def ndjson(items: Iterable[Any]) -> bytes:
    """One JSON document a line."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


async def sent(http: httpx.AsyncClient, body: bytes, query: str = "", **headers: str) -> Json:
    """The answer to an audit that is accepted."""
    answer = await http.post(f"/audits{query}", content=body, headers={**NDJSON, **headers})
    assert answer.status_code == 202, answer.text
    info: Json = answer.json()
    assert answer.headers["location"] == f"/audits/{info['id']}"
    return info


async def ended(http: httpx.AsyncClient, audit: str, seconds: float = 20.0) -> Json:
    """The audit once it has ended."""
    async with asyncio.timeout(seconds):
        while True:
            info: Json = (await http.get(f"/audits/{audit}")).json()
            if info["state"] not in ("queued", "running"):
                return info
            await asyncio.sleep(0.01)


async def rows_of(http: httpx.AsyncClient, audit: str) -> list[Json]:
    """All rows, by the stream of lines."""
    answer = await http.get(f"/audits/{audit}/results", headers={"accept": "application/x-ndjson"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def by_line(rows: Sequence[Json]) -> list[Json]:
    """Rows in the order they were sent."""
    return sorted(rows, key=lambda row: int(row["line"]))
