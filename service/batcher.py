"""Concurrent callers to batches. Knows nothing of images or models: items in, results out, in order.

It never waits for company while it is idle (unless `max_wait` says so): what has queued while the last batch ran is the
next one. A failing batch fails only its own callers, a failing item only itself; a caller that has left is dropped
before its item is run.

Batches run in threads or in the event loop, as `service.ways` says: what came in one turn of the loop runs in the next.
There is no task: a turn follows what came, and what a thread has done.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

from starlette.requests import ClientDisconnect

from service.batch import THREADED, Answer, BatchObserver, Measure, Run, Timed, Waiting, as_a_whole, never
from service.errors import NotReady, Overloaded
from service.ways import Beside, Way, Ways, Work, run_batch, send_batch


class Batcher:
    """Runs items of many callers in batches.

    Args:
        run: called in `executor`, once at a time, or in the event loop meanwhile.
        executor: one thread of its own, or `beside.count`.
        inline: weight of a batch that runs in the event loop, at most; it must not take long. 0 runs none there.
        beside: another way to run, once as many items as it runs at a time are there; None: there is none.
        max_batch: weight of one batch at most; a single heavier item runs alone.
        max_wait: seconds that the first item of a batch waits for others while the device is idle; 0 does not wait.
        capacity: weight that may wait.
        observer: is told of every batch.
        weigh: how many images (rows) an item is.
        kind: only neighbours in the queue of equal kind share a batch; THREADED ones do not run in the event loop.
        measure: tells the observer what was run of a batch.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        inline: int = 0,
        beside: Beside | None = None,
        max_batch: int,
        max_wait: float,
        capacity: int,
        observer: BatchObserver,
        weigh: Callable[[Any], int] = lambda _: 1,
        kind: Callable[[Any], Hashable] = lambda _: None,
        measure: Measure = as_a_whole,
    ) -> None:
        self._ways = Ways(run, max_batch, inline, beside)
        self._executor = executor
        self._inline = inline
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._capacity = capacity
        self._observer = observer
        self._weigh, self._kind, self._measure = weigh, kind, measure
        self._queue: deque[Waiting] = deque()
        self._depth = 0
        self._room = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Handle | None = None
        self._flying: dict[Work, list[Waiting]] = {}
        self.share = max(1, capacity // 2)
        """Weight that one caller's many items may fill of the queue: the rest is for others."""
        self.little = max(1, min(max_batch, capacity) // 2)
        """Half a batch: items without hurry enter while less waits."""
        self.holders = 0
        """Callers that will submit still, such as one that decodes its image; `drain` waits for them."""

    @property
    def depth(self) -> int:
        """Weight that waits."""
        return self._depth

    @property
    def load(self) -> int:
        """Weight that waits or runs in threads."""
        return self._depth + sum([waiting.weight for batch in self._flying.values() for waiting in batch])

    @property
    def alive(self) -> bool:
        """Whether batches run."""
        return self._loop is not None

    def start(self) -> None:
        """Takes items from now on; needs a running event loop."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Releases every caller, those in flight and those who wait, and takes nothing any more."""
        self._loop = None
        if self._next is not None:
            self._next.cancel()
        for batch in (self._queue, *self._flying.values()):
            self._fail(batch, NotReady("the service is stopping"))
        for work in list(self._flying):
            work.cancel()
        self._queue.clear()
        self._depth = 0
        self._room.set()

    async def drain(self) -> None:
        """Answers all that waits and all that its holders bring, then stops."""
        while self.alive and (self.holders or self._queue or self._flying):
            await asyncio.sleep(0.005)
        self.stop()

    def submit(self, item: Any, gone: Callable[[], bool] = never) -> asyncio.Future[Timed]:
        """The result of one item, to be awaited.

        Args:
            item: what `run` takes.
            gone: whether the caller has left; asked just before the item would run.

        Raises:
            Overloaded: the queue is full.
            NotReady: the batcher has stopped.
            InferenceFailed: on await: the batch failed.
        """
        answer: asyncio.Future[Timed] = asyncio.get_running_loop().create_future()
        self.put(item, answer, gone)
        return answer

    def put(self, item: Any, answer: Answer, gone: Callable[[], bool]) -> None:
        """As `submit`, where the caller has a place for the result."""
        self.check_room()
        weight = self._weigh(item)
        self._queue.append(Waiting(item, weight, answer, time.perf_counter(), gone))
        self._depth += weight
        if self._max_wait and not self._flying:
            self._turn_in_company()
        elif self._ways.may_begin(len(self._flying)):
            self._turn_soon()

    async def room(self, most: int) -> None:
        """Waits until less than `most` waits, or the batcher has stopped."""
        while self._depth >= most and self.alive:
            self._room.clear()
            await self._room.wait()

    def check_room(self) -> None:
        """Refuses where nothing more can be submitted.

        Raises:
            Overloaded: the queue is full.
            NotReady: the batcher has stopped.
        """
        if not self.alive:
            raise NotReady("the model's batcher does not run")
        if self._depth >= self._capacity:
            raise Overloaded(f"{self._capacity} images wait already")

    def _turn_soon(self) -> None:
        if self._next is None and self._loop is not None:
            self._next = self._loop.call_soon(self._turn)

    def _turn_in_company(self) -> None:
        """A turn once the batch is full, or `max_wait` after its first item came."""
        if self._loop is None:
            return
        if self._depth >= self._max_batch:
            if self._next is not None:
                self._next.cancel()
            self._next = self._loop.call_soon(self._turn)
        elif self._next is None:
            self._next = self._loop.call_later(self._max_wait, self._turn)

    def _turn(self) -> None:
        """Begins all that there is place for; of batches in the event loop one."""
        self._next = None
        batch: list[Waiting] = []
        try:
            while (way := self._way()) is not None:
                batch = []
                self._take(way.most, batch)
                if batch and way.here:
                    self._answer_here(batch, way.run)
                    if self._queue:
                        self._turn_soon()  # the callers answer and new ones come in before
                    return
                if batch:
                    self._send(batch, way.run)
        except Exception:
            self.stop()  # nobody waits for what does not run
            self._fail(batch, NotReady("the service is stopping"))
            raise

    def _way(self) -> Way | None:
        """How the next batch runs; None while there is nothing to run, or no place for it."""
        if not self._queue or not self._ways.may_begin(len(self._flying)):
            return None
        first = self._queue[0]
        threaded = self._kind(first.item) is THREADED
        flying = [sum([waiting.weight for waiting in batch]) for batch in self._flying.values()]
        return self._ways.choose(first.weight, threaded, self._depth, flying)

    def _send(self, batch: list[Waiting], run: Run) -> None:
        try:
            self._flying[send_batch(self._executor, batch, run, self._landed)] = batch
        except RuntimeError as error:  # the threads have ended
            self._fail(batch, error)

    def _landed(self, work: Work) -> None:
        batch = self._flying.pop(work)
        try:
            self._settle(batch, *work.result())
        except Exception as error:
            self._fail(batch, error)
        finally:
            self._fail(batch, NotReady("the service is stopping"))
            self._turn_soon()

    def _take(self, most: int, batch: list[Waiting]) -> None:
        """Moves what runs next from the queue to the batch."""
        total, kind = 0, None
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done() or waiting.gone():
                self._drop(self._queue.popleft())
                continue
            if batch and (total + waiting.weight > most or self._kind(waiting.item) != kind):
                break
            kind = self._kind(waiting.item)
            total += waiting.weight
            self._depth -= waiting.weight
            batch.append(self._queue.popleft())
        self._room.set()

    def _drop(self, waiting: Waiting) -> None:
        self._depth -= waiting.weight
        if not waiting.answer.done():
            waiting.answer.set_exception(ClientDisconnect())
        self._observer.dropped()

    def _answer_here(self, batch: list[Waiting], run: Run) -> None:
        try:
            self._settle(batch, *run_batch(batch, run))
        except Exception as error:
            self._fail(batch, error)

    def _settle(self, batch: list[Waiting], results: Sequence[Any], start: float) -> None:
        ran = time.perf_counter() - start
        queued = [start - waiting.since for waiting in batch]
        self._report(batch, results, queued, ran)
        for waiting, seconds, result in zip(batch, queued, results, strict=True):
            if waiting.answer.done():
                self._observer.dropped()
            elif isinstance(result, Exception):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(Timed(result, start, seconds, ran))

    def _report(self, batch: list[Waiting], results: Sequence[Any], queued: list[float], ran: float) -> None:
        """Items that failed alone were not run."""
        done = [n for n, result in enumerate(results) if not isinstance(result, Exception)]
        size, seconds = self._measure([batch[n].weight for n in done], [results[n] for n in done], ran)
        if size:
            self._observer.batch(size, [queued[n] for n in done], seconds)

    @staticmethod
    def _fail(batch: Iterable[Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
