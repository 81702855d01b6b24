"""Concurrent callers to batches. Knows nothing of images or models: items in, results out, in order.

One task owns the queue and the device. It never waits for company while it is idle (unless `max_wait` says so): what
has queued while the last batch ran is the next one. A failing batch fails only its own callers, a failing item only
itself; a caller that has left is dropped before its item is run.

Batches run in a thread, or, where they are shorter than two threads take to hand each other the interpreter, in the
event loop itself.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

from starlette.requests import ClientDisconnect

from service.batch import BatchObserver, Run, Timed, Waiting, never
from service.errors import InferenceFailed, NotReady, Overloaded


class Batcher:
    """Runs items of many callers in batches.

    Args:
        run: called in `executor`, or in the event loop; never twice at a time.
        executor: one thread of its own.
        inline: weight of a batch that runs in the event loop, at most; it must not take long. 0 runs none there.
        max_batch: weight of one batch at most; a single heavier item runs alone.
        max_wait: seconds that the first item of a batch waits for others while the device is idle; 0 does not wait.
        capacity: weight that may wait.
        observer: is told of every batch.
        weigh: how many images (rows) an item is.
        kind: only neighbours in the queue of equal kind share a batch.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        inline: int = 0,
        max_batch: int,
        max_wait: float,
        capacity: int,
        observer: BatchObserver,
        weigh: Callable[[Any], int] = lambda _: 1,
        kind: Callable[[Any], Hashable] = lambda _: None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._inline = inline
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._capacity = capacity
        self._share = max(1, capacity // 2)
        self._little = max(1, min(max_batch, capacity) // 2)
        self._observer = observer
        self._weigh = weigh
        self._kind = kind
        self._queue: deque[Waiting] = deque()
        self._depth = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._idle = True
        self.holders = 0
        """Callers that will submit still, such as one that decodes its image; `drain` waits for them."""

    @property
    def depth(self) -> int:
        """Weight that waits."""
        return self._depth

    @property
    def alive(self) -> bool:
        """Whether the task that runs batches is there and working."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Starts the task; needs a running event loop."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    async def stop(self) -> None:
        """Releases every caller, those in flight and those who wait, and ends the task."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None  # its traceback refers to this batcher: the net would stay until a full collection
        self._release()

    async def drain(self) -> None:
        """Answers all that waits and all that its holders bring, then takes nothing new and stops."""
        while self.alive and self.holders:
            await asyncio.sleep(0.005)
        self._closed = True
        while self.alive and (self._queue or not self._idle):
            await asyncio.sleep(0.005)
        await self.stop()

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
        self._check_room()
        answer: asyncio.Future[Timed] = asyncio.get_running_loop().create_future()
        weight = self._weigh(item)
        self._queue.append(Waiting(item, weight, answer, time.perf_counter(), gone))
        self._depth += weight
        self._arrived.set()
        return answer

    async def submit_later(self, item: Any, gone: Callable[[], bool] = never) -> Timed:
        """The result of an item without hurry: it enters while less than half a batch waits, and is never refused.

        Raises:
            NotReady: the batcher has stopped.
            InferenceFailed: the batch failed.
        """
        while self._depth >= self._little and not self._closed:
            self._room.clear()
            await self._room.wait()
        return await self.submit(item, gone)

    async def submit_all(self, items: Sequence[Any], gone: Callable[[], bool] = never) -> list[Timed | Exception]:
        """As `submit_stream`, for items that are all there."""
        if len(items) != 1:
            return await self.submit_stream(_each(items), gone)
        answer = self.submit(items[0], gone)
        try:
            return [await answer]
        except Exception as error:
            return [error]

    async def submit_stream(
        self, items: AsyncGenerator[Any], gone: Callable[[], bool] = never
    ) -> list[Timed | Exception]:
        """The results of many items of one caller, each a result or its own error; they run while more of them come.

        Only a queue that is full at the start is refused; afterwards the caller waits for room, so that one request
        may hold more items than the queue. It fills the queue by half at most: the rest is for others.

        Args:
            items: what `run` takes; an Exception stands for an item that there is not, and is its own result.
            gone: whether the caller has left.

        Raises:
            Overloaded: the queue is full.
            NotReady: the batcher has stopped.
        """
        self._check_room()
        answers: list[asyncio.Future[Timed] | Exception] = []
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    if isinstance(item, Exception):
                        answers.append(item)
                        continue
                    while self._depth >= self._share and not self._closed:
                        self._room.clear()
                        await self._room.wait()
                    answers.append(self.submit(item, gone))
            await asyncio.gather(*_futures(answers), return_exceptions=True)
        except BaseException:
            for answer in _futures(answers):
                answer.cancel()
            await asyncio.gather(*_futures(answers), return_exceptions=True)
            raise
        return [answer if isinstance(answer, Exception) else _outcome(answer) for answer in answers]

    def _check_room(self) -> None:
        if self._closed or not self.alive:
            raise NotReady("the model's batcher does not run")
        if self._depth >= self._capacity:
            raise Overloaded(f"{self._capacity} images wait already")

    async def _serve(self) -> None:
        try:
            while True:
                if not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                    await self._wait_for_company()
                batch = self._take()
                if batch:
                    await self._answer(batch)
                if self._inline:
                    await asyncio.sleep(0)  # the callers answer and new ones come in
        finally:
            self._release()

    async def _wait_for_company(self) -> None:
        """Until the batch is full, or `max_wait` after its first item came."""
        until = self._queue[0].since + self._max_wait
        while self._depth < self._max_batch and (left := until - time.perf_counter()) > 0.0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _release(self) -> None:
        """Nobody waits for a task that has ended."""
        self._closed = True
        self._fail(self._queue, NotReady("the service is stopping"))
        self._queue.clear()
        self._depth = 0
        self._room.set()

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        total, kind = 0, None
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done() or waiting.gone():
                self._drop(self._queue.popleft())
                continue
            if batch and (total + waiting.weight > self._max_batch or self._kind(waiting.item) != kind):
                break
            kind = self._kind(waiting.item)
            total += waiting.weight
            self._depth -= waiting.weight
            batch.append(self._queue.popleft())
        self._room.set()
        return batch

    def _drop(self, waiting: Waiting) -> None:
        self._depth -= waiting.weight
        self._observer.dropped()
        if not waiting.answer.done():
            waiting.answer.set_exception(ClientDisconnect())

    async def _answer(self, batch: list[Waiting]) -> None:
        start = time.perf_counter()
        self._idle = False
        try:
            if sum([waiting.weight for waiting in batch]) <= self._inline:
                results = self._work(batch)
            else:
                results = await asyncio.get_running_loop().run_in_executor(self._executor, self._work, batch)
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
        except Exception as error:
            self._fail(batch, error)
        finally:
            self._idle = True
            self._fail(batch, NotReady("the service is stopping"))

    def _report(self, batch: list[Waiting], results: Sequence[Any], queued: list[float], ran: float) -> None:
        """Items that failed alone were not run."""
        done = [n for n, result in enumerate(results) if not isinstance(result, Exception)]
        if done:
            self._observer.batch(sum([batch[n].weight for n in done]), [queued[n] for n in done], ran)

    def _work(self, batch: list[Waiting]) -> Sequence[Any]:
        results = self._run([waiting.item for waiting in batch])
        if len(results) != len(batch):
            raise InferenceFailed(f"the model answered {len(results)} rows for {len(batch)}")
        return results

    @staticmethod
    def _fail(batch: Iterable[Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)


async def _each(items: Sequence[Any]) -> AsyncGenerator[Any]:
    for item in items:
        yield item


def _futures(answers: Sequence["asyncio.Future[Timed] | Exception"]) -> list["asyncio.Future[Timed]"]:
    return [answer for answer in answers if not isinstance(answer, Exception)]


def _outcome(answer: "asyncio.Future[Timed]") -> Timed | Exception:
    """Raises CancelledError where it was cancelled."""
    error = answer.exception()
    return answer.result() if error is None else error if isinstance(error, Exception) else InferenceFailed("ended")
