"""What this process reaches without HTTP: the limits that `focalserve bench` measures a service against."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from models.image import load_input
from service.engine import Engine
from service.predictions import answer_rows, predict_items
from service.settings import usable_cores

_BATCHES = (1, 8, 32)


def alone(engine: Engine, body: bytes) -> float:
    """Seconds for one image in this process: decode, resize, run, answer; the median of 30."""
    card = engine.card

    def once() -> None:
        logits = engine.run(load_input(body, card.input).pixels[None])
        to_json(predict_items(card, answer_rows(card, logits), [None], 5))

    return median_seconds(once, 30)


def limit(engine: Engine, body: bytes, seconds: float) -> float:
    """Images per second of the same stages in process, no HTTP: decoded on all cores, run in the best batch."""
    card = engine.card
    best = 0.0
    with ThreadPoolExecutor(usable_cores()) as pool:
        for size in _BATCHES:
            until = time.perf_counter() + seconds / len(_BATCHES)
            start, done = time.perf_counter(), 0
            pending = [pool.submit(load_input, body, card.input) for _ in range(size)]
            while time.perf_counter() < until:
                ready = [one.result().pixels for one in pending]
                pending = [pool.submit(load_input, body, card.input) for _ in range(size)]
                to_json(predict_items(card, answer_rows(card, engine.run(np.stack(ready))), [None] * size, 5))
                done += size
            best = max(best, done / (time.perf_counter() - start))
    return best


def tensor_bodies(pixels: NDArray[np.uint8]) -> dict[str, tuple[bytes, dict[str, str]]]:
    """One image as a tensor of the Open Inference Protocol: `json` and `bin`, each a body with its headers."""
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    text = json.dumps({"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}).encode()
    length = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return {"json": (text, {"Content-Type": "application/json"}), "bin": (head + pixels.tobytes(), length)}


def tensor_limit(engine: Engine, kind: str, body: bytes, headers: dict[str, str], seconds: float) -> float:
    """Tensors per second in process: parse, run in the best batch, answer as JSON."""
    card = engine.card
    shape = (card.input.height, card.input.width, 3)
    start = int(headers.get("Inference-Header-Content-Length", 0))

    def parse() -> NDArray[np.uint8]:
        if kind == "bin":
            return np.frombuffer(body, np.uint8, offset=start).reshape(shape)
        return np.asarray(from_json(body)["inputs"][0]["data"], np.uint8).reshape(shape)

    def batch(size: int) -> None:
        logits = engine.run(np.stack([parse() for _ in range(size)]))
        to_json([{"name": "logits", "data": row.tolist()} for row in logits])

    return max(rate(partial(batch, size), seconds / len(_BATCHES)) * size for size in _BATCHES)


def closed_form(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Softmax focal loss with gamma 2, (N,), as one writes it down in numpy; logits (N, K), labels (N,)."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_p = z[np.arange(len(z)), labels] - np.log(np.exp(z).sum(axis=1))
    return np.asarray(-((1.0 - np.exp(log_p)) ** 2) * log_p)


def rate(run: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    run()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        done += 1
    return done / (time.perf_counter() - start)


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Median seconds of a call."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))
