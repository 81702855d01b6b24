import asyncio

import pytest
from starlette.requests import ClientDisconnect

from service.errors import NotReady
from service.many import submit_later
from tests.test_batcher import Gate, ask, doubled, started


async def test_work_without_hurry_leaves_the_queue_to_others_and_is_all_done() -> None:
    gate = Gate()
    async with started(gate, most=4, capacity=8) as batcher:
        later = [asyncio.create_task(submit_later(batcher, value)) for value in range(50)]
        await gate.busy()
        await asyncio.sleep(0.01)
        assert batcher.depth == 2, "half a batch waits"
        others = [asyncio.create_task(ask(batcher, value)) for value in range(100, 106)]
        await asyncio.sleep(0.01)
        assert batcher.depth == 8, "the rest of the queue was free"
        gate.open.set()
        assert await asyncio.gather(*others) == [2.0 * value for value in range(100, 106)]
        assert sum(one.done() for one in later) < 50
        assert [one.result for one in await asyncio.gather(*later)] == [2.0 * value for value in range(50)]


async def test_work_without_hurry_is_released_when_the_batcher_stops() -> None:
    gate = Gate()
    async with started(gate, most=2, capacity=4) as batcher:
        later = [asyncio.create_task(submit_later(batcher, value)) for value in range(20)]
        await gate.busy()
        asyncio.get_running_loop().call_later(0.05, gate.open.set)
        batcher.stop()
        answers = await asyncio.wait_for(asyncio.gather(*later, return_exceptions=True), 5)
        assert {type(answer) for answer in answers} == {NotReady}


async def test_work_whose_caller_has_left_is_dropped() -> None:
    async with started(doubled, most=4, capacity=8) as batcher:
        with pytest.raises(ClientDisconnect):
            await submit_later(batcher, 1.0, lambda: True)
