"""The ways in which a model's batches run: in the event loop, alone on the whole device, or several side by side."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

from service.batch import Run, Waiting
from service.errors import InferenceFailed

Work = Future[tuple[Sequence[Any], float]]
"""A batch that runs in a thread, as `run_batch` answers."""


@dataclass(frozen=True)
class Beside:
    """A way to run several batches side by side.

    Attributes:
        run: called in as many threads at a time.
        count: runs at a time, at most.
        max_batch: weight of one of them at most.
    """

    run: Run
    count: int
    max_batch: int


class Way(NamedTuple):
    """How a batch runs, and its weight at most; `here` is the event loop."""

    run: Run
    most: int
    here: bool = False


class Ways:
    """Chooses among them.

    Args:
        run: of a batch alone.
        max_batch: weight of one batch at most.
        inline: weight of a batch that runs in the event loop, at most; 0 runs none there.
        beside: another way, once as many items as it runs at a time are there; None: there is none.
    """

    def __init__(self, run: Run, max_batch: int, inline: int, beside: Beside | None) -> None:
        self._alone = Way(run, max_batch)
        self._here = Way(run, inline, here=True)
        self._beside = beside
        self._places = 1 if beside is None else 2 * beside.count

    def may_begin(self, flying: int) -> bool:
        """Whether there may be place for a batch, with so many that run in threads."""
        return self._here.most > 0 or flying < self._places

    def choose(self, first: int, threaded: bool, depth: int, flying: Collection[int]) -> Way | None:
        """How the next batch runs; None while there is no place for it.

        Fewer items than could run side by side get the whole device, one batch at a time.

        Args:
            first: weight of the first item.
            threaded: whether it takes too long for the event loop, however light it is.
            depth: weight of all that wait.
            flying: weights of the batches that run in threads.
        """
        if first <= self._here.most and not threaded:
            return self._here
        beside = self._beside
        if beside is None or depth + sum(flying) < beside.count:
            return None if flying else self._alone
        free = beside.count - len(flying)
        if free <= 0:
            # One batch more for each thread: it goes on without a turn of the event loop, which all cores keep waiting.
            free += beside.count
        return Way(beside.run, min(beside.max_batch, -(-depth // free))) if free > 0 else None


def run_batch(batch: Sequence[Waiting], run: Run) -> tuple[Sequence[Any], float]:
    """The results, and when their run began: in a thread that may be later than it was sent there.

    Raises:
        InferenceFailed: as many results as items did not come.
    """
    start = perf_counter()
    results = run([waiting.item for waiting in batch])
    if len(results) != len(batch):
        raise InferenceFailed(f"the model answered {len(results)} rows for {len(batch)}")
    return results, start


def send_batch(executor: Executor, batch: Sequence[Waiting], run: Run, landed: Callable[[Work], None]) -> Work:
    """Has a thread run a batch, and the event loop called when it has; a task that waits for it would cost more.

    Args:
        executor: that has the thread.
        batch: to be run.
        run: runs it.
        landed: called in the event loop once it has run, or was cancelled.

    Raises:
        RuntimeError: the executor has been shut down.
    """
    loop = asyncio.get_running_loop()

    def tell(work: Work) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(landed, work)

    work = executor.submit(run_batch, batch, run)
    work.add_done_callback(tell)
    return work
