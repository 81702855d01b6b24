"""Many items of one caller in a batcher: all at once, as they come, or without hurry."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from service.batch import Timed, never
from service.batcher import Batcher
from service.errors import InferenceFailed


async def submit_later(batcher: Batcher, item: Any, gone: Callable[[], bool] = never) -> Timed:
    """The result of an item without hurry: it enters while less than half a batch waits, and is never refused.

    Raises:
        NotReady: the batcher has stopped.
        InferenceFailed: the batch failed.
    """
    await batcher.room(batcher.little)
    return await batcher.submit(item, gone)


async def submit_all(
    batcher: Batcher, items: Sequence[Any], gone: Callable[[], bool] = never
) -> list[Timed | Exception]:  # fmt: skip
    """As `submit_stream`, for items that are all there."""
    if len(items) != 1:
        return await submit_stream(batcher, _each(items), gone)
    answer = batcher.submit(items[0], gone)
    try:
        return [await answer]
    except Exception as error:
        return [error]


async def submit_stream(
    batcher: Batcher, items: AsyncGenerator[Any], gone: Callable[[], bool] = never
) -> list[Timed | Exception]:
    """The results of many items of one caller, each a result or its own error; they run while more of them come.

    Only a queue that is full at the start is refused; afterwards the caller waits for room, so that one request may
    hold more items than the queue. It fills the queue by half at most: the rest is for others.

    Args:
        batcher: that runs them.
        items: what its `run` takes; an Exception stands for an item that there is not, and is its own result.
        gone: whether the caller has left.

    Raises:
        Overloaded: the queue is full.
        NotReady: the batcher has stopped.
    """
    batcher.check_room()
    answers: list[asyncio.Future[Timed] | Exception] = []
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                if isinstance(item, Exception):
                    answers.append(item)
                    continue
                await batcher.room(batcher.share)
                answers.append(batcher.submit(item, gone))
        await asyncio.gather(*_futures(answers), return_exceptions=True)
    except BaseException:
        for answer in _futures(answers):
            answer.cancel()
        await asyncio.gather(*_futures(answers), return_exceptions=True)
        raise
    return [answer if isinstance(answer, Exception) else _outcome(answer) for answer in answers]


async def _each(items: Sequence[Any]) -> AsyncGenerator[Any]:
    for item in items:
        yield item


def _futures(answers: Sequence["asyncio.Future[Timed] | Exception"]) -> list["asyncio.Future[Timed]"]:
    return [answer for answer in answers if not isinstance(answer, Exception)]


def _outcome(answer: "asyncio.Future[Timed]") -> Timed | Exception:
    """Raises CancelledError where it was cancelled."""
    error = answer.exception()
    return answer.result() if error is None else error if isinstance(error, Exception) else InferenceFailed("ended")
