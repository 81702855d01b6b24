"""The batch size to serve with, from what batches take."""

import threading
import time
from collections.abc import Callable

import pytest

from service.warm_up import QUICK, batch_size, best_seconds, pays_beside, seconds_beside


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
def test_a_slow_net_takes_as_many_as_pay(seconds: Callable[[int], float], size: int) -> None:
    assert batch_size(seconds, 32, quick=False) == size


@pytest.mark.parametrize("disturbed", [2, 4, 8, 16])
def test_one_disturbed_measurement_does_not_end_the_search(disturbed: int) -> None:
    quiet = linear(0.02, 0.001)
    assert batch_size(lambda size: quiet(size) * (3.0 if size == disturbed else 1.0), 32, quick=False) == 32


@pytest.mark.parametrize("disturbed", [1, 2, 4])
def test_a_disturbed_measurement_of_few_does_not_make_many_pay(disturbed: int) -> None:
    asked: list[int] = []

    def seconds(size: int) -> float:
        asked.append(size)
        return 0.02 * size * (3.0 if size == disturbed and asked.count(size) == 1 else 1.0)

    assert batch_size(seconds, 32, quick=False) == 1


def test_the_search_ends_where_two_sizes_in_turn_do_not_pay() -> None:
    asked: list[int] = []

    def seconds(size: int) -> float:
        asked.append(size)
        return 0.02 * size

    assert batch_size(seconds, 1024, quick=False) == 1
    assert asked == [1, 2, 4]


@pytest.mark.parametrize(("each", "size"), [(QUICK / 100, 64), (QUICK / 20, 16), (QUICK / 1.5, 1), (QUICK / 1e6, 256)])
def test_a_quick_net_takes_what_a_millisecond_has_room_for(each: float, size: int) -> None:
    assert batch_size(linear(0.0, each), 256, quick=True) == size


def test_never_more_than_allowed() -> None:
    assert batch_size(linear(1.0, 0.0), 5, quick=False) == 4
    assert batch_size(linear(0.0, 0.0), 5, quick=True) == 4
    assert batch_size(linear(0.0, 0.0), 1, quick=True) == batch_size(linear(1.0, 0.0), 1, quick=False) == 1


def test_the_best_of_several_runs_counts() -> None:
    naps = iter([0.02, 0.0, 0.02, *[0.01] * 1000])
    runs: list[float] = []

    def run() -> None:
        runs.append(next(naps))
        time.sleep(runs[-1])

    assert best_seconds(run) < 0.01
    assert len(runs) == 3


@pytest.mark.parametrize(("beside", "pays"), [(0.5, True), (1.0, True), (1.05, True), (1.2, False)])
def test_runs_side_by_side_pay_where_they_are_no_slower(beside: float, pays: bool) -> None:
    assert pays_beside(1.0, beside) is pays


def test_runs_side_by_side_are_timed_together() -> None:
    met = threading.Barrier(3)
    sizes: list[int] = []

    def blank(size: int) -> Callable[[], object]:
        sizes.append(size)
        return lambda: time.sleep(0.02 * (met.wait(5) >= 0))

    taken = seconds_beside(blank, 3)(4)
    assert sizes == [4]
    assert taken >= 0.02 / 3
