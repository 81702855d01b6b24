"""How many images (rows) pay in one run, and whether several runs pay side by side: blank ones are run at loading."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

WORTH = 0.1
"""A larger batch must cost this share less per image to be worth the wait."""
QUICK = 0.001
"""Seconds for one image on one thread, below which a net keeps to it, and to the event loop's."""
_PATIENCE = 2
_RUNS, _SPAN = 3, 0.01

Seconds = Callable[[int], float]
"""How long a batch of that size takes."""


def batch_size(seconds: Seconds, most: int, quick: bool) -> int:
    """The batch size to serve with; batches of 1, 2, 4 ... are run, which warms the model up.

    A net that fills the cores with one image gains nothing from more: small batches then keep decoding and running
    side by side. A quick net takes as many as the event loop may be held for: more never cost it more.

    Args:
        seconds: of a batch.
        most: images in one batch at most.
        quick: whether batches run in the event loop.
    """
    return _most_in_time(seconds, most) if quick else _least_that_pays(seconds, most)


def pays_beside(alone: float, beside: float) -> bool:
    """Whether runs side by side are worth a session of their own.

    Where they take about as long per image as one run on all cores they do: a run that shares its cores with decoding
    waits for its slowest thread at each operation, those of one thread do not.

    Args:
        alone: seconds per image of one run on all cores.
        beside: seconds per image of runs on one thread each, as many as there are cores.
    """
    return beside < (1.0 + WORTH) * alone


def seconds_beside(blank: Callable[[int], Callable[[], object]], count: int) -> Seconds:
    """How long a batch of a size takes, of `count` that run side by side.

    Args:
        blank: the run of a blank batch of a size, by threads at a time.
        count: how many.
    """

    def seconds(size: int) -> float:
        run = blank(size)
        with ThreadPoolExecutor(count) as pool:
            return best_seconds(lambda: list(pool.map(lambda _: run(), range(count)))) / count

    return seconds


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of three runs, or of as many as a hundredth of a second has room for: others use the machine too."""
    taken: list[float] = []
    while len(taken) < _RUNS or sum(taken) < _SPAN:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _most_in_time(seconds: Seconds, most: int) -> int:
    size = 1
    while size * 2 <= most and seconds(size * 2) < QUICK:
        size *= 2
    return size


def _least_that_pays(seconds: Seconds, most: int) -> int:
    """The last size that paid, before two in turn did not. Any run may have met another process, or a pause."""
    best, best_each, size = 1, seconds(1), 2
    while size <= most and size <= best << _PATIENCE:
        each = seconds(size) / size
        if _pays(each, best_each):
            best_each = min(best_each, seconds(best) / best)  # once more: it may have been the one
        if _pays(each, best_each):
            best, best_each = size, each
        size *= 2
    return best


def _pays(each: float, best_each: float) -> bool:
    return each <= (1.0 - WORTH) * best_each
