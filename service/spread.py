"""Pictures of one request, spread over a quick model's threads and the processes that help, while more of them come."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

from models.card import ModelCard
from models.image import ImageLimits
from service.batch import Timed
from service.decoding import Encoded, parts_of
from service.helpers import Helpers
from service.items import Part
from service.served import Served

_PLACES = 3
"""Parts that a process has at a time: what its threads run, and one in hand."""


class Spread:
    """Whoever is free first takes the next part; what another process cannot answer is run here.

    Args:
        served: a model whose threads decode.
        card: of it.
        limits: of each picture.
        helpers: other processes; None: there are none.
        gone: whether the caller has left.

    Raises:
        Overloaded: the queue is full.
        NotReady: the model's batcher has stopped.
    """

    def __init__(
        self,
        served: Served,
        card: ModelCard,
        limits: ImageLimits,
        helpers: Helpers | None,
        gone: Callable[[], bool],
    ) -> None:
        served.batcher.check_room()
        self._served, self._card = served, card
        self._limits, self._helpers, self._gone = limits, helpers, gone
        self._images: list[Encoded] = []
        self._parts: list[Part] = []
        self._parted = 0
        self._found: dict[int, Timed | Exception] = {}
        self._waiting: deque[int] = deque()
        others = 0 if helpers is None else helpers.ready()
        self._free = deque([*range(others + 1)] * _PLACES)  # 0 is this process: what is one part stays here
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: Exception | None = None

    def add(self, images: Sequence[Encoded]) -> None:
        """More pictures; they are begun as they fill a part."""
        self._images += images
        self._put(self._unparted()[:-1])

    def is_of(self, served: Served, images: Sequence[Encoded]) -> bool:
        """Whether just these pictures were added, for this model."""
        return served is self._served and len(images) == len(self._images) and all(map(_same, images, self._images))

    async def results(self) -> list[Timed | Exception]:
        """Each picture's `Row` or its own error, in their order, once no more come.

        Raises:
            NotReady: the model's batcher has stopped.
        """
        self._put(self._unparted())
        while self._tasks:
            await asyncio.wait(self._tasks)
        failed, self._failed = self._failed, None  # its traceback refers to this
        if failed is not None:
            raise failed
        return [one for n, part in enumerate(self._parts) for one in _of_part(part, self._found[n])]

    def cancel(self) -> None:
        """What is not done is not wanted any more."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    def _unparted(self) -> list[list[Encoded]]:
        """Parts of the pictures that are in none; the last one may not be full."""
        return list(parts_of(self._images[self._parted :], self._served.part))

    def _put(self, parts: Sequence[list[Encoded]]) -> None:
        self._parted += sum(map(len, parts))
        self._waiting += range(len(self._parts), len(self._parts) + len(parts))
        self._parts += [Part(images, self._limits) for images in parts]
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._free:
            task = asyncio.ensure_future(self._run(self._waiting.popleft(), self._free.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, n: int, process: int) -> None:
        batcher = self._served.batcher
        batcher.holders += 1
        try:
            part = self._parts[n]
            if self._helpers is None or not process:
                await batcher.room(batcher.share)
                self._found[n] = await _failed(batcher.submit(part, self._gone))
            else:
                found = await self._helpers.run_images(process - 1, self._card, part.images)
                if found is None:
                    self._waiting.appendleft(n)
                    return
                self._found[n] = found
            self._free.append(process)
        except Exception as error:
            self._failed = error
            self._waiting.clear()
        finally:
            batcher.holders -= 1
            self._go_on()


def _same(one: Encoded, other: Encoded) -> bool:
    return one is other


def _of_part(part: Part, found: Timed | Exception) -> Iterator[Timed | Exception]:
    """The results of its pictures."""
    if isinstance(found, Exception):
        return repeat(found, len(part.images))
    rows, *times = found
    return (row if isinstance(row, Exception) else Timed(row, *times) for row in rows)


async def _failed(answer: "asyncio.Future[Timed]") -> Timed | Exception:
    """The result, or why this part has none."""
    try:
        return await answer
    except Exception as error:
        return error
