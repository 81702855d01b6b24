"""One HTTP request on bare ASGI, and what answers it. The hot routes are functions from the one to the other."""

import asyncio
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from service.arriving import ArrivingRequest
from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest, RequestTimeout, UnsupportedMedia

JSON = b"application/json"
_MOST_PARAMETERS = 100
_SHORT_GZIP = 1024
WHOLE = 1 << 16
"""Bytes of a body at most that is held until it is all there; more, and uvicorn pauses reading."""


Buffer = bytes | memoryview
"""The bytes of a body."""
Watch = Callable[[Buffer], int]
"""Is shown a body from its first byte as far as it is there; says with how many bytes it wants to see it again."""
Header = tuple[bytes, bytes]
"""A header's name, lower case, and its value."""
Stage = tuple[str, float, float]
"""A part of a request's work: its name, when it began and when it ended (seconds of `time.perf_counter`)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        body: its bytes.
        media_type: of the body.
        status: HTTP status.
        headers: more headers, lower case.
    """

    body: bytes
    media_type: bytes = JSON
    status: int = 200
    headers: list[Header] = field(default_factory=list)


class WholeRequest:
    """A request that is all there: to uvicorn the connection's cycle, to `Call` where the body comes from.

    Args:
        body: all of it.
    """

    __slots__ = ("body", "disconnected", "keep_alive", "response_complete")
    more_body: ClassVar[bool] = False
    sees_leaving: ClassVar[bool] = True
    """Whether `disconnected` tells that the client has left, without being asked for another message."""
    message_event: ClassVar[asyncio.Event] = asyncio.Event()
    """uvicorn sets it for those who wait for more of the request; nobody does."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    async def receive(self) -> Message:
        """The only message."""
        return {"type": "http.request", "body": self.body, "more_body": False}


class Ahead(Protocol):
    """What was begun for a request before all of it was there."""

    def cancel(self) -> None:
        """It is not wanted any more."""


class Call:
    """One request.

    Args:
        scope: of ASGI.
        receive: of ASGI.

    Attributes:
        ahead: what was begun before all of it was there; `close` ends it.
    """

    __slots__ = ("_cycle", "_leaving", "_receive", "ahead", "headers", "method", "path", "scope", "stages")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self.stages: list[Stage] = []
        self.ahead: Ahead | None = None
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        # uvicorn's own view of the request, where it is uvicorn that runs us.
        self._cycle: Any = getattr(receive, "__self__", None)
        self._leaving: asyncio.Future[Message] | None = None

    def header(self, name: bytes) -> str:
        """A header's value, the last where it is repeated; "" where it is absent."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def gone(self) -> bool:
        """Whether the client has left, as far as the server tells without being asked to wait (uvicorn does)."""
        if self._leaving is not None and self._leaving.done():
            return True
        return getattr(self._cycle, "disconnected", False)

    def close(self) -> None:
        """Ends the watch for the client's leaving, and what was begun; the answer is there."""
        if self._leaving is not None:
            self._leaving.cancel()
        if self.ahead is not None:
            self.ahead.cancel()
            self.ahead = None

    def query(self) -> dict[str, str]:
        """The query's parameters.

        Raises:
            InvalidRequest: one is given twice, or there are more than 100.
        """
        raw: bytes = self.scope["query_string"]
        if not raw:
            return {}
        if raw.count(b"&") >= _MOST_PARAMETERS:
            raise InvalidRequest(f"more than {_MOST_PARAMETERS} query parameters")
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, errors="replace")
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InvalidRequest("a query parameter is given more than once")
        return found

    async def body(self, most: int, timeout: float) -> bytes:
        """The whole body, decompressed.

        Args:
            most: bytes.
            timeout: seconds until it must be there.

        Raises:
            BodyTooLarge: more than `most` bytes, as sent or decompressed.
            RequestTimeout: it did not arrive within `timeout` seconds.
            UnsupportedMedia: a content encoding other than gzip.
            MalformedRequest: not gzip though the header says so.
            ClientDisconnect: the client has left.
        """
        return bytes(await self.binary(most, timeout))

    async def binary(self, most: int, timeout: float, watch: Watch | None = None) -> Buffer:
        """As `body`, without a copy: one that came in parts is where it was put (`service.arriving`).

        Args:
            most: as `body`.
            timeout: as `body`.
            watch: is shown the body while it comes, where it comes in parts and is not compressed.
        """
        encoding = self.header(b"content-encoding").strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise UnsupportedMedia("the content encoding is not accepted; gzip and identity are")
        announced = self.header(b"content-length")
        length = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        if length > most:
            raise BodyTooLarge(f"the body has more than {most} bytes")
        if watch is not None and encoding != "gzip" and isinstance(self._cycle, ArrivingRequest):
            self._cycle.watch = watch
        data = await self._arrived(most, timeout)
        if length and len(data) > length:
            raise MalformedRequest("the body is longer than its Content-Length")
        if len(data) > WHOLE and not getattr(self._cycle, "sees_leaving", False):
            # uvicorn has stopped reading at that size and sees no hang-up until it is asked for a message again.
            self._leaving = asyncio.ensure_future(self._receive())
        if encoding != "gzip":
            return data
        # Of few bytes many may come.
        return _gunzip(data, most) if len(data) < _SHORT_GZIP else await asyncio.to_thread(_gunzip, data, most)

    async def _arrived(self, most: int, timeout: float) -> Buffer:
        # Only a body that is not there yet needs a clock.
        if not getattr(self._cycle, "more_body", True):
            return await self._received(most)
        try:
            async with asyncio.timeout(timeout):
                return await self._received(most)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {timeout:g} s") from None

    async def _received(self, most: int) -> Buffer:
        # A join would take as long again as receiving.
        whole = io.BytesIO()
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part: Buffer = message.get("body", b"")
            size += len(part)
            if size > most:
                raise BodyTooLarge(f"the body has more than {most} bytes")
            last = not message.get("more_body", False)
            if last and size == len(part):
                return part
            whole.write(part)
            if last:
                return whole.getvalue()


def _gunzip(data: Buffer, most: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(data, most + 1)
    except zlib.error:
        raise MalformedRequest("the body is not valid gzip") from None
    if len(plain) > most:
        raise BodyTooLarge(f"the decompressed body has more than {most} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedRequest("the gzip body is cut off or followed by other data")
    return plain
