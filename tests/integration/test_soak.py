"""Mixed traffic for a while: nothing is lost, nothing crosses, nothing grows.

TEST_SOAK_SECONDS=1200 runs it for that long instead of ten seconds.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.calibration import log_softmax
from tests.integration.launch import Server, launched
from tests.serving import SIZE, b64, encoded, linear_logits, linear_weights, pictures, png_of, write_linear

SECONDS = float(os.environ.get("TEST_SOAK_SECONDS", "10"))
CALLERS = 12
GROWTH_MB = 32.0
LABELS = ["a", "b", "c"]
IMAGES = pictures(64, SIZE)
EXPECTED = np.exp(log_softmax(linear_logits(IMAGES, linear_weights(3))))
FILES = [png_of(image) for image in IMAGES]
LARGE = encoded(np.kron(IMAGES[0], np.ones((40, 40, 1), np.uint8)), "JPEG")


class Traffic:
    """Callers that check what they get, and count what they sent by the status they got."""

    def __init__(self, http: httpx.AsyncClient, seconds: float) -> None:
        self.http = http
        self.until = time.monotonic() + seconds
        self.reloads = 0
        self.answered: Counter[tuple[str, int]] = Counter()
        self.left = 0

    async def call(self, seed: int) -> None:
        """One caller: a request of a random kind, one after the other."""
        dice = np.random.default_rng(seed)
        kinds: list[Callable[[Any], Awaitable[None]]] = [
            self.one_image, self.one_image, self.many, self.tensor, self.loss, self.bad, self.leave,
        ]  # fmt: skip
        while self.goes_on:
            await kinds[dice.integers(len(kinds))](dice)

    async def reload_often(self, every: float) -> None:
        """Loads the model anew again and again."""
        while self.goes_on:
            assert (await self.http.post("/v2/repository/models/linear/load")).status_code == 200
            self.reloads += 1
            await asyncio.sleep(every)

    @property
    def goes_on(self) -> bool:
        """Until its time is over, and longer where the machine was too slow for two reloads."""
        return time.monotonic() < self.until or self.reloads < 2

    async def post(self, path: str, wanted: int, **body: Any) -> Any:
        """A request whose answer must have that status; its JSON."""
        answer = await self.http.post(path, **body)
        route = "/v2/models/{model}/infer" if path.startswith("/v2") else path
        self.answered[route, answer.status_code] += 1
        assert answer.status_code == wanted, answer.text
        return answer.json()

    async def one_image(self, dice: np.random.Generator) -> None:
        """An image as it is."""
        k = int(dice.integers(len(FILES)))
        said = await self.post("/predict", 200, content=FILES[k], headers={"content-type": "image/png"})
        check(said["predictions"][0]["probabilities"], k)

    async def many(self, dice: np.random.Generator) -> None:
        """Several images, a broken one and a large one among them."""
        chosen = dice.integers(len(FILES), size=int(dice.integers(2, 12))).tolist()
        inputs = [{"image": b64(FILES[k]), "id": str(k)} for k in chosen] + [{"image": b64(LARGE)}, {"image": "AAAA"}]
        items = (await self.post("/predict", 200, json={"inputs": inputs}))["predictions"]
        assert [item.get("id") for item in items] == [str(k) for k in chosen] + [None, None]
        for item, k in zip(items, chosen, strict=False):
            check(item["probabilities"], k)
        assert "error" not in items[-2] and items[-1]["error"]["status"] == 422

    async def tensor(self, dice: np.random.Generator) -> None:
        """Pixels over the Open Inference Protocol."""
        chosen = dice.integers(len(FILES), size=3)
        tensor = {"name": "image", "shape": [3, SIZE, SIZE, 3], "datatype": "UINT8"}
        said = await self.post(
            "/v2/models/linear/infer", 200, json={"inputs": [{**tensor, "data": IMAGES[chosen].ravel().tolist()}]}
        )
        found = next(one for one in said["outputs"] if one["name"] == "probabilities")
        for row, k in zip(np.reshape(found["data"], (3, 3)), chosen.tolist(), strict=True):
            check(row, k)

    async def loss(self, dice: np.random.Generator) -> None:
        """Labels to score."""
        chosen = dice.integers(len(FILES), size=4).tolist()
        inputs = [{"image": b64(FILES[k]), "label": k % 3} for k in chosen]
        items = (await self.post("/loss", 200, json={"inputs": inputs}))["items"]
        for item, k in zip(items, chosen, strict=True):
            assert item["p_given"] == pytest.approx(EXPECTED[k, k % 3], rel=1e-4, abs=1e-7)

    async def bad(self, dice: np.random.Generator) -> None:
        """What cannot be decoded."""
        cut = FILES[int(dice.integers(len(FILES)))][: int(dice.integers(20, 60))]
        await self.post("/predict", 422, content=cut, headers={"content-type": "image/png"})

    async def leave(self, dice: np.random.Generator) -> None:
        """A client that hangs up somewhere between its first byte and the answer."""
        body = json.dumps({"inputs": [{"image": b64(FILES[0])}] * 40}).encode()
        url = self.http.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write((head + body)[: int(dice.integers(1, len(head + body) + 1))])
        await asyncio.sleep(float(dice.uniform(0.0, 0.02)))
        writer.close()
        self.left += 1


def check(found: Any, k: int) -> None:
    """Whether an answer is that of image k."""
    assert np.allclose(found, EXPECTED[k], rtol=1e-3, atol=1e-5), f"image {k} got another's answer"


def counted(server: Server) -> Counter[tuple[str, int]]:
    """Requests by route and status, as /metrics has them."""
    found: Counter[tuple[str, int]] = Counter()
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("focalserve_requests_total{"):
            labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.rindex("}")].split(","))
            found[labels["route"].strip('"'), int(labels["code"].strip('"'))] += int(float(line.rsplit(" ", 1)[1]))
    return found


def memory_mb(server: Server) -> float:
    """Resident memory of all its processes."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "rounds, begun",
    [(0, "2 processes answer"), (1000, "process began")],
    ids=["quick net in two processes", "nets side by side"],
)
def test_mixed_traffic(tmp_path: Path, rounds: int, begun: str) -> None:
    write_linear(tmp_path, LABELS, rounds=rounds)
    with launched(tmp_path, body_timeout="2", runs="2", workers="2") as server:
        server.until(begun)

        async def run(seconds: float) -> Traffic:
            limits = httpx.Limits(max_connections=CALLERS + 1)
            async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
                traffic = Traffic(http, seconds)
                calls = [traffic.call(seed) for seed in range(CALLERS)]
                await asyncio.gather(*calls, traffic.reload_often(max(1.0, SECONDS / 120)))
            return traffic

        first = asyncio.run(run(max(3.0, SECONDS / 10)))
        before = memory_mb(server)
        second = asyncio.run(run(SECONDS))
        grown = memory_mb(server) - before
        found = counted(server)
        for (route, status), number in (first.answered + second.answered).items():
            left = first.left + second.left if (route, status) == ("/predict", 200) else 0
            assert number <= found[route, status] <= number + left, (route, status)
        assert not [status for _, status in found if status >= 500]
        assert grown < GROWTH_MB, f"{grown:.1f} MB more than after the first part"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert "ERROR" not in server.log and "Traceback" not in server.log
