"""A request whose body did not come in one read with its head: the rest is read to where it stays.

uvicorn passes a body on in parts, each of which the parser copies and a task is woken for; of 40 MB that is a third of
what computing their loss takes. A body of known length needs no parser: the kernel can write it where it is wanted.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from starlette.types import Message

_LEFTOVER = 64 * 1024


class ArrivingRequest(asyncio.BufferedProtocol):
    """To asyncio a connection's protocol until the body is there, to uvicorn its cycle, to `Call` the body's source.

    Args:
        protocol: the connection's own; it has `finish_body()`, and takes the rest of the connection after the body.
        parts: of the body, which came with the head.
        length: of the body, more than the parts have.
        continues: whether the client waits for leave to send it (`Expect: 100-continue`).
    """

    sees_leaving: ClassVar[bool] = True

    def __init__(self, protocol: Any, parts: Sequence[bytes], length: int, continues: bool) -> None:
        # numpy asks for large pages, which saves page faults; bytes that are not sent take no memory.
        self._memory = np.empty(length, np.uint8).data
        self._length = length
        self._protocol = protocol
        self._filled = 0
        self._continues = continues
        self.watch: Callable[[memoryview], int] | None = None
        """Is shown the body while it comes, from its first byte; says with how many bytes it wants to see it again."""
        self._shown_at = 0
        self.message_event = asyncio.Event()
        """uvicorn sets it when the client is gone."""
        self.more_body = True
        self.disconnected = False
        self.keep_alive = not continues  # without leave the client may send its next request instead of the body
        self.response_complete = False
        self.last = False
        """Whether the connection ends with the rest of the body, which is passed over."""
        for part in parts:
            self._memory[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    async def receive(self) -> Message:
        """The whole body as one message, or that the client is gone."""
        if self._continues:
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._continues, self.keep_alive = False, True
        while self.more_body and not self.disconnected:
            self.message_event.clear()
            await self.message_event.wait()
        if self.disconnected:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._memory, "more_body": False}

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; of a request that is answered already, nowhere."""
        if self.response_complete:
            return memoryview(bytearray(min(_LEFTOVER, self._length - self._filled)))
        return self._memory[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        self._filled += nbytes
        if self._filled == self._length:
            self.more_body = False
            self.message_event.set()
            if self.last:
                self._protocol.transport.close()
                return
            self._protocol.finish_body()
            if self.response_complete:
                self.forget()
        elif self.watch is not None and self._filled >= self._shown_at:
            self._shown_at = self.watch(self._memory[: self._filled])

    def forget(self) -> None:
        """The answer is there: the body goes, and the circle of references once nothing more of it can come."""
        self._memory = memoryview(b"")
        self.watch = None
        if self.disconnected or not self.more_body:
            self._protocol = None

    def eof_received(self) -> None:
        """The client sends no more."""
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone before its body was there."""
        self._protocol.connection_lost(exc)
        if self.response_complete:
            self._protocol = None
