"""Concurrent callers to batches. Knows nothing of images or models: rows in, rows out, in order.

One task owns the queue and the device. It never waits for company while it is idle (unless `max_wait` says so): what
has queued while the last batch ran is the next one. A failing batch fails only its own callers; a caller that has left
is dropped before its row is run.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed, NotReady, Overloaded

Row = NDArray[Any]


class BatchObserver(Protocol):
    """Who wants to know what the batcher does (metrics)."""

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        """A batch was run."""
        ...

    def dropped(self) -> None:
        """A row was dropped since its caller had left."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    row: Row
    answer: asyncio.Future[Row]
    since: float


class Batcher:
    """Runs rows of many callers in batches.

    Args:
        run: (N, ...) rows to N results, called in `executor`; must be safe there.
        executor: one thread of its own.
        max_batch: rows in one batch at most.
        max_wait: seconds that the first row of a batch waits for others while the device is idle; 0 does not wait.
        capacity: rows that may wait.
        observer: is told of every batch.
    """

    def __init__(
        self,
        run: Callable[[Row], Row],
        executor: Executor,
        *,
        max_batch: int,
        max_wait: float,
        capacity: int,
        observer: BatchObserver,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._capacity = capacity
        self._share = max(1, capacity // 2)
        self._observer = observer
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return len(self._queue)

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
        self._release()

    async def submit(self, row: Row) -> Row:
        """The result of one row.

        Raises:
            Overloaded: the queue is full.
            NotReady: the batcher has stopped.
            InferenceFailed: the batch failed.
        """
        return await self._enqueue(row)

    async def submit_all(self, rows: Sequence[Row]) -> list[Row | Exception]:
        """The results of many rows of one caller, each a row or the error of its batch.

        Only a full queue at the first row is refused; afterwards the caller waits for room, so that one request may
        hold more rows than the queue. It fills the queue by half at most: the rest is for others.

        Raises:
            Overloaded: the queue is full.
            NotReady: the batcher has stopped.
        """
        answers: list[asyncio.Future[Row]] = []
        try:
            for row in rows:
                while answers and len(self._queue) >= self._share and not self._closed:
                    self._room.clear()
                    await self._room.wait()
                answers.append(self._enqueue(row))
            results = await asyncio.gather(*answers, return_exceptions=True)
        except BaseException:
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            raise
        return [result if not isinstance(result, BaseException) else _as_error(result) for result in results]

    def _enqueue(self, row: Row) -> asyncio.Future[Row]:
        if self._closed or not self.alive:
            raise NotReady("the model's batcher does not run")
        if len(self._queue) >= self._capacity:
            raise Overloaded(f"{self._capacity} images wait already")
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(row, answer, time.perf_counter()))
        self._arrived.set()
        return answer

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
        finally:
            self._release()

    async def _wait_for_company(self) -> None:
        """Until the batch is full, or `max_wait` after its first row came."""
        until = self._queue[0].since + self._max_wait
        while len(self._queue) < self._max_batch and (left := until - time.perf_counter()) > 0.0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _release(self) -> None:
        """Nobody waits for a task that has ended."""
        self._closed = True
        self._fail(self._queue, NotReady("the service is stopping"))
        self._queue.clear()
        self._room.set()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if waiting.answer.done():
                self._observer.dropped()
            else:
                batch.append(waiting)
        self._room.set()
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._executor, self._work, batch)
            self._observer.batch(len(batch), [start - waiting.since for waiting in batch], time.perf_counter() - start)
            for waiting, row in zip(batch, rows, strict=True):
                if waiting.answer.done():
                    self._observer.dropped()
                else:
                    waiting.answer.set_result(row)
        except Exception as error:
            self._fail(batch, error)
        finally:
            self._fail(batch, NotReady("the service is stopping"))

    def _work(self, batch: list[_Waiting]) -> Row:
        rows = self._run(np.stack([waiting.row for waiting in batch]))
        if len(rows) != len(batch):
            raise InferenceFailed(f"the model answered {len(rows)} rows for {len(batch)}")
        return rows

    @staticmethod
    def _fail(batch: Iterable[_Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)


def _as_error(result: BaseException) -> Exception:
    if isinstance(result, Exception):
        return result
    raise result
