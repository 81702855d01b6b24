import asyncio
import math
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.requests import ClientDisconnect

from service.batch import Timed
from service.batcher import Batcher
from service.errors import InferenceFailed, NotReady, Overloaded
from service.many import submit_all

Rows = list[float]


@dataclass
class Seen:
    sizes: list[int] = field(default_factory=list)
    drops: int = 0

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        assert len(queued_seconds) == size and min(queued_seconds) >= 0.0 and run_seconds >= 0.0
        self.sizes.append(size)

    def dropped(self) -> None:
        self.drops += 1


class Gate:
    """A model that waits until it is let go, and keeps what it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[float]] = []

    def __call__(self, rows: Rows) -> Rows:
        self.batches.append(list(rows))
        self.entered.set()
        assert self.open.wait(20)
        return doubled(rows)

    async def busy(self) -> None:
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


def doubled(rows: Rows) -> Rows:
    return [value * 2.0 for value in rows]


async def ask(batcher: Batcher, value: float) -> float:
    answer: float = (await batcher.submit(value)).result
    return answer


def values_of(results: Sequence[Timed | Exception]) -> list[float]:
    return [result.result for result in results if isinstance(result, Timed)]


@asynccontextmanager
async def started(
    run: Callable[[Rows], Rows], *, most: int = 8, wait: float = 0.0, capacity: int = 10_000, seen: Seen | None = None
) -> AsyncGenerator[Batcher]:
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(run, executor, max_batch=most, max_wait=wait, capacity=capacity, observer=seen or Seen())
        batcher.start()
        try:
            yield batcher
        finally:
            if isinstance(run, Gate):
                run.open.set()
            batcher.stop()


async def test_every_caller_gets_its_own_row_back_among_thousands_at_random_times() -> None:
    dice = random.Random(1)
    seen = Seen()

    def run(rows: Rows) -> Rows:
        if dice.random() < 0.2:
            time.sleep(dice.random() * 1e-3)
        return doubled(rows)

    async def later(batcher: Batcher, value: int) -> None:
        await asyncio.sleep(dice.random() * 0.2)
        assert await ask(batcher, value) == 2 * value

    async with started(run, most=16, seen=seen) as batcher:
        await asyncio.gather(*(later(batcher, value) for value in range(4000)))
    assert sum(seen.sizes) == 4000
    assert max(seen.sizes) <= 16
    assert seen.drops == 0


async def test_little_batches_run_in_the_loop_and_others_come_in_between() -> None:
    seen, threads = Seen(), set[int]()

    def run(rows: Rows) -> Rows:
        threads.add(threading.get_ident())
        if min(rows) < 0:
            raise RuntimeError("bad batch")
        return doubled(rows)

    executor = ThreadPoolExecutor(1)
    batcher = Batcher(run, executor, inline=8, max_batch=8, max_wait=0.0, capacity=10_000, observer=seen)
    batcher.start()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await asyncio.gather(*(ask(batcher, value) for value in range(200))) == [2 * n for n in range(200)]
    assert ticks >= 200 / 8
    with pytest.raises(RuntimeError, match="bad batch"):
        await ask(batcher, -1)
    assert await ask(batcher, 3) == 6
    ticking.cancel()
    batcher.stop()
    assert threads == {threading.get_ident()} and max(seen.sizes) == 8 and not batcher.alive


class Weighed(Seen):
    """Of items that weigh more than one."""

    def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
        self.sizes.append(size)


async def test_a_heavy_item_leaves_the_loop_free() -> None:
    threads: list[int] = []

    def run(rows: Rows) -> Rows:
        threads.append(threading.get_ident())
        return doubled(rows)

    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(
            run, executor, inline=8, max_batch=8, max_wait=0.0, capacity=100, observer=Weighed(), weigh=int
        )  # fmt: skip
        batcher.start()
        assert await ask(batcher, 9) == 18
        assert await ask(batcher, 8) == 16
        batcher.stop()
    assert threads[0] != threading.get_ident() and threads[1] == threading.get_ident()


async def test_a_failing_batch_fails_only_its_callers_and_the_loop_goes_on() -> None:
    def run(rows: Rows) -> Rows:
        if min(rows) < 0:
            raise RuntimeError("bad batch")
        return doubled(rows)

    async with started(run, most=4) as batcher:
        results = await submit_all(batcher, [value for value in (1, 2, 3, 4, 5, -1, 7, 8, 9)])
        assert [isinstance(result, RuntimeError) for result in results] == [False] * 4 + [True] * 4 + [False]
        assert await ask(batcher, 9) == 18
        assert batcher.alive


async def test_a_short_answer_is_an_error_that_names_both_numbers() -> None:
    async with started(lambda rows: rows[:-1], most=3) as batcher:
        results = await submit_all(batcher, [1, 2, 3])
        assert [type(result) for result in results] == [InferenceFailed] * 3
        assert "2 rows for 3" in str(results[0])


@pytest.mark.parametrize(("capacity", "more"), [(1, 1), (5, 3), (32, 100)])
async def test_a_full_queue_refuses_exactly_what_is_too_much_and_at_once(capacity: int, more: int) -> None:
    gate = Gate()
    async with started(gate, capacity=capacity) as batcher:
        first = asyncio.create_task(ask(batcher, 0))
        await gate.busy()
        began = time.perf_counter()
        tasks = [asyncio.create_task(ask(batcher, value)) for value in range(capacity + more)]
        refused, _ = await asyncio.wait(tasks, timeout=0.05)
        assert len(refused) == more
        assert all(isinstance(task.exception(), Overloaded) for task in refused)
        assert time.perf_counter() - began < 1.0
        assert batcher.depth == capacity
        gate.open.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, Overloaded) for answer in answers) == more


async def test_a_departed_caller_is_dropped_before_it_is_run() -> None:
    gate, seen = Gate(), Seen()
    async with started(gate, seen=seen) as batcher:
        first = asyncio.create_task(ask(batcher, 1))
        await gate.busy()
        gone = [asyncio.create_task(ask(batcher, value)) for value in (50, 51)]
        kept = asyncio.create_task(ask(batcher, 3))
        many = asyncio.create_task(submit_all(batcher, [60, 61, 62]))
        await asyncio.sleep(0.01)
        for task in (*gone, many):
            task.cancel()
        gate.open.set()
        assert await kept == 6
        assert await first == 2
        assert gate.batches == [[1.0], [3.0]]
        assert seen.drops == 5


async def test_a_caller_that_leaves_while_its_batch_runs_costs_its_mates_nothing() -> None:
    gate, seen = Gate(), Seen()
    async with started(gate, seen=seen) as batcher:
        first = asyncio.create_task(ask(batcher, 1))
        await gate.busy()
        first.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert await ask(batcher, 2) == 4
        assert seen.drops == 1


async def test_stop_releases_callers_in_flight_those_queued_and_those_that_wait_for_room() -> None:
    gate = Gate()
    async with started(gate, most=2, capacity=4) as batcher:
        flying = asyncio.create_task(ask(batcher, 0))
        await gate.busy()
        queued = [asyncio.create_task(ask(batcher, value)) for value in (1, 2, 3)]
        await asyncio.sleep(0)
        crowd = asyncio.create_task(submit_all(batcher, [value for value in range(20)]))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, gate.open.set)
        batcher.stop()
        answers = await asyncio.wait_for(asyncio.gather(flying, *queued, crowd, return_exceptions=True), 5)
        assert [type(answer) for answer in answers] == [NotReady] * 5
        assert not batcher.alive
        with pytest.raises(NotReady):
            await ask(batcher, 1)


async def test_a_batcher_that_was_never_started_refuses() -> None:
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(doubled, executor, max_batch=1, max_wait=0.0, capacity=1, observer=Seen())
        assert not batcher.alive
        with pytest.raises(NotReady):
            await ask(batcher, 1)
        batcher.stop()


async def test_nobody_is_left_waiting_when_a_turn_fails() -> None:
    class Broken(Seen):
        def dropped(self) -> None:
            raise ValueError("metrics are broken")

    logged: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    gate = Gate()
    async with started(gate, most=2, capacity=3, seen=Broken()) as batcher:
        flying = asyncio.create_task(ask(batcher, 0))
        await gate.busy()
        first, left = batcher.submit(1.0), batcher.submit(1.0, lambda: True)
        crowd = asyncio.create_task(submit_all(batcher, [value for value in range(5)]))
        await asyncio.sleep(0.01)
        gate.open.set()
        answers = await asyncio.wait_for(asyncio.gather(flying, first, left, crowd, return_exceptions=True), 5)
        assert [type(answer) for answer in answers] == [float, NotReady, ClientDisconnect, NotReady]
        assert not batcher.alive and len(logged) == 1


async def test_metrics_that_fail_do_not_end_the_loop() -> None:
    class Broken(Seen):
        def batch(self, size: int, queued_seconds: list[float], run_seconds: float) -> None:
            super().batch(size, queued_seconds, run_seconds)
            if len(self.sizes) == 1:
                raise ValueError("metrics are broken")

    async with started(doubled, seen=Broken()) as batcher:
        with pytest.raises(ValueError, match="metrics are broken"):
            await ask(batcher, 1)
        assert await ask(batcher, 2) == 4
        assert batcher.alive


async def test_an_idle_batcher_runs_the_first_row_alone_and_gathers_the_rest_meanwhile() -> None:
    gate = Gate()
    async with started(gate, most=8) as batcher:
        first = asyncio.create_task(ask(batcher, 0))
        await gate.busy()
        rest = [asyncio.create_task(ask(batcher, value)) for value in range(1, 12)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, *rest)
        assert [len(batch) for batch in gate.batches] == [1, 8, 3]
        assert gate.batches[1] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


async def test_with_a_wait_the_first_row_waits_for_company() -> None:
    seen = Seen()
    async with started(doubled, wait=0.05, seen=seen) as batcher:
        first = asyncio.create_task(ask(batcher, 0))
        await asyncio.sleep(0.005)
        await asyncio.gather(first, ask(batcher, 1))
    assert seen.sizes == [2]


async def test_a_full_batch_does_not_wait_any_longer() -> None:
    async with started(doubled, most=2, wait=2.0) as batcher:
        first = asyncio.create_task(ask(batcher, 0))
        await asyncio.sleep(0.005)
        await asyncio.wait_for(asyncio.gather(first, ask(batcher, 1)), 1.0)


async def test_one_request_larger_than_the_queue_waits_for_room() -> None:
    seen = Seen()
    async with started(doubled, most=4, capacity=8, seen=seen) as batcher:
        results = await asyncio.wait_for(submit_all(batcher, [value for value in range(500)]), 10)
        assert values_of(results) == [2 * v for v in range(500)]
    assert sum(seen.sizes) == 500, "items are counted, not requests"


async def test_two_large_requests_at_once_both_finish_with_their_own_rows() -> None:
    async with started(doubled, most=4, capacity=8) as batcher:
        both = (submit_all(batcher, [start + value for value in range(200)]) for start in (0, 1000))
        one, two = await asyncio.wait_for(asyncio.gather(*both), 10)
        assert values_of(one) == [2 * v for v in range(200)]
        assert values_of(two) == [2 * (1000 + v) for v in range(200)]


async def test_a_large_request_leaves_room_for_small_ones() -> None:
    async with started(doubled, most=4, capacity=8) as batcher:
        crowd = asyncio.create_task(submit_all(batcher, [value for value in range(400)]))
        await asyncio.sleep(0)
        for value in range(20):
            assert await ask(batcher, value) == 2 * value
        assert not crowd.done()
        assert len(await crowd) == 400


async def test_a_large_request_that_is_cancelled_leaves_room_for_others() -> None:
    gate = Gate()
    async with started(gate, most=2, capacity=4) as batcher:
        crowd = asyncio.create_task(submit_all(batcher, [value for value in range(100)]))
        await gate.busy()
        crowd.cancel()
        await asyncio.gather(crowd, return_exceptions=True)
        gate.open.set()
        while batcher.depth:
            await asyncio.sleep(0.001)
        assert await ask(batcher, 7) == 14
        assert sum(len(batch) for batch in gate.batches) <= 3


async def test_a_row_that_is_not_a_number_stays_in_its_row() -> None:
    async with started(doubled, most=8) as batcher:
        results = await submit_all(batcher, [1, float("nan"), 3])
        values = values_of(results)
        assert values[0] == 2 and math.isnan(values[1]) and values[2] == 6


async def test_no_rows_are_no_answers() -> None:
    async with started(doubled) as batcher:
        assert await submit_all(batcher, []) == []
