"""What this process reaches without HTTP: the limits that `focalserve bench` measures a service against."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic_core import to_json

from models.card import ImageInput
from models.fit import Fitted
from models.image import load_input
from service.box_answers import box_loss_answer, box_options, detect_items, read_given, score_picture
from service.detector import RAW, DetectorEngine, Found, Raw
from service.engine import Engine
from service.predictions import answer_rows, predict_items
from service.schemas import LossOptions
from service.scoring import Given, score_labels
from service.served import Bundled
from service.settings import usable_cores

Work = Callable[[Sequence[Fitted]], object]
Way = Callable[[float], float]
_BATCHES = (1, 8, 32)


def run_batch(engine: Bundled, pictures: Sequence[Fitted]) -> Sequence[Any]:
    """What the graph says of pictures: rows of logits, or each one's detections."""
    if isinstance(engine, DetectorEngine):
        return engine.run(pictures, engine.usual)
    return list(engine.run(np.stack([one.pixels for one in pictures])))


def answer_json(engine: Bundled, results: Sequence[Any]) -> bytes:
    """The answer of /predict to what the graph said."""
    card, ids = engine.card, [None] * len(results)
    if isinstance(engine, DetectorEngine):
        return to_json(detect_items(card, results, ids))
    return orjson.dumps(predict_items(card, answer_rows(card, np.asarray(results)), ids, 5))


def predicting(engine: Bundled) -> Work:
    """What /predict does with pictures once they are decoded."""
    return lambda pictures: answer_json(engine, run_batch(engine, pictures))


def answering_tensors(engine: Bundled) -> Work:
    """What /v2 does with pictures that came as tensors: run, JSON of the outputs."""
    if isinstance(engine, DetectorEngine):
        return lambda pictures: to_json([_arrays(one) for one in run_batch(engine, pictures)])
    return lambda pictures: orjson.dumps([row.tolist() for row in run_batch(engine, pictures)])


def scoring_boxes(engine: DetectorEngine, boxes: Sequence[dict[str, Any]]) -> Work:
    """What /loss does with pictures that have the same given boxes: run, score, JSON."""
    card, asked = engine.card, LossOptions.model_validate({})
    given, options = read_given(card, [boxes], [None])[0], box_options(card, asked)

    def work(pictures: Sequence[Fitted]) -> bytes:
        scores = [score_picture(card, _sound(one), given, options) for one in engine.run(pictures, RAW)]
        answer = box_loss_answer(card, [given] * len(scores), scores, options, asked.max_missing, lambda *_: None)
        return to_json(answer, inf_nan_mode="null")

    return work


def _sound(found: object) -> Raw:
    """What a detector said, or its failure raised."""
    if isinstance(found, Exception):
        raise found
    if not isinstance(found, Raw):
        raise TypeError(f"{type(found).__name__} instead of raw outputs")
    return found


def alone(spec: ImageInput, work: Work, body: bytes) -> float:
    """Seconds for one image in this process: decode, resize, work; the median of 30."""
    return median_seconds(lambda: work([load_input(body, spec)]), 30)


def limit(spec: ImageInput, work: Work, narrow: Work, body: bytes, seconds: float) -> float:
    """Images per second of the same stages in process, no HTTP.

    The best batch of the best way (best_rate): one thread that does stage after stage, all threads with batches of
    their own, or batches of one thread that the others decode ahead.

    Args:
        spec: of the input.
        work: what is done with decoded pictures, on all cores where the model uses them.
        narrow: the same on one, where threads have batches of their own.
        body: the encoded image.
        seconds: of the measurement that counts.
    """
    load = partial(load_input, body, spec)
    with ThreadPoolExecutor(usable_cores()) as pool:
        ahead = [partial(_rate_ahead, pool, load, work, size) for size in _BATCHES]
        return best_rate([*_own_batches(pool, load, work, narrow), *ahead], seconds)


def best_rate(ways: Sequence[Way], seconds: float) -> float:
    """What the best of several ways reaches, measured anew: of many short measurements the best one had luck.

    Args:
        ways: each says what it reaches in some seconds.
        seconds: of the measurement that counts; finding the best takes as long again.
    """
    best = max(ways, key=lambda way: way(seconds / len(ways)))
    return best(seconds)


def _own_batches(pool: ThreadPoolExecutor, load: Callable[[], Fitted], work: Work, narrow: Work) -> list[Way]:
    """One thread that does stage after stage, or each of the pool's; in batches of every size."""

    def one(size: int, seconds: float) -> float:
        return rate(lambda: work([load() for _ in range(size)]), seconds) * size

    def each(size: int, seconds: float) -> float:
        def run(_: int) -> float:
            return rate(lambda: narrow([load() for _ in range(size)]), seconds) * size

        return sum(pool.map(run, range(usable_cores())))

    return [partial(way, size) for way in (one, each) for size in _BATCHES]


def _rate_ahead(
    pool: ThreadPoolExecutor, load: Callable[[], Fitted], work: Work, size: int, seconds: float
) -> float:  # fmt: skip
    """Images per second where the next batch is decoded while one is worked on."""
    start, done = time.perf_counter(), 0
    pending = [pool.submit(load) for _ in range(size)]
    while time.perf_counter() - start < seconds:
        ready = [one.result() for one in pending]
        pending = [pool.submit(load) for _ in range(size)]
        work(ready)
        done += size
    return done / (time.perf_counter() - start)


def scoring_limit(engine: Engine, narrow: Engine, label: str, body: bytes, seconds: float) -> float:
    """Labelled images per second of /loss in process, no HTTP: decode, run, score, JSON of the whole answer.

    Each thread decodes and runs batches of its own; the best of one thread and of all, and of the batches.
    """
    asked = LossOptions.model_validate({})

    def rows(engine: Engine, size: int) -> Sequence[NDArray[np.float32]]:
        return run_batch(engine, [load_input(body, engine.card.input) for _ in range(size)])

    def reached(threads: int, size: int, seconds: float) -> float:
        with ThreadPoolExecutor(threads) as pool:
            spread = map if threads == 1 else pool.map
            run = partial(rows, engine if threads == 1 else narrow)
            start = time.perf_counter()
            given: list[Given] = []
            while time.perf_counter() - start < seconds:
                given += [Given(row, label, "x") for part in spread(run, [size] * threads) for row in part]
            orjson.dumps(score_labels(engine.card, given, asked))
            return len(given) / (time.perf_counter() - start)

    counts = sorted({1, usable_cores()})
    return best_rate([partial(reached, threads, size) for threads, size in product(counts, _BATCHES)], seconds)


def tensor_bodies(pixels: NDArray[np.uint8]) -> dict[str, tuple[bytes, dict[str, str]]]:
    """One image as a tensor of the Open Inference Protocol: `json` and `bin`, each a body with its headers."""
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    text = json.dumps({"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}).encode()
    length = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return {"json": (text, {"Content-Type": "application/json"}), "bin": (head + pixels.tobytes(), length)}


def tensor_limit(
    spec: ImageInput, work: Work, narrow: Work, kind: str, body: bytes, headers: dict[str, str], seconds: float
) -> float:
    """Tensors per second in process, parse and work, as `limit`: in one thread, or all with batches of their own."""
    start = int(headers.get("Inference-Header-Content-Length", 0))

    def parse() -> Fitted:
        values = (
            np.frombuffer(body, np.uint8, offset=start) if kind == "bin" else orjson.loads(body)["inputs"][0]["data"]
        )
        pixels = np.asarray(values, np.uint8).reshape(spec.height, spec.width, 3)
        return Fitted(pixels, (1.0, 1.0), (0.0, 0.0), (spec.width, spec.height))

    with ThreadPoolExecutor(usable_cores()) as pool:
        return best_rate(_own_batches(pool, parse, work, narrow), seconds)


def _arrays(found: Found) -> tuple[Any, Any, Any]:
    detections = found.detections
    return detections.xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist()


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
