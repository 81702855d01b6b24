"""What the tests of the service share: a running app and its client, problem documents, and hand-made bundles."""

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.bundle import METADATA_KEY, write_bundle
from models.card import ClassFacts, Golden, ImageInput, ModelCard, TaskName
from models.fit import Pixels
from models.image import encode_png
from service.app import create_app
from service.settings import Settings

SIZE = 8
Json = dict[str, Any]


def settings_of(**values: Any) -> Settings:
    """Settings; what is left out has its default."""
    return Settings(**values)


@asynccontextmanager
async def running(settings: Settings, wait: bool = True) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the app with its lifespan running; by default once /readyz says 200."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        while wait:
            ready = await http.get("/readyz")
            if ready.status_code == 200:
                break
            assert "being loaded" in ready.json()["detail"], ready.text
            await asyncio.sleep(0.01)
        yield http


def pictures(count: int, size: int = 28, seed: int = 0) -> Pixels:
    """(count, size, size, 3) uint8, blocks of random colour."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    side = -(-size // 4)
    return np.ascontiguousarray(np.kron(small, np.ones((1, side, side, 1), np.uint8))[:, :size, :size])


def png_of(pixels: Pixels) -> bytes:
    """A PNG file."""
    return encode_png(pixels)


def encoded(pixels: Pixels, format: str, **options: Any) -> bytes:
    """A file of any format that Pillow writes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def b64(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode()


def problem_of(answer: httpx.Response, status: int, code: str) -> Json:
    """The problem document of an answer, after checking its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) <= 4096
    body: Json = answer.json()
    assert body["type"] == f"urn:focalserve:problem:{code}", body
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert {"title", "detail", "instance"} <= set(body)
    for word in ("Traceback", "site-packages", ".py", "/tmp", "/home", "onnxruntime"):
        assert word not in answer.text
    return body


def linear_weights(outputs: int, size: int = SIZE, seed: int = 1) -> NDArray[np.float32]:
    """(size * size * 3, outputs) float32 of a linear model on pixels in 0-255."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(size * size * 3, outputs)) / 255.0).astype(np.float32)


def linear_logits(pixels: Pixels, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, K) logits of the linear model."""
    return np.asarray(pixels.reshape(len(pixels), -1).astype(np.float64) @ weights.astype(np.float64))


def linear_card(
    labels: Sequence[str], weights: NDArray[np.float32], size: int = SIZE, task: TaskName = "multiclass", **facts: Any
) -> ModelCard:
    """The card of the linear model."""
    golden = pictures(1, size)
    return ModelCard(
        **{
            "name": "linear",
            "version": "1",
            "created": "2026-01-01",
            "task": task,
            "labels": list(labels),
            "input": ImageInput(height=size, width=size),
            "classes": [ClassFacts(label=label, train_count=1, prior=0.5) for label in labels],
            "golden": Golden(image_png=b64(png_of(golden[0])), logits=linear_logits(golden, weights)[0].tolist()),
            **facts,
        }
    )


def linear_graph(
    weights: NDArray[np.float32],
    card: ModelCard | None,
    *,
    size: int = SIZE,
    batch: int | str = "N",
    name: str = "image",
    kind: int = TensorProto.UINT8,
    output: str = "logits",
    divide: bool = False,
    rounds: int = 0,
) -> bytes:
    """A serialised graph: flatten, multiply; with `divide` the rows are divided by their first pixel (0 gives NaN).

    `rounds` of multiplying with the identity first only take time.
    """
    nodes = [
        helper.make_node("Cast", [name], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat" if rounds == 0 else "flat_0"], axis=1),
        *(
            helper.make_node("MatMul", [f"flat_{k}", "eye"], ["flat" if k == rounds - 1 else f"flat_{k + 1}"])
            for k in range(rounds)
        ),
        helper.make_node("MatMul", ["flat", "weights"], ["product" if divide else output]),
    ]
    tensors = [numpy_helper.from_array(weights, "weights")]
    if rounds:
        tensors.append(numpy_helper.from_array(np.eye(len(weights), dtype=np.float32), "eye"))
    if divide:
        nodes += [
            helper.make_node("Gather", ["flat", "first"], ["one"], axis=1),
            helper.make_node("Div", ["one", "one"], ["unit"]),
            helper.make_node("Mul", ["product", "unit"], [output]),
        ]
        tensors.append(numpy_helper.from_array(np.zeros(1, np.int64), "first"))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, kind, [batch, size, size, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, weights.shape[1]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if card is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: card.model_dump_json()})
    return bytes(model.SerializeToString())


def write_linear(
    root: Path, labels: Sequence[str] = ("a", "b", "c"), divide: bool = False, rounds: int = 0, **facts: Any
) -> Path:
    """A bundle of the linear model below `root`; its folder. Some 1000 rounds make it a net that is not quick."""
    task: TaskName = facts.pop("task", "multiclass")
    weights = linear_weights(1 if task == "binary" else len(labels))
    card = linear_card(labels, weights, task=task, **facts)
    return write_bundle(root / card.name, card, linear_graph(weights, card, divide=divide, rounds=rounds))
