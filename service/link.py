"""One of the processes that help, seen from the first: what it is asked, and what it says."""

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Any

from models.card import ModelCard
from models.errors import FocalserveError
from service.batch import Timed
from service.channel import Channel
from service.decoding import Encoded
from service.protocol import CONNECTION
from service.shared_parts import Asked, mark_of, pack_images, unpack_rows
from service.sums import Sums

log = logging.getLogger("focalserve")
TOLD = b"j"
"""A message with this kind is JSON: something to do, or what came of it."""
IMAGES, ROWS = b"i", b"r"
"""Messages with these kinds are pictures to be run, and what came of them (`service.shared_parts`)."""
ENDED = b"x"
"""A message with this kind says that a connection has ended."""


class Link:
    """One of the other processes, seen from the first.

    Args:
        settings: of the service, as JSON.
        on_connection: takes a connection that comes back: the file of its socket, and what was read.
        on_end: called when the process has ended.
    """

    def __init__(
        self, settings: str, on_connection: Callable[[int, bytes], None], on_end: Callable[["Link"], None]
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

    async def run_images(self, card: ModelCard, images: Sequence[Encoded]) -> Timed | None:
        """What its net says of pictures; None where it could not be asked."""
        if self.ended.is_set() or card.sha256 is None:
            return None
        mark = next(self._marks)
        answer = self._asked[mark] = asyncio.get_running_loop().create_future()
        began = perf_counter()
        self.channel.send(IMAGES + pack_images(Asked(mark, (card.name, card.version, card.sha256), images)))
        try:
            rows = unpack_rows(await answer, card)
        except FocalserveError:
            return None
        finally:
            self._asked.pop(mark, None)
        return None if rows is None else Timed(rows, began, 0.0, perf_counter() - began)

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
        elif kind == ROWS:
            waiting = self._asked.get(mark_of(data))
            if waiting is not None and not waiting.done():
                waiting.set_result(data)
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
