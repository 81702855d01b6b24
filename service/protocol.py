"""uvicorn's HTTP/1.1 with a shorter way for hot requests that arrive whole: one call, one write, no ASGI messages.

Of a small request uvicorn's cycle of messages is a large part: an event, a task that waits for the body, two messages
back. What comes in one read needs none of it. Everything else goes uvicorn's way: bodies that are still under way,
pipelined requests, connections that close, upgrades, routes of FastAPI.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import ClassVar

import httptools
from starlette.types import Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.exchange import Header
from service.front import Front, Handler, Sealed

log = logging.getLogger("focalserve")


class WholeRequest:
    """A request that is all there: to uvicorn the connection's cycle, to `Call` where the body comes from.

    Args:
        body: all of it.
    """

    __slots__ = ("_body", "disconnected", "keep_alive", "response_complete")
    more_body: ClassVar[bool] = False
    message_event: ClassVar[asyncio.Event] = asyncio.Event()
    """uvicorn sets it for those who wait for more of the request; nobody does."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    async def receive(self) -> Message:
        """The only message."""
        return {"type": "http.request", "body": self._body, "more_body": False}


class Protocol(HttpToolsProtocol):
    """One connection. Its app is a `Front` as it is, not wrapped by uvicorn (`proxy_headers=False`)."""

    app: Front
    _held: Handler | None = None
    """What will answer the request that is held."""
    _parts: list[bytes]
    _size = 0

    def data_received(self, data: bytes) -> None:
        """What was read; a request that is held and did not end with it goes uvicorn's way."""
        super().data_received(data)
        if self._held is not None and not self.transport.is_closing():
            self._let_go()

    def on_headers_complete(self) -> None:
        """Holds a hot request until its body is there, mostly at once."""
        if self._may_hold():
            method, url = self.parser.get_method().decode("ascii"), httptools.parse_url(self.url)
            path = url.path.decode("ascii")
            self._held = self.app.handler(method, path)
            if self._held is not None:
                self._parts, self._size = [], 0
                self.scope |= {"method": method, "path": path, "raw_path": url.path, "query_string": url.query or b""}
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._held is None:
            super().on_body(body)
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > HIGH_WATER_LIMIT:
            self._let_go()

    def on_message_complete(self) -> None:
        """The body's end."""
        handler, self._held = self._held, None
        if handler is None:
            super().on_message_complete()
            return
        request = WholeRequest(b"".join(self._parts))
        self.cycle = request  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(handler, self.scope, request))  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _may_hold(self) -> bool:
        idle = (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
        parser = self.parser
        plain = parser.get_http_version() == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        return idle and plain and parser.get_method() != b"HEAD" and b"%" not in self.url

    def _let_go(self) -> None:
        self._held = None
        super().on_headers_complete()
        for part in self._parts:
            super().on_body(part)

    async def _answer(self, handler: Handler, scope: Scope, request: WholeRequest) -> None:
        """Answers; a failure of the outermost layer itself ends the connection."""
        try:
            sealed = await self.app.answer(handler, scope, request.receive)
        except BaseException as error:
            log.error("a hot route was left by an exception", exc_info=error)
            self.transport.close()
            return
        request.response_complete = True
        if sealed is not None and not request.disconnected:
            self.transport.write(_bytes_of(sealed, self.server_state.default_headers, request.keep_alive))
            if not request.keep_alive:
                self.transport.close()
        self.on_response_complete()


def _bytes_of(sealed: Sealed, before: Sequence[Header], keep_alive: bool) -> bytes:
    """An answer as it goes over the wire."""
    parts = [STATUS_LINE[sealed.status]]
    for name, value in before:
        parts += (name, b": ", value, b"\r\n")
    for name, value in sealed.headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n" if keep_alive else b"connection: close\r\n\r\n", sealed.body)
    return b"".join(parts)
