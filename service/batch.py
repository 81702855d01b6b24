"""What goes into a batch, what comes out of it, and who is told."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

Run = Callable[[list[Any]], Sequence[Any]]
"""A batch of items to as many results; a result that is an Exception fails its item alone."""

THREADED = object()
"""The kind of items that take too long for the event loop, however light they are."""


class BatchObserver(Protocol):
    """Who wants to know what the batcher does (metrics)."""

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        """A batch was run."""
        ...

    def dropped(self) -> None:
        """An item was dropped since its caller had left."""
        ...


class Timed(NamedTuple):
    """A result with where its time went.

    Attributes:
        result: what `run` answered for the item.
        began: when its batch began, seconds of `time.perf_counter`.
        queued: seconds until then.
        ran: seconds that its batch took.
    """

    result: Any
    began: float
    queued: float
    ran: float


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


class Waiting(NamedTuple):
    """An item in the queue.

    Attributes:
        item: what `Run` takes.
        weight: how many images (rows) it is.
        answer: of its caller.
        since: when it came, seconds of `time.perf_counter`.
        gone: whether its caller has left.
    """

    item: Any
    weight: int
    answer: asyncio.Future[Timed]
    since: float
    gone: Callable[[], bool]


def all_of_it(weight: int, result: Any) -> int:
    """Of items that are run as a whole: their weight."""
    return weight


def never() -> bool:
    """Of callers that do not leave."""
    return False
