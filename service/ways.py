"""The ways in which a model's batches run: in the event loop, alone on the whole device, or several side by side."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from service.batch import Run


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
        self.several = beside is not None or inline > 0
        """Whether a batch may run while another does."""

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
