"""What goes into a batch, what comes out of it, and who is told."""

from collections.abc import Callable, Sequence
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


class Answer(Protocol):
    """Where an item's result goes: a future, or what answers its request then and there, and must not raise."""

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        ...

    def set_result(self, result: "Timed", /) -> None:
        """Here it is."""
        ...

    def set_exception(self, exception: Exception, /) -> None:
        """There is none."""
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


class Waiting(NamedTuple):
    """An item in the queue.

    Attributes:
        item: what `Run` takes.
        weight: how many images (rows) it is.
        answer: where its result goes.
        since: when it came, seconds of `time.perf_counter`.
        gone: whether its caller has left.
    """

    item: Any
    weight: int
    answer: Answer
    since: float
    gone: Callable[[], bool]


Measure = Callable[[Sequence[int], Sequence[Any], float], tuple[int, float]]
"""How many images (rows) the net ran and for how many seconds.

By the weights and the results of the items that did not fail, and the seconds of their batch.
"""


def as_a_whole(weights: Sequence[int], results: Sequence[Any], seconds: float) -> tuple[int, float]:
    """Of items that are all run, and nothing else done with them."""
    return sum(weights), seconds


def never() -> bool:
    """Of callers that do not leave."""
    return False
