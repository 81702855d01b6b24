"""Requests of one item are answered without a task, say what they say the long way, and share batches."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from service.app import create_app
from service.exchange import WHOLE, WholeRequest
from service.front import Front
from service.sealed import Sealed
from service.settings import Settings
from service.state import ServiceState
from tests.conftest import jpeg, noise, png
from tests.serving import SIZE, Json, b64, linear_graph, linear_weights, pictures, png_of, settings_of, write_linear

PICTURES = pictures(4, SIZE)
IMAGE = png_of(PICTURES[0])
VARIES = {"server-timing", "x-request-id", "date"}


class Reader:
    """A client: keeps its answer."""

    def __init__(self, breaks: bool = False) -> None:
        self.answer: Sealed | None = None
        self.error: BaseException | None = None
        self.over = asyncio.Event()
        self._breaks = breaks

    def send(self, sealed: Sealed | None) -> None:
        if self._breaks:
            raise ConnectionError("broken")
        self.answer = sealed
        self.over.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.over.set()

    @property
    def status(self) -> int:
        assert self.answer is not None
        return self.answer.status

    @property
    def headers(self) -> dict[str, str]:
        assert self.answer is not None
        return {name.decode(): value.decode() for name, value in self.answer.headers}

    @property
    def body(self) -> bytes:
        assert self.answer is not None
        return self.answer.body


class Site:
    """A running app, asked by the short way and by the long one."""

    def __init__(self, front: Front, state: ServiceState, http: httpx.AsyncClient) -> None:
        self.front, self.state, self.http = front, state, http

    def ask(self, path: str, body: bytes, reader: Reader, **headers: str) -> WholeRequest | None:
        """Asks by the short way; None where that does not take it."""
        given = {"host": "here", "content-length": str(len(body)), **headers}
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "http_version": "1.1",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        }
        handler = self.front.handler("POST", scope["path"])
        assert handler is not None
        request = WholeRequest(body)
        return request if self.front.at_once(handler, scope, request, reader) else None

    async def answer(self, path: str, body: bytes, **headers: str) -> Reader:
        """The answer by the short way."""
        reader = Reader()
        assert self.ask(path, body, reader, **headers) is not None
        async with asyncio.timeout(10):
            await reader.over.wait()
        return reader


@asynccontextmanager
async def site(settings: Settings) -> AsyncGenerator[Site]:
    app = create_app(settings)
    front, transport = app.middleware_stack, httpx.ASGITransport(app, raise_app_exceptions=False)
    assert isinstance(front, Front)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        async with asyncio.timeout(20):
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        yield Site(front, app.state.service, http)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The linear model, and its graph without a card as `graph`, both quick; `slow` runs in threads."""
    write_linear(tmp_path, ["a", "b", "c"])
    write_linear(tmp_path, ["a", "b", "c"], rounds=1000, name="slow")
    weights = linear_weights(3)
    (tmp_path / "graph.onnx").write_bytes(linear_graph(weights, None, name="pixels", kind=onnx.TensorProto.FLOAT))
    return tmp_path


def tensor(name: str, datatype: str, shape: list[int], data: Any, **more: Any) -> bytes:
    one = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [one], **more}).encode()


def binary(pixels: Any, name: str, datatype: str, **more: Any) -> tuple[bytes, dict[str, str]]:
    size = {"parameters": {"binary_data_size": pixels.nbytes}}
    head = json.dumps({"inputs": [{"name": name, "datatype": datatype, "shape": list(pixels.shape), **size}], **more})
    return head.encode() + pixels.tobytes(), {"inference_header_content_length": str(len(head))}


NUMBERS = PICTURES[0].ravel().tolist()
FLOATS = PICTURES[:2].astype(np.float32)
REQUESTS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "image": ("/predict?model=linear&top_k=2", IMAGE, {"content_type": "image/png"}),
    "image of no declared type": ("/predict?model=linear", jpeg(noise(20, 12)), {}),
    "pixels": ("/v2/models/linear/infer", tensor("image", "UINT8", [1, SIZE, SIZE, 3], NUMBERS), {}),
    "binary pixels": ("/v2/models/linear/versions/1/infer", *binary(PICTURES[:1], "image", "UINT8", id="x")),
    "encoded": ("/v2/models/linear/infer", tensor("image", "BYTES", [1], [b64(IMAGE)]), {}),
    "graph": ("/v2/models/graph/infer", tensor("pixels", "FP32", list(FLOATS.shape), FLOATS.ravel().tolist()), {}),
    "graph, binary": ("/v2/models/graph/infer", *binary(FLOATS, "pixels", "FP32")),
    "no picture": ("/predict?model=linear", IMAGE[:60], {"content_type": "image/png"}),
    "no option": ("/predict?model=linear&topk=2", IMAGE, {}),
    "no model": ("/predict?model=none", IMAGE, {}),
    "another type": ("/predict?model=linear", IMAGE, {"content_type": "image/jpeg"}),
    "no picture in a tensor": ("/v2/models/linear/infer", tensor("image", "BYTES", [1], [b64(IMAGE[:60])]), {}),
    "another shape": ("/v2/models/linear/infer", tensor("image", "UINT8", [1, 1, 1, 3], [1, 2, 3]), {}),
    "another output": (
        "/v2/models/linear/infer",
        tensor("image", "UINT8", [1, SIZE, SIZE, 3], NUMBERS, outputs=[{"name": "none"}]),
        {},
    ),
    "no model of tensors": ("/v2/models/none/infer", b"{}", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_short_way_says_what_the_long_one_says(models: Path, name: str) -> None:
    path, body, headers = REQUESTS[name]
    async with site(settings_of(models=models)) as server:
        short = await server.answer(path, body, **headers)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        long = await server.http.post(path, content=body, headers={"content-type": "", "accept-encoding": "", **named})
        assert short.status == long.status_code
        assert {key: value for key, value in short.headers.items() if key not in VARIES} == {
            key: value for key, value in long.headers.items() if key not in VARIES
        }
        said, want = (
            text.replace(headers["x-request-id"].encode(), b"ID")
            for text, headers in ((short.body, short.headers), (long.content, long.headers))
        )
        assert said == want
        statistics: Json = (await server.http.get("/v2/models/stats")).json()
        metrics = (await server.http.get("/metrics")).text
    route = (
        path.partition("?")[0].replace("linear", "{model}").replace("graph", "{model}").replace("/1/", "/{version}/")
    )
    if short.status == 200:
        assert f'focalserve_requests_total{{code="200",route="{route}"}} 2.0' in metrics
    else:
        assert f'code="{short.status}",route="{route.replace("/none/", "/{model}/")}"' in metrics
    if path.startswith("/v2/models/") and "none" not in path:
        (counts,) = (one for one in statistics["model_stats"] if one["name"] == path.split("/")[3])
        kind = "success" if short.status == 200 else "fail"
        assert counts["inference_stats"][kind]["count"] == 2


@pytest.mark.parametrize("image", [IMAGE, jpeg(noise(300, 300)), IMAGE[:60]], ids=["small", "large", "broken"])
async def test_a_picture_for_threads_that_are_busy_goes_the_short_way(models: Path, image: bytes) -> None:
    files = [("file", (f"{n}", IMAGE, "image/png")) for n in range(100)]
    async with site(settings_of(models=models, runs=2)) as server:
        served = server.state.catalog.get("slow")
        assert server.ask("/predict?model=slow", image, Reader()) is None
        busy = asyncio.ensure_future(server.http.post("/loss?model=slow", files=files, data={"label": ["a"] * 100}))
        while served.batcher.load < 50:
            await asyncio.sleep(0.001)
        short = await server.answer("/predict?model=slow", image)
        assert server.ask("/predict?model=slow", png(noise(400, 400)), Reader()) is None, "takes long to decode"
        assert (await busy).json()["loss"]["count"] == 100
        long = await server.http.post("/predict?model=slow", content=image, headers={"content-type": ""})
        assert short.status == long.status_code == (422 if len(image) == 60 else 200)
        said, want = json.loads(short.body), long.json()
        own = {"request_id": "", "instance": ""}
        assert {**said, **own} == {**want, **own}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predict?model=slow", IMAGE, {}),
        ("/predict?model=linear", png(noise(200, 200)), {}),
        ("/predict", json.dumps({"inputs": [{"image": b64(IMAGE)}], "model": "linear"}).encode(), {}),
        ("/predict?model=linear", gzip.compress(IMAGE), {"content_encoding": "gzip"}),
        ("/loss?model=linear&label=a", IMAGE, {}),
        ("/v2/models/linear/infer", tensor("image", "BYTES", [2], [b64(IMAGE)] * 2), {}),
        ("/v2/models/focal_loss/infer", b"{}", {}),
        ("/v2/repository/index", b"", {}),
        ("/v2/models/linear/infer", tensor("image", "BYTES", [1], [b64(IMAGE)]).ljust(WHOLE + 1), {}),
    ],
)
async def test_what_takes_longer_goes_the_long_way(
    models: Path, path: str, body: bytes, headers: dict[str, str]
) -> None:
    async with site(settings_of(models=models, runs=1)) as server:
        reader = Reader()
        assert server.ask(path, body, reader, **headers) is None
        await asyncio.sleep(0.05)
        assert reader.answer is None and reader.error is None


async def test_a_body_over_the_limit_goes_the_long_way(models: Path) -> None:
    async with site(settings_of(models=models, max_body_bytes=len(IMAGE) - 1)) as server:
        assert server.ask("/predict?model=linear", IMAGE, Reader()) is None


async def test_what_comes_in_one_turn_is_one_batch_and_each_gets_its_own_answer(models: Path) -> None:
    async with site(settings_of(models=models)) as server:
        alone = [await server.answer("/predict?model=linear", png_of(one)) for one in PICTURES]
        readers = [Reader() for _ in PICTURES]
        for one, reader in zip(PICTURES, readers, strict=True):
            assert server.ask("/predict?model=linear", png_of(one), reader) is not None
            assert reader.answer is None
        await asyncio.gather(*(reader.over.wait() for reader in readers))
        answers = [json.loads(reader.body)["predictions"][0] for reader in readers]
        for answer, single in zip(answers, alone, strict=True):
            want = json.loads(single.body)["predictions"][0]
            assert answer["label"] == want["label"]
            assert answer["probabilities"] == pytest.approx(want["probabilities"], rel=1e-5)
        assert len({answer["score"] for answer in answers}) == len(PICTURES)
        assert set(server.state.catalog.get("linear").observer.sums.by_size) == {1, len(PICTURES)}


async def test_a_full_queue_refuses_the_rest_of_the_turn(models: Path) -> None:
    async with site(settings_of(models=models, queue_size=2)) as server:
        readers = [Reader() for _ in range(5)]
        for reader in readers:
            assert server.ask("/predict?model=linear", IMAGE, reader) is not None
        assert [reader.status for reader in readers[2:]] == [429] * 3
        assert "retry-after" in readers[2].headers
        await asyncio.gather(*(reader.over.wait() for reader in readers))
        assert [reader.status for reader in readers[:2]] == [200, 200]


async def test_a_client_that_has_left_is_not_run_and_counted(models: Path) -> None:
    async with site(settings_of(models=models)) as server:
        left, stays = Reader(), Reader()
        request = server.ask("/predict?model=linear", IMAGE, left)
        assert request is not None and server.ask("/predict?model=linear", IMAGE, stays) is not None
        request.disconnected = True
        await asyncio.gather(left.over.wait(), stays.over.wait())
        assert left.answer is None and left.error is None and stays.status == 200
        metrics = (await server.http.get("/metrics")).text
    assert "focalserve_cancelled_requests_total 1.0" in metrics
    assert 'focalserve_dropped_images_total{model="linear"} 1.0' in metrics


async def test_a_client_that_cannot_be_answered_costs_its_mates_nothing(models: Path) -> None:
    async with site(settings_of(models=models)) as server:
        readers = [Reader(), Reader(breaks=True), Reader()]
        for reader in readers:
            assert server.ask("/predict?model=linear", IMAGE, reader) is not None
        await asyncio.gather(*(reader.over.wait() for reader in readers))
        assert isinstance(readers[1].error, ConnectionError)
        assert readers[0].status == readers[2].status == 200


async def test_numbers_that_are_not_finite_are_an_error_of_their_own_picture(tmp_path: Path) -> None:
    write_linear(tmp_path, ["a", "b"], divide=True)
    black = PICTURES[1].copy()
    black[0, 0] = 0
    async with site(settings_of(models=tmp_path)) as server:
        good, bad = Reader(), Reader()
        for pixels, reader in ((PICTURES[0], good), (black, bad)):
            assert server.ask("/predict", png_of(pixels), reader) is not None
        await asyncio.gather(good.over.wait(), bad.over.wait())
        assert (good.status, bad.status) == (200, 500)


async def test_a_long_answer_is_compressed_in_a_thread(tmp_path: Path) -> None:
    write_linear(tmp_path, [f"class {k} of many, with a long name {'x' * 60}" for k in range(2000)])
    async with site(settings_of(models=tmp_path)) as server:
        plain = await server.answer("/predict?top_k=1000", IMAGE)
        packed = await server.answer("/predict?top_k=1000", IMAGE, accept_encoding="gzip")
        assert len(plain.body) > 64 * 1024 and packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body


async def test_who_waits_when_the_service_stops_is_told(models: Path) -> None:
    async with site(settings_of(models=models)) as server:
        reader = Reader()
        assert server.ask("/predict?model=linear", IMAGE, reader) is not None
        server.state.catalog.get("linear").batcher.stop()
        assert reader.status == 503
        late = await server.answer("/predict?model=linear", IMAGE)
        assert late.status == 503
