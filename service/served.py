"""What answers under one name and version: a session with its batcher, and the card where there is one."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.fit import Fitted, Pixels
from service.batcher import Batcher
from service.decoding import Decoded
from service.detector import DetectorEngine, Found, Raw, Wish
from service.engine import Engine
from service.metrics import Metrics, ModelObserver
from service.predictions import RowAnswer, answer_rows
from service.runtime import DeviceReport, Runtime
from service.settings import Settings

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of tensors that one request sent, to be run as they are.

    Attributes:
        arrays: one per input of the model, in its order; first axis = rows.
        rows: how many.
    """

    arrays: tuple[NDArray[Any], ...]
    rows: int


Picture = Decoded | Pixels
"""What a classifier's batcher takes: a picture that was decoded, here or by the client."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a detector's batcher takes.

    Attributes:
        picture: decoded.
        wish: what is wanted of it.
    """

    picture: Picture
    wish: Wish


Item = Picture | Look | Block


class Row(NamedTuple, Generic[Answer]):
    """What a bundle's batch says of one picture.

    Attributes:
        answer: of the model: `RowAnswer` of a classifier, `Found` or `Raw` of a detector.
        decoded: seconds that decoding the picture took; 0 where pixels came.
        inferred: seconds that the run of its batch took.
    """

    answer: Answer
    decoded: float
    inferred: float


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        name: of the model.
        version: of the model.
        runtime: its session.
        card: None for a graph that was not exported here.
        batcher: takes a `Picture` (a classifier) or a `Look` (a detector) and answers a `Row`, or takes a `Block`.
        executor: the batcher's one thread.
        observer: its metrics.
    """

    name: str
    version: str
    runtime: Runtime
    card: ModelCard | None
    batcher: Batcher
    executor: ThreadPoolExecutor
    observer: ModelObserver

    @property
    def device(self) -> DeviceReport:
        """What runs it."""
        return self.runtime.device

    def shutdown(self, wait: bool) -> None:
        """Ends the batcher's thread."""
        self.executor.shutdown(wait=wait)


def serve_bundle(engine: Engine | DetectorEngine, max_batch: int, settings: Settings, metrics: Metrics) -> Served:
    """A bundle's model in batches of at most `max_batch` images; needs a running event loop."""
    card = engine.card
    observer = metrics.observer(card.name, card.version)

    def classify(engine: Engine, items: list[Picture]) -> Sequence[Row[RowAnswer] | Exception]:
        return _run_pictures(items, observer, lambda fitted: answer_rows(card, engine.run(_stack(fitted))))

    def detect(engine: DetectorEngine, items: list[Look]) -> Sequence[Row[Raw | Found] | Exception]:
        pictures = [item.picture for item in items]
        return _run_pictures(pictures, observer, lambda fitted: engine.run(fitted, items[0].wish))

    run = partial(detect, engine) if isinstance(engine, DetectorEngine) else partial(classify, engine)
    return _start(
        card.name,
        card.version,
        engine.runtime,
        card,
        run,
        max_batch,
        max_batch if engine.quick else 0,
        settings,
        observer,
    )


def serve_graph(name: str, version: str, runtime: Runtime, inline: int, settings: Settings, metrics: Metrics) -> Served:
    """A graph without a card, at most `inline` rows at once in the event loop, which must run."""
    observer = metrics.observer(name, version)
    max_batch = inline or (settings.max_batch if runtime.batchable else 1)

    def run(items: list[Block]) -> Sequence[Any]:
        start = perf_counter()
        found = _run_blocks(runtime, items)
        observer.inferred(perf_counter() - start)
        return found

    return _start(name, version, runtime, None, run, max_batch, inline, settings, observer)


def _start(
    name: str,
    version: str,
    runtime: Runtime,
    card: ModelCard | None,
    run: Any,
    max_batch: int,
    inline: int,
    settings: Settings,
    observer: ModelObserver,
) -> Served:
    executor = ThreadPoolExecutor(1, thread_name_prefix=f"infer-{name}")
    batcher = Batcher(
        run,
        executor,
        inline=inline,
        max_batch=max_batch,
        max_wait=settings.max_wait_ms / 1e3,
        capacity=settings.queue_size,
        observer=observer,
        weigh=_weigh,
        kind=_kind,
    )
    batcher.start()
    observer.watch(_depth_of(batcher))
    return Served(name, version, runtime, card, batcher, executor, observer)


def _depth_of(batcher: Batcher) -> Callable[[], int]:
    """Reads the weight that waits, and keeps no batcher, and so no net, that has been unloaded."""
    seen = weakref.ref(batcher)

    def depth() -> int:
        there = seen()
        return 0 if there is None else there.depth

    return depth


def _weigh(item: Item) -> int:
    return item.rows if isinstance(item, Block) else 1


def _kind(item: Item) -> Any:
    if isinstance(item, Look):
        return item.wish
    return tuple(array.shape[1:] for array in item.arrays) if isinstance(item, Block) else None


def _run_pictures(
    items: Sequence[Picture], observer: ModelObserver, infer: Callable[[list[Fitted]], Sequence[Answer | Exception]]
) -> Sequence[Row[Answer] | Exception]:
    """Pictures to a row or an error each."""
    decoded = [_as_they_are(item) if isinstance(item, np.ndarray) else item for item in items]
    start = perf_counter()
    answers = infer([one.fitted for one in decoded])
    inferred = perf_counter() - start
    observer.inferred(inferred)
    return [
        answer if isinstance(answer, Exception) else Row(answer, one.seconds, inferred)
        for answer, one in zip(answers, decoded, strict=True)
    ]


def _stack(pictures: Sequence[Fitted]) -> Pixels:
    return pictures[0].pixels[None] if len(pictures) == 1 else np.stack([one.pixels for one in pictures])


def _as_they_are(pixels: Pixels) -> Decoded:
    return Decoded(Fitted(pixels, (1.0, 1.0), (0.0, 0.0), (pixels.shape[1], pixels.shape[0])), 0.0)


def _run_blocks(runtime: Runtime, blocks: Sequence[Block]) -> Sequence[Any]:
    """Blocks of one kind to the outputs of each, a tuple of arrays in the graph's order."""
    names = [spec.name for spec in runtime.outputs]
    columns = zip(*(block.arrays for block in blocks), strict=True)
    feeds = {
        spec.name: column[0] if len(blocks) == 1 else np.concatenate(column)
        for spec, column in zip(runtime.inputs, columns, strict=True)
    }
    outputs = runtime.run(feeds, names)
    if len(blocks) == 1:
        return [tuple(outputs)]
    rows = sum(block.rows for block in blocks)
    if any(output.shape[:1] != (rows,) for output in outputs):
        return [_run_blocks(runtime, [block])[0] for block in blocks]
    ends = list(itertools.accumulate([block.rows for block in blocks], initial=0))
    return [tuple([output[a:b] for output in outputs]) for a, b in itertools.pairwise(ends)]
