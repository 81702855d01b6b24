"""The batch size to serve with, from what batches take."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service import warm_up
from service.warm_up import QUICK, batch_size, best_seconds, pays_beside, side_by_side


class Clock:
    """The time by which runs are measured; a run only moves it on.

    Args:
        seconds: of a batch of a size.
        slowed: what the nth run takes the longer by.
    """

    def __init__(self, seconds: Callable[[int], float], slowed: Callable[[int], float] = lambda _: 1.0) -> None:
        self._seconds, self._slowed = seconds, slowed
        self._now, self._runs = 0.0, 0
        self.asked: list[int] = []

    def perf_counter(self) -> float:
        """The time."""
        return self._now

    def blank(self, size: int) -> Callable[[], object]:
        """The run of a batch."""
        self.asked.append(size)
        return lambda: self._run(size)

    def _run(self, size: int) -> None:
        self._now += self._seconds(size) * self._slowed(self._runs)
        self._runs += 1


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    """A clock that `warm_up` reads."""

    def clock(*arguments: Any) -> Clock:
        found = Clock(*arguments)
        monkeypatch.setattr(warm_up, "time", found)
        return found

    return clock


def linear(start: float, each: float) -> Callable[[int], float]:
    """A batch costs `start`, and `each` for every image."""
    return lambda size: start + each * size


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        (linear(0.0, 0.02), 1),  # one image fills the cores
        (linear(0.001, 0.005), 4),  # 6, 5.5, 5.25, 5.125 ... ms an image: two more save a tenth, and nothing later does
        (linear(0.02, 0.001), 32),
        (linear(1.0, 0.0), 32),
    ],
)
def test_a_slow_net_takes_as_many_as_pay(
    clock_of: Callable[..., Clock], seconds: Callable[[int], float], size: int
) -> None:
    assert batch_size(clock_of(seconds).blank, 32, quick=False) == size


@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("many", [1, 2, 4])
def test_a_slow_while_decides_nothing(clock_of: Callable[..., Clock], first: int, many: int) -> None:
    def slowed(run: int) -> float:
        return 3.0 if first <= run < first + many else 1.0

    assert batch_size(clock_of(linear(0.0, 0.02), slowed).blank, 32, quick=False) == 1
    assert batch_size(clock_of(linear(0.02, 0.001), slowed).blank, 32, quick=False) == 32
    for alone, pays in ((0.01, True), (0.0085, False)):
        clock = clock_of(lambda size, alone=alone: alone if size == 1 else 0.02, slowed)
        assert pays_beside(clock.blank(1), clock.blank(2), 0.5) is pays


def test_the_search_ends_where_two_sizes_in_turn_do_not_pay(clock_of: Callable[..., Clock]) -> None:
    clock = clock_of(linear(0.0, 0.02))
    assert batch_size(clock.blank, 1024, quick=False) == 1
    assert max(clock.asked) == 4


@pytest.mark.parametrize(("each", "size"), [(QUICK / 100, 64), (QUICK / 20, 16), (QUICK / 1.5, 1), (QUICK / 1e3, 256)])
def test_a_quick_net_takes_what_a_millisecond_has_room_for(
    clock_of: Callable[..., Clock], each: float, size: int
) -> None:
    assert batch_size(clock_of(linear(0.0, each)).blank, 256, quick=True) == size


def test_never_more_than_allowed(clock_of: Callable[..., Clock]) -> None:
    for most, size in ((5, 4), (1, 1)):
        assert batch_size(clock_of(linear(1.0, 0.0)).blank, most, quick=False) == size
        assert batch_size(clock_of(linear(QUICK / 10, 0.0)).blank, most, quick=True) == size


def test_a_net_that_takes_one_image_alone_is_warm_too(clock_of: Callable[..., Clock]) -> None:
    clock = clock_of(linear(1.0, 0.0))
    assert batch_size(clock.blank, 1, quick=False) == 1
    assert clock.perf_counter() > 0.0


def test_the_best_of_several_runs_counts() -> None:
    naps = iter([0.02, 0.0, 0.02, *[0.01] * 1000])
    runs: list[float] = []

    def run() -> None:
        runs.append(next(naps))
        time.sleep(runs[-1])

    assert best_seconds(run) < 0.01
    assert len(runs) == 3


@pytest.mark.parametrize(("beside", "pays"), [(0.5, True), (1.0, True), (1.05, True), (1.2, False)])
@pytest.mark.parametrize(("images", "share"), [(1, 1.0), (4, 0.25)])
def test_runs_side_by_side_pay_where_they_are_no_slower(
    clock_of: Callable[..., Clock], beside: float, pays: bool, images: int, share: float
) -> None:
    clock = clock_of(lambda size: 1.0 if size == 1 else beside * images)
    assert pays_beside(clock.blank(1), clock.blank(2), share) is pays


def test_runs_side_by_side_are_timed_together() -> None:
    met = threading.Barrier(3)
    sizes: list[int] = []

    def blank(size: int) -> Callable[[], object]:
        sizes.append(size)
        return lambda: met.wait(5)

    with ThreadPoolExecutor(3) as pool:
        side_by_side(pool, blank, 3)(4)()
    assert sizes == [4]
