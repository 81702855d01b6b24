"""The processes that share the work of small requests: one interpreter keeps only one core busy.

The first process does everything. The others have the same models and answer hot requests for them, on connections that
the first one gives them; a connection that asks for anything else comes back with that request. Of a request with many
pictures each takes its share. What they count is added up in the first one. There are such processes only while every
model is quick on the CPU: other nets use all cores from one process.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

from models.card import ModelCard
from models.errors import FocalserveError
from service.batch import Timed
from service.channel import Channel
from service.decoding import Encoded
from service.link import Link
from service.protocol import Protocol, Share
from service.runtime import CPU
from service.state import ServiceState
from service.sums import Sums, added

log = logging.getLogger("focalserve")
QUICK = re.compile(rb"POST (?:/predict|/v2/models/[^/?% ]+(?:/versions/[^/?% ]+)?/infer)[? ]")
"""How a request begins that any process may answer; names that are percent-encoded are for the first."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_PATIENCE = 1.0
"""Seconds that a scrape waits for the numbers of a busy process, before it takes the last ones."""
_LONGEST_PAUSE = 60.0


class Workers(Share):
    """All of them. Needs a running event loop from `follow` on.

    Args:
        state: of the service.
        on_connection: takes a connection that comes back: the file of its socket, and what was read.
    """

    def __init__(self, state: ServiceState, on_connection: Callable[[int, bytes], None]) -> None:
        self._state = state
        self._on_connection = on_connection
        self._helping: list[Link] = []
        self._leaving: list[Link] = []
        self._past = Sums()
        self._own = 0
        self._round = 1
        self._lock = asyncio.Lock()
        self._stopping = False
        self._pause = 1.0
        self._tasks: set[asyncio.Task[None]] = set()

    def elsewhere(self, connection: Protocol, data: bytes) -> Channel | None:
        """Where the fewest connections are, preferably here: decided once, and anew when one more process helps."""
        if connection.settled == self._round or QUICK.match(data) is None or not _alone(data):
            return None
        self._own -= connection.settled > 0
        connection.settled = self._round
        best = min(self._ready(), key=lambda worker: worker.connections, default=None)
        if best is None or best.connections >= self._own:
            self._own += 1
            return None
        best.connections += 1
        return best.channel

    def taken(self, connection: Protocol) -> None:
        """One has come back, and stays: it asks for more than small requests."""
        connection.settled = self._round
        self._own += 1

    def lost(self, connection: Protocol) -> None:
        """One fewer here."""
        if connection.settled and not connection.moved:
            self._own -= 1

    async def follow(self, change: tuple[str, str] | None = None) -> None:
        """Makes them what they should be: as many as asked for, with the models that are served here.

        Args:
            change: `load` or `unload`, and of which model; None: the models are the same.
        """
        async with self._lock:
            if self._stopping:
                return
            wanted = self._wanted()
            if not wanted:
                for worker in list(self._helping):
                    self._dismiss(worker)
                return
            if change is not None:
                await asyncio.gather(*(self._take(one, "follow", change=change) for one in list(self._helping)))
            while len(self._helping) < wanted:
                settings = self._state.settings.model_dump_json()
                self._helping.append(Link(settings, self._on_connection, self._ended))
            new, folders = [one for one in self._helping if not one.ready], self._state.catalog.folders()
            await asyncio.gather(*(self._take(one, "begin", models=folders) for one in new))
            if any(one.ready for one in new):
                log.info("%d processes answer requests for quick models", 1 + len(self._helping))

    def ready(self) -> int:
        """How many help now."""
        return len(self._ready())

    async def run_images(self, which: int, card: ModelCard, images: Sequence[Encoded]) -> Timed | None:
        """What one of them says of pictures; None where it cannot."""
        ready = self._ready()
        return await ready[which].run_images(card, images) if which < len(ready) else None

    async def sums(self) -> list[Sums]:
        """What they have counted, and those that are no more."""
        asked = [*(worker for worker in self._helping if worker.ready), *self._leaving]
        await asyncio.gather(*(self._count(worker) for worker in asked))
        return [self._past, *(worker.sums for worker in [*self._helping, *self._leaving])]

    async def stop(self) -> None:
        """Ends them, once they have answered what they were asked."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        everyone = [*self._helping, *self._leaving]
        for worker in everyone:
            if worker in self._helping and not worker.ready:
                worker.kill()  # it has not begun
            worker.ready = False
            worker.tell("stop")
        longest = self._state.settings.grace_seconds + 2.0
        try:
            await asyncio.wait_for(asyncio.gather(*(worker.ended.wait() for worker in everyone)), longest)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """Ends them at once."""
        for worker in [*self._helping, *self._leaving]:
            worker.kill()

    def _ready(self) -> list[Link]:
        return [worker for worker in self._helping if worker.ready]

    def _wanted(self) -> int:
        """How many others there should be."""
        served = self._state.catalog.all()
        if not served or not all(one.quick and one.device.provider == CPU for one in served):
            return 0
        if not hasattr(socket, "SOCK_SEQPACKET"):
            return 0
        return self._state.settings.processes - 1

    async def _take(self, worker: Link, what: str, **more: Any) -> None:
        """Has one load what is served here; it helps from then on, or no more where it could not."""
        try:
            models = await worker.ask(what, **more)
            if models != [list(one) for one in self._state.catalog.names()]:
                raise FocalserveError("the folder of the models has changed since they were loaded; load them anew")
        except FocalserveError as error:
            if self._stopping:
                return
            log.error("process %d does not help: %s", worker.pid, error)
            self._dismiss(worker)
            self._revive()
        else:
            if not worker.ready:
                worker.ready = True
                self._round += 1
            self._pause = 1.0

    def _dismiss(self, worker: Link) -> None:
        """Gives it no more connections; those it has come back with their next request, and then it ends."""
        worker.ready = False
        if worker in self._helping:
            self._helping.remove(worker)
            if not worker.ended.is_set():
                self._leaving.append(worker)
                worker.tell("leave")

    def _ended(self, worker: Link) -> None:
        self._past = added([self._past, worker.sums.lasting()])
        if worker in self._leaving:
            self._leaving.remove(worker)
        if worker in self._helping:
            self._helping.remove(worker)
            if not self._stopping:
                log.error("process %d has ended; another takes its place", worker.pid)
                self._revive()

    def _revive(self) -> None:
        """Begins others in a while, longer each time it fails."""

        async def later() -> None:
            await asyncio.sleep(self._pause)
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
            await self.follow()

        task = asyncio.create_task(later(), name="revive")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _count(self, worker: Link) -> None:
        try:
            await asyncio.wait_for(worker.ask("count"), _PATIENCE)
        except (FocalserveError, TimeoutError):
            log.warning("process %d did not say what it has counted; its last numbers stand", worker.pid)


def _alone(data: bytes) -> bool:
    """Whether these bytes are one request or its beginning, with its head, and nothing of another."""
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end)
    return end >= 4 and length is not None and len(data) <= end + int(length[1])
