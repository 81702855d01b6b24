"""Batches that run side by side, and what runs in the event loop meanwhile."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.batch import THREADED
from service.batcher import Batcher
from service.errors import NotReady
from service.many import submit_all
from service.ways import Beside
from tests.test_batcher import Gate, Rows, Seen, ask, doubled, values_of


class Watched:
    """Doubles rows, and knows how many runs there were at once."""

    def __init__(self, nap: float = 0.002) -> None:
        self.nap = nap
        self.now = self.most = 0
        self.sizes: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, rows: Rows) -> Rows:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.sizes.append(len(rows))
        time.sleep(self.nap)
        with self._lock:
            self.now -= 1
        return doubled(rows)


async def both_busy(gate: Gate) -> None:
    while len(gate.batches) < 2:
        await asyncio.sleep(0.001)


@asynccontextmanager
async def started(
    alone: Callable[[Rows], Rows], beside: Callable[[Rows], Rows], count: int = 2, most: int = 1, **options: Any
) -> AsyncGenerator[Batcher]:
    with ThreadPoolExecutor(count) as executor:
        way = Beside(beside, count, most)
        batcher = Batcher(
            alone, executor, beside=way, max_batch=8, max_wait=0.0, capacity=10_000, observer=Seen(), **options
        )  # fmt: skip
        batcher.start()
        try:
            yield batcher
        finally:
            for run in (alone, beside):
                if isinstance(run, Gate):
                    run.open.set()
            batcher.stop()


async def test_one_after_another_each_gets_the_whole_device() -> None:
    alone, beside = Watched(), Watched()
    async with started(alone, beside) as batcher:
        for value in range(5):
            assert await ask(batcher, value) == 2 * value
    assert (alone.sizes, beside.sizes) == ([1] * 5, [])


@pytest.mark.parametrize("count", [2, 3])
async def test_a_crowd_runs_side_by_side_as_many_as_there_are_places(count: int) -> None:
    alone, beside = Watched(), Watched()
    async with started(alone, beside, count) as batcher:
        results = await submit_all(batcher, list(range(60)))
    assert values_of(results) == [2 * value for value in range(60)]
    assert beside.most == count and set(beside.sizes) == {1}
    assert len(alone.sizes) <= 1


async def test_a_second_caller_does_not_wait_for_the_first_one() -> None:
    gate = Gate()
    async with started(gate, doubled) as batcher:
        first = asyncio.create_task(ask(batcher, 1))
        await gate.busy()
        assert await asyncio.wait_for(ask(batcher, 2), 5) == 4
        gate.open.set()
        assert await first == 2


async def test_fewer_than_there_are_places_wait_for_the_whole_device() -> None:
    gate, beside = Gate(), Watched()
    async with started(gate, beside, count=4) as batcher:
        answers = [asyncio.create_task(ask(batcher, 0))]
        await gate.busy()
        answers += [asyncio.create_task(ask(batcher, value)) for value in (1, 2)]
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await asyncio.gather(*answers) == [0, 2, 4]
    assert gate.batches == [[0], [1, 2]] and beside.sizes == []


async def test_what_waits_is_shared_among_the_free_places() -> None:
    gate = Gate()
    async with started(doubled, gate, count=2, most=8) as batcher:
        answers = [asyncio.create_task(ask(batcher, value)) for value in range(8)]
        await both_busy(gate)
        gate.open.set()
        assert await asyncio.gather(*answers) == [2 * value for value in range(8)]
    assert sorted(gate.batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_every_caller_gets_its_own_answer_at_random_times() -> None:
    dice, beside = random.Random(2), Watched(0.0)

    async def later(batcher: Batcher, value: int) -> None:
        await asyncio.sleep(dice.random() * 0.2)
        assert await ask(batcher, value) == 2 * value

    async with started(doubled, beside, count=3, most=4) as batcher:
        await asyncio.gather(*(later(batcher, value) for value in range(3000)))
        assert batcher.depth == 0 and batcher.alive
    assert beside.sizes and max(beside.sizes) <= 4


async def test_a_run_that_fails_fails_its_own_callers_alone() -> None:
    def run(rows: Rows) -> Rows:
        if 3 in rows:
            raise RuntimeError("bad batch")
        return doubled(rows)

    async with started(run, run) as batcher:
        results = await submit_all(batcher, list(range(10)))
        assert [str(one) for one in results if isinstance(one, Exception)] == ["bad batch"]
        assert isinstance(results[3], RuntimeError)
        assert await ask(batcher, 5) == 10


async def test_stopping_releases_all_that_fly_and_all_that_wait() -> None:
    gate = Gate()
    async with started(doubled, gate) as batcher:
        answers = [asyncio.create_task(ask(batcher, value)) for value in range(6)]
        await both_busy(gate)
        batcher.stop()
        found = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 5)
    assert [type(one) for one in found] == [NotReady] * 6
    assert len(gate.batches) == 2, "what the threads had in hand was run for nobody"


async def test_draining_waits_for_all_that_fly() -> None:
    gate = Gate()
    async with started(doubled, gate) as batcher:
        answers = [asyncio.create_task(ask(batcher, value)) for value in range(6)]
        await both_busy(gate)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        gate.open.set()
        assert await asyncio.gather(*answers) == [2 * value for value in range(6)]
        await draining


async def test_the_event_loop_answers_light_items_while_heavy_ones_run_beside() -> None:
    gate, threads = Gate(), list[int]()

    def here(rows: Rows) -> Rows:
        threads.append(threading.get_ident())
        return doubled(rows)

    kinds: dict[str, Any] = {"inline": 4, "kind": lambda value: THREADED if value >= 100 else None}
    async with started(here, gate, **kinds) as batcher:
        heavy = [asyncio.create_task(ask(batcher, value)) for value in (100, 101)]
        await gate.busy()
        assert await asyncio.wait_for(ask(batcher, 1), 5) == 2
        assert threads == [threading.get_ident()]
        gate.open.set()
        assert await asyncio.gather(*heavy) == [200, 202]
    assert threads == [threading.get_ident()]


async def test_a_thread_goes_on_with_the_next_run_while_the_event_loop_is_busy() -> None:
    beside = Watched(0.01)
    async with started(doubled, beside) as batcher:
        answers = [asyncio.create_task(ask(batcher, value)) for value in range(6)]
        while not beside.sizes:
            await asyncio.sleep(0)
        time.sleep(0.2)  # the event loop does not turn
        assert len(beside.sizes) == 4
        assert await asyncio.gather(*answers) == [2 * value for value in range(6)]
    assert beside.most == 2


async def test_where_the_threads_have_ended_callers_are_told() -> None:
    executor = ThreadPoolExecutor(1)
    batcher = Batcher(doubled, executor, max_batch=8, max_wait=0.0, capacity=10, observer=Seen())
    batcher.start()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(ask(batcher, 1), 5)
    assert batcher.alive
    batcher.stop()
