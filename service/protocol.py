"""uvicorn's HTTP/1.1 with a shorter way for hot requests that arrive whole: one call, one write, no ASGI messages.

Of a small request uvicorn's cycle of messages is a large part: an event, a task that waits for the body, two messages
back. What comes in one read needs none of it, and the rest of a body whose length is known is read past the parser.
Everything else goes uvicorn's way: chunked bodies, pipelined requests, connections that close, upgrades, routes of
FastAPI.

Where several processes share the work (`service.workers`), a connection may go to another one before a request of it is
read: its socket and the bytes that came go together.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.arriving import ArrivingRequest
from service.channel import Channel
from service.exchange import WHOLE, Header, WholeRequest
from service.failures import CLOSE
from service.front import Front, Handler
from service.repeated import Head, head_of
from service.sealed import Sealed

log = logging.getLogger("focalserve")
_STALLED = 408
CONNECTION = b"c"
"""A message with this kind carries a connection: what was read of it, and its socket."""


class Share:
    """Which process answers on which connection. This says: the one that has it."""

    def elsewhere(self, connection: "Protocol", data: bytes) -> Channel | None:
        """Where the connection belongs by what it says first, when no request of it is under way; None: here."""
        return None

    def taken(self, connection: "Protocol") -> None:
        """A connection has come from elsewhere."""

    def lost(self, connection: "Protocol") -> None:
        """A connection has ended, or has gone elsewhere."""


class Protocol(HttpToolsProtocol):
    """One connection. Its app is a `Front` as it is, not wrapped by uvicorn (`proxy_headers=False`).

    Args:
        early: what was read of it elsewhere.
        share: who else may answer on it.
        options: uvicorn's.
    """

    app: Front
    settled = 0
    """How often there had been somewhere new to go when it was decided where it belongs; 0: it was not."""
    moved = False
    """Whether it has gone elsewhere."""
    _held: Handler | None = None
    """What will answer the request that is held."""
    _parts: list[bytes]
    _size = 0
    _inside = False
    """Whether the parser is within a request."""
    _read = b""
    """What is being read, where it begins with a request."""
    _known: Head | None = None
    """The head of the last request that came whole."""
    _idle_since = 0.0
    """When the last answer was sent, by the loop's clock."""

    def __init__(self, *, early: bytes = b"", share: Share, **options: Any) -> None:
        super().__init__(**options)
        self._early = early
        self._share = share

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if self._early:
            self.data_received(self._early)
            self._early = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over, here."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._share.lost(self)

    def data_received(self, data: bytes) -> None:
        """What was read; of a request that is held and did not end with it the rest is read past the parser."""
        if not self._inside and (self.cycle is None or self.cycle.response_complete):
            if self._moved(data) or self._repeated(data):
                return
            self._read = data
        super().data_received(data)
        self._read = b""
        if self._held is not None and not self.transport.is_closing():
            length = self._length()
            if length:
                self._begin_arriving(self._held, length)
            else:
                self._let_go()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._inside = True
        super().on_message_begin()

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
        if self._size > WHOLE and not self._length():
            self._let_go()

    def on_message_complete(self) -> None:
        """The body's end."""
        self._inside = False
        handler, self._held = self._held, None
        if handler is None:
            super().on_message_complete()
            return
        request, self._parts = WholeRequest(b"".join(self._parts)), []
        scope: Scope = self.scope  # type: ignore[assignment]
        self._known = head_of(self._read, self._size, handler, scope) if self._read else None
        self._take(handler, scope, request)

    def on_response_complete(self) -> None:
        """An answer was sent. One timer serves many of them: it looks at when the last one was."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None or self.pipeline or self.flow.read_paused:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection where nothing was asked for long enough."""
        self.timeout_keep_alive_task = None
        if not self.cycle.response_complete:
            return  # its answer begins another
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0.0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def finish_body(self) -> None:
        """A body is there whose rest was read past the parser; what comes now is the next request."""
        self.transport.pause_reading()
        self.transport.set_protocol(self)
        self.transport.resume_reading()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._inside = False

    def _repeated(self, data: bytes) -> bool:
        """Answers what begins as the last whole request did, past the parser."""
        found = self._known.repeated(data) if self._known is not None and not self.flow.write_paused else None
        if self._known is None or found is None:
            return False
        scope, body = found
        scope["state"] = self.app_state.copy()
        self.scope = scope  # type: ignore[assignment]
        self._take(self._known.handler, scope, WholeRequest(body))
        return True

    def _take(self, handler: Handler, scope: Scope, request: WholeRequest) -> None:
        """Answers a request that is all there."""
        self.cycle = request  # type: ignore[assignment]
        client = _Client(self, request)
        try:
            if not self.app.at_once(handler, scope, request, client):
                self._begin(handler, request)
        except Exception as error:
            client.fail(error)

    def _begin_arriving(self, handler: Handler, length: int) -> None:
        """Has the rest of the body read to where it stays."""
        self._held = None
        request = ArrivingRequest(self, self._parts, length, self.expect_100_continue)
        self._parts = []
        self.transport.pause_reading()
        self.transport.set_protocol(request)
        self.transport.resume_reading()
        self._begin(handler, request)

    def _begin(self, handler: Handler, request: WholeRequest | ArrivingRequest) -> None:
        self.cycle = request  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(handler, self.scope, request))  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _length(self) -> int:
        """Of a body that is under way; 0 where it is not known, or too long to be received."""
        announced = next((value for name, value in self.headers if name == b"content-length"), b"")
        length = int(announced) if announced.isdigit() and len(announced) < 16 else 0
        return length if length <= self.app.most_body else 0

    def _moved(self, data: bytes) -> bool:
        """Gives the connection to another process, where it belongs there."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        where = self._share.elsewhere(self, data)
        if where is None:
            return False
        file = os.dup(self.transport.get_extra_info("socket").fileno())
        self.moved = True
        self._unset_keepalive_if_required()
        self.transport.abort()
        where.send(CONNECTION + data, file)
        return True

    def _may_hold(self) -> bool:
        parser = self.parser
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_method() != b"HEAD"
            and b"%" not in self.url
        )

    def _let_go(self) -> None:
        self._held = None
        super().on_headers_complete()
        for part in self._parts:
            super().on_body(part)

    async def _answer(self, handler: Handler, scope: Scope, request: WholeRequest | ArrivingRequest) -> None:
        """Answers; a failure of the outermost layer itself ends the connection."""
        client = _Client(self, request)
        try:
            client.send(await self.app.answer(handler, scope, request.receive))
        except BaseException as error:
            client.fail(error)


class _Client:
    """Who is at the other end of a connection, and waits for the answer to a request."""

    __slots__ = ("_protocol", "_request")

    def __init__(self, protocol: Protocol, request: WholeRequest | ArrivingRequest) -> None:
        self._protocol = protocol
        self._request = request

    def send(self, sealed: Sealed | None) -> None:
        """Writes the answer; None where there is nobody to read it."""
        protocol, request = self._protocol, self._request
        request.response_complete = True
        ends = sealed is None or not request.keep_alive or CLOSE in sealed.headers
        later = False
        if isinstance(request, ArrivingRequest):
            request.forget()
            # Who still sends would hear of a closed connection instead of the answer; who has stalled does not send.
            later = request.last = ends and request.more_body and sealed is not None and sealed.status != _STALLED
        if sealed is not None and not request.disconnected:
            protocol.transport.write(_bytes_of(sealed, protocol.server_state.default_headers, ends))
        if ends and not (later and request.keep_alive):
            protocol.transport.close()
        protocol.on_response_complete()

    def fail(self, error: BaseException) -> None:
        """A failure of the outermost layer itself ends the connection."""
        log.error("a hot route was left by an exception", exc_info=error)
        self._protocol.transport.close()


def _bytes_of(sealed: Sealed, before: Sequence[Header], ends: bool) -> bytes:
    """An answer as it goes over the wire."""
    parts = [STATUS_LINE[sealed.status]]
    for name, value in before:
        parts += (name, b": ", value, b"\r\n")
    for name, value in sealed.headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"connection: close\r\n\r\n" if ends and CLOSE not in sealed.headers else b"\r\n", sealed.body)
    return b"".join(parts)
