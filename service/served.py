"""What answers under one name and version: a session with its batcher, and the card where there is one."""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from models.card import ModelCard
from models.fit import Fitted
from models.image import is_light
from service.batch import Run
from service.batcher import Batcher
from service.decoding import Encoded
from service.detector import DetectorEngine
from service.engine import Engine
from service.items import Block, Look, Part, kind_of, measure, run_blocks, run_part, run_pictures, stack, weigh
from service.metrics import Metrics, ModelObserver
from service.predictions import RowAnswer, answer_rows, work_out
from service.runtime import DeviceReport, Runtime
from service.settings import Settings, usable_cores
from service.ways import Beside

Bundled = Engine | DetectorEngine
"""What a bundle is opened as."""
_QUICK_PART, _QUICK_THREADS = 64, 2
"""Pictures of a part of a quick net, and threads that run parts at most: more would only wait for the interpreter."""


@dataclass(frozen=True)
class Lanes:
    """Runs of a bundle side by side.

    Attributes:
        engine: of the bundle, on one thread.
        count: runs at a time.
        max_batch: images in one of them at most.
    """

    engine: Bundled
    count: int
    max_batch: int


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        name: of the model.
        version: of the model.
        runtimes: its sessions, the one that runs on all threads first.
        card: None for a graph that was not exported here.
        batcher: takes what `service.items` describes and answers a `Row`, of a `Part` a list of rows, of a `Block` a
            tuple of arrays.
        executor: the batcher's threads.
        observer: its metrics.
        part: how many pictures of a request its threads decode and run in one go; 0: they take decoded ones alone.
        quick: whether it runs in the event loop.
        lanes: runs side by side, where there is one for each core at least; 0: it has no such way.
        how: batches and runs at a time, in words.
    """

    name: str
    version: str
    runtimes: tuple[Runtime, ...]
    card: ModelCard | None
    batcher: Batcher
    executor: ThreadPoolExecutor
    observer: ModelObserver
    part: int
    quick: bool
    lanes: int
    how: str

    @property
    def runtime(self) -> Runtime:
        """The session that runs on all threads."""
        return self.runtimes[0]

    @property
    def device(self) -> DeviceReport:
        """What runs it."""
        return self.runtime.device

    def decodes(self, images: Sequence[Encoded]) -> bool:
        """Whether the threads that run these pictures should decode them: all cores are at work with them then.

        With fewer the cores that are free decode them sooner; and nobody should wait for one that takes long to decode.
        """
        return 0 < self.lanes <= self.batcher.load + len(images) and all(
            isinstance(image, bytes) and is_light(image) for image in images
        )

    def shutdown(self, wait: bool) -> None:
        """Ends the batcher's threads."""
        self.executor.shutdown(wait=wait)


def serve_bundle(
    engine: Bundled, max_batch: int, lanes: Lanes | None, settings: Settings, metrics: Metrics
) -> Served:  # fmt: skip
    """A bundle's model; needs a running event loop.

    Args:
        engine: of the bundle.
        max_batch: images in one run of it at most.
        lanes: another way to run it, several runs at a time.
        settings: of the service.
        metrics: of the service.
    """
    card = engine.card
    observer = metrics.observer(card.name, card.version)

    def classify(engine: Engine, items: list[Any]) -> Sequence[Any]:
        def infer(fitted: list[Fitted]) -> list[RowAnswer | Exception]:
            return answer_rows(card, engine.run(stack(fitted)))

        def predict(fitted: list[Fitted]) -> list[RowAnswer | Exception]:
            rows = infer(fitted)
            work_out(rows)
            return rows

        if isinstance(items[0], Part):
            return [run_part(part, card, observer, infer) for part in items]
        return run_pictures(items, card, observer, predict)

    def detect(engine: DetectorEngine, items: list[Look]) -> Sequence[Any]:
        pictures = [item.picture for item in items]
        return run_pictures(pictures, card, observer, lambda fitted: engine.run(fitted, items[0].wish))

    def run_of(engine: Bundled) -> Run:
        return partial(detect, engine) if isinstance(engine, DetectorEngine) else partial(classify, engine)

    run = run_of(engine)
    if engine.quick:
        threads = max(1, min(_QUICK_THREADS, usable_cores() // settings.processes))
        beside = Beside(run, threads, _QUICK_PART)
        ways = _Ways(run, max_batch, max_batch, beside, _QUICK_PART)
    elif lanes is not None:
        beside = Beside(run_of(lanes.engine), lanes.count, lanes.max_batch)
        ways = _Ways(run, max_batch, 0, beside, lanes=lanes.count if lanes.count >= usable_cores() else 0)
    else:
        ways = _Ways(run, max_batch, 0)
    runtimes = (engine.runtime,) if lanes is None else (engine.runtime, lanes.engine.runtime)
    return _start(card.name, card.version, runtimes, card, ways, settings, observer)


def serve_graph(name: str, version: str, runtime: Runtime, inline: int, settings: Settings, metrics: Metrics) -> Served:
    """A graph without a card, at most `inline` rows at once in the event loop, which must run."""
    observer = metrics.observer(name, version)
    max_batch = inline or (settings.max_batch if runtime.batchable else 1)

    def run(items: list[Block]) -> Sequence[Any]:
        start = perf_counter()
        found = run_blocks(runtime, items)
        observer.inferred(perf_counter() - start)
        return found

    return _start(name, version, (runtime,), None, _Ways(run, max_batch, inline), settings, observer)


@dataclass(frozen=True)
class _Ways:
    """How a model runs, as `Batcher` and `Served` have it."""

    run: Run
    max_batch: int
    inline: int
    beside: Beside | None = None
    part: int = 0
    lanes: int = 0

    def __str__(self) -> str:
        where = " in the event loop" if self.inline else ""
        return f"batches of {self.max_batch}{where}{self._other}"

    @property
    def _other(self) -> str:
        if self.beside is None:
            return ""
        count, most = self.beside.count, self.beside.max_batch
        return f", or {count} runs of {most} side by side" if count > 1 else f", or of {most} in a thread"


def _start(
    name: str,
    version: str,
    runtimes: tuple[Runtime, ...],
    card: ModelCard | None,
    ways: _Ways,
    settings: Settings,
    observer: ModelObserver,
) -> Served:
    count = 1 if ways.beside is None else ways.beside.count
    executor = ThreadPoolExecutor(count, thread_name_prefix=f"infer-{name}")
    batcher = Batcher(
        ways.run,
        executor,
        inline=ways.inline,
        beside=ways.beside,
        max_batch=ways.max_batch,
        max_wait=settings.max_wait_ms / 1e3,
        capacity=settings.queue_size,
        observer=observer,
        weigh=weigh,
        kind=kind_of,
        measure=measure,
    )
    batcher.start()
    observer.watch(_depth_of(batcher))
    how = ways.part, ways.inline > 0, ways.lanes, str(ways)
    return Served(name, version, runtimes, card, batcher, executor, observer, *how)


def _depth_of(batcher: Batcher) -> Callable[[], int]:
    """Reads the weight that waits, and keeps no batcher, and so no net, that has been unloaded."""
    seen = weakref.ref(batcher)

    def depth() -> int:
        there = seen()
        return 0 if there is None else there.depth

    return depth
