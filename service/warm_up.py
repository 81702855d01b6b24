"""How many images (rows) pay in one run, and whether several runs pay side by side: blank ones are run at loading."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor

WORTH = 0.1
"""A larger batch must cost this share less per image to be worth the wait."""
QUICK = 0.001
"""Seconds for one image on one thread, below which a net keeps to it, and to the event loop's."""
_PATIENCE = 2
_RUNS, _SPAN = 3, 0.01
_MOST_TURNS, _TURNS_SPAN = 8, 0.25

Run = Callable[[], object]
"""A run of a batch."""
Blank = Callable[[int], Run]
"""The run of a blank batch of a size."""


def batch_size(blank: Blank, most: int, quick: bool) -> int:
    """The batch size to serve with; batches of 1, 2, 4 ... are run, which warms the model up.

    A net that fills the cores with one image gains nothing from more: small batches then keep decoding and running
    side by side. A quick net takes as many as the event loop may be held for: more never cost it more.

    Args:
        blank: makes what is run.
        most: images in one batch at most.
        quick: whether batches run in the event loop.
    """
    return _most_in_time(blank, most) if quick else _least_that_pays(blank, most)


def pays_beside(alone: Run, beside: Run, share: float) -> bool:
    """Whether runs side by side are worth a session of their own.

    Where they take about as long per image as one run on all cores they do: a run that shares its cores with decoding
    waits for its slowest thread at each operation, those of one thread do not.

    Args:
        alone: one run on all cores.
        beside: runs on one thread each, as many as there are cores.
        share: images of the first run for each of the others'.
    """
    one, several = _best_in_turns(alone, beside)
    return several * share < (1.0 + WORTH) * one


def side_by_side(pool: Executor, blank: Blank, count: int) -> Blank:
    """As many runs of each size as `count` says, in a pool of as many threads."""

    def several(size: int) -> Run:
        run = blank(size)
        return lambda: list(pool.map(lambda _: run(), range(count)))

    return several


def best_seconds(run: Run) -> float:
    """The shortest of three runs, or of as many as a hundredth of a second has room for: others use the machine too."""
    taken: list[float] = []
    while len(taken) < _RUNS or sum(taken) < _SPAN:
        taken.append(_seconds(run))
    return min(taken)


def _most_in_time(blank: Blank, most: int) -> int:
    size = 1
    while size * 2 <= most and best_seconds(blank(size * 2)) < QUICK:
        size *= 2
    return size


def _least_that_pays(blank: Blank, most: int) -> int:
    """The last size that paid, before two in turn did not."""
    best, size = 1, 2
    blank(1)()
    while size <= most and size <= best << _PATIENCE:
        before, now = _best_in_turns(blank(best), blank(size))
        if now / size <= (1.0 - WORTH) * before / best:
            best = size
        size *= 2
    return best


def _best_in_turns(one: Run, other: Run) -> tuple[float, float]:
    """The shortest of some runs of each, taken in turns: what slows the machine down for a while then meets both."""
    best, best_other = math.inf, math.inf
    start = time.perf_counter()
    for turn in range(_MOST_TURNS):
        if turn >= _RUNS and time.perf_counter() - start > _TURNS_SPAN:
            break
        best, best_other = min(best, _seconds(one)), min(best_other, _seconds(other))
    return best, best_other


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
