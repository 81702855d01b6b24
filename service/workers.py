"""The processes that share the work of small requests: one interpreter keeps only one core busy.

The first process does everything. The others have the same models and answer hot requests for them, on connections that
the first one gives them; a connection that asks for anything else comes back with that request. What they count is
added up in the first one. There are such processes only while every model is quick on the CPU: other nets use all cores
from one process.
"""

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from models.errors import FocalserveError
from service.channel import Channel
from service.protocol import CONNECTION, Protocol, Share
from service.runtime import CPU
from service.settings import usable_cores
from service.state import ServiceState
from service.sums import Sums, added

log = logging.getLogger("focalserve")
TOLD = b"j"
"""A message with this kind is JSON: something to do, or what came of it."""
ENDED = b"x"
"""A message with this kind says that a connection has ended."""
QUICK = re.compile(rb"POST (?:/predict|/v2/models/[^/?% ]+(?:/versions/[^/?% ]+)?/infer)[? ]")
"""How a request begins that any process may answer; names that are percent-encoded are for the first."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_MOST = 4
_PATIENCE = 1.0
"""Seconds that a scrape waits for the numbers of a busy process, before it takes the last ones."""
_LONGEST_PAUSE = 60.0


class Worker:
    """One of the other processes, seen from the first.

    Args:
        settings: of the service, as JSON.
        on_connection: takes a connection that comes back: the file of its socket, and what was read.
        on_end: called when the process has ended.
    """

    def __init__(
        self, settings: str, on_connection: Callable[[int, bytes], None], on_end: Callable[["Worker"], None]
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            file = theirs.fileno()
            command = [sys.executable, "-m", "service.worker", str(file), settings]
            self._process = subprocess.Popen(command, pass_fds=[file])
        self.channel = Channel(ours, self._on_message, self._on_channel_end)
        self.connections = 0
        self.ready = False
        self.ended = asyncio.Event()
        self.sums = Sums()
        self._on_connection = on_connection
        self._on_end = on_end
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._marks = count(1)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, what: str, **more: Any) -> Any:
        """Has the process do something; what came of it.

        Raises:
            FocalserveError: it could not, or has ended.
        """
        if self.ended.is_set():
            raise FocalserveError("the process has ended")
        mark = next(self._marks)
        answer = self._asked[mark] = asyncio.get_running_loop().create_future()
        self.tell(what, mark=mark, **more)
        try:
            return await answer
        finally:
            self._asked.pop(mark, None)

    def tell(self, what: str, **more: Any) -> None:
        """Has the process do something of which nothing comes."""
        self.channel.send(TOLD + json.dumps({"do": what, **more}).encode())

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def _on_message(self, message: bytes, file: int | None) -> None:
        kind, data = message[:1], message[1:]
        if kind == ENDED:
            self.connections -= 1
        elif kind == CONNECTION and file is not None:
            self.connections -= 1
            self._on_connection(file, data)
        elif kind == TOLD:
            said = json.loads(data)
            if "sums" in said:
                self.sums = Sums.model_validate(said["sums"])
            waiting = self._asked.get(said.get("mark"))
            if waiting is not None and not waiting.done():
                if "error" in said:
                    waiting.set_exception(FocalserveError(said["error"]))
                else:
                    waiting.set_result(said["result"])

    def _on_channel_end(self) -> None:
        self.ready = False
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(FocalserveError("the process has ended"))
        self._reaping = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        code = await asyncio.to_thread(self._process.wait)
        log.debug("process %d ended with %d", self.pid, code)
        self.ended.set()
        self._on_end(self)


class Workers(Share):
    """All of them. Needs a running event loop from `follow` on.

    Args:
        state: of the service.
        on_connection: takes a connection that comes back: the file of its socket, and what was read.
    """

    def __init__(self, state: ServiceState, on_connection: Callable[[int, bytes], None]) -> None:
        self._state = state
        self._on_connection = on_connection
        self._helping: list[Worker] = []
        self._leaving: list[Worker] = []
        self._past = Sums()
        self._own = 0
        self._lock = asyncio.Lock()
        self._stopping = False
        self._pause = 1.0
        self._tasks: set[asyncio.Task[None]] = set()

    def elsewhere(self, connection: Protocol, data: bytes) -> Channel | None:
        """A connection whose first small request comes stays where the fewest are, preferably here."""
        if connection.settled or QUICK.match(data) is None or not _alone(data):
            return None
        connection.settled = True
        ready = [worker for worker in self._helping if worker.ready]
        best = min(ready, key=lambda worker: worker.connections, default=None)
        if best is None or best.connections >= self._own:
            self._own += 1
            return None
        best.connections += 1
        return best.channel

    def lost(self, connection: Protocol) -> None:
        """One fewer here."""
        if connection.settled and not connection.moved:
            self._own -= 1

    def back(self) -> None:
        """A connection has come back."""
        self._own += 1

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
                self._helping.append(Worker(settings, self._on_connection, self._ended))
            new, folders = [one for one in self._helping if not one.ready], self._state.catalog.folders()
            await asyncio.gather(*(self._take(one, "begin", models=folders) for one in new))
            if any(one.ready for one in new):
                log.info("%d processes answer requests for quick models", 1 + len(self._helping))

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

    def _wanted(self) -> int:
        """How many others there should be."""
        served = self._state.catalog.all()
        if not served or not all(one.quick and one.device.provider == CPU for one in served):
            return 0
        if not hasattr(socket, "SOCK_SEQPACKET"):
            return 0
        return (self._state.settings.workers or min(_MOST, usable_cores())) - 1

    async def _take(self, worker: Worker, what: str, **more: Any) -> None:
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
            worker.ready = True
            self._pause = 1.0

    def _dismiss(self, worker: Worker) -> None:
        """Gives it no more connections; those it has come back with their next request, and then it ends."""
        worker.ready = False
        if worker in self._helping:
            self._helping.remove(worker)
            if not worker.ended.is_set():
                self._leaving.append(worker)
                worker.tell("leave")

    def _ended(self, worker: Worker) -> None:
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

    async def _count(self, worker: Worker) -> None:
        try:
            await asyncio.wait_for(worker.ask("count"), _PATIENCE)
        except (FocalserveError, TimeoutError):
            log.warning("process %d did not say what it has counted; its last numbers stand", worker.pid)


def _alone(data: bytes) -> bool:
    """Whether these bytes are one request or its beginning, with its head, and nothing of another."""
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end)
    return end >= 4 and length is not None and len(data) <= end + int(length[1])
