"""The outermost ASGI layer: the hot routes, request ids, header limits, the last catch, every count and span."""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from models.errors import FocalserveError
from service import oip, routes
from service.begun import Begin, Outcome
from service.errors import BadHeaders, HeadersTooLarge, NotReady, status_of
from service.exchange import Call, Reply, WholeRequest
from service.failures import failure_reply
from service.sealed import Sealed, marks, packed, seal, takes_long_to_pack
from service.state import ServiceState
from service.telemetry import trace_of

log = logging.getLogger("focalserve")
access = logging.getLogger("focalserve.access")
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32 * 1024
_CLIENT_LEFT = 499
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Handler = Callable[[ServiceState, Call], Awaitable[Reply]]
HOT: dict[tuple[str, str], Handler] = {("POST", "/predict"): routes.predict, ("POST", "/loss"): routes.loss}
AT_ONCE: dict[Handler, Begin] = {routes.predict: routes.begin_predict, oip.answer: oip.begin}
"""What answers requests of one item without a task."""


class Client(Protocol):
    """Who waits for an answer."""

    def send(self, sealed: Sealed | None) -> None:
        """Here it is; None where they have left."""
        ...

    def fail(self, error: BaseException) -> None:
        """There will be none."""
        ...


class _Ending:
    """Where the result of a request that was begun goes: its answer is made and sent then and there.

    Args:
        front: that began it.
        call: the request.
        request_id: its id.
        start: when it came, seconds of `time.perf_counter`.
        finish: makes the answer.
        client: is sent it.
    """

    __slots__ = ("_call", "_client", "_finish", "_front", "_id", "_over", "_start")

    def __init__(
        self,
        front: "Front",
        call: Call,
        request_id: str,
        start: float,
        finish: Callable[[Outcome], Reply],
        client: Client,
    ) -> None:
        self._front, self._call, self._id, self._start = front, call, request_id, start
        self._finish, self._client = finish, client
        self._over = False

    def done(self) -> bool:
        """Whether it is answered."""
        return self._over

    def gone(self) -> bool:
        """Whether the client has left."""
        return self._call.gone

    def set_result(self, result: Outcome) -> None:
        """Answers."""
        self._over = True
        reply: Reply | Exception
        try:
            reply = self._finish(result)
        except Exception as error:
            reply = error
        try:
            self._front.end(reply, self._call, self._id, self._start, self._client)
        except Exception as error:
            self._client.fail(error)

    set_exception = set_result


class Front:
    """Wraps the app: every request gets an id, every failure a body of ours, every answer is counted.

    Args:
        app: the rest, which has the routes that need no speed.
        state: of the service.
    """

    def __init__(self, app: FastAPI, state: ServiceState) -> None:
        self._app = app
        self._inner = app.build_middleware_stack()
        self._state = state
        self.most_body = state.settings.max_body_bytes
        """Bytes of a request's body, at most."""
        self._log_requests = state.settings.access_log
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._packing: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http":
            scope["app"] = self._app
            await self._inner(scope, receive, send)
            return
        handler = self.handler(scope["method"], scope["path"])
        if handler is None:
            await self._pass_on(scope, receive, send)
            return
        sealed = await self.answer(handler, scope, receive)
        if sealed is not None:
            await _send(send, sealed)

    def handler(self, method: str, path: str) -> Handler | None:
        """What answers here; None where FastAPI does."""
        found = HOT.get((method, path))
        return oip.answer if found is None and (path == "/v2" or path.startswith("/v2/")) else found

    async def answer(self, handler: Handler, scope: Scope, receive: Receive) -> Sealed | None:
        """The answer of a hot route; None where its client has left."""
        start = time.perf_counter()
        call, request_id = self._begin(scope, receive)
        try:
            _check_headers(call)
            reply = await handler(self._state, call)
        except ClientDisconnect:
            reply = None
        except (Exception, asyncio.CancelledError) as error:
            reply = self._failure(error, call, request_id)
        finally:
            call.close()
        if reply is None or call.gone:
            self._left(call, start, request_id)
            return None
        long = takes_long_to_pack(reply, call)
        reply = await asyncio.to_thread(packed, reply, call) if long else packed(reply, call)
        return self._seal(reply, call, start, request_id)

    def at_once(self, handler: Handler, scope: Scope, request: WholeRequest, client: Client) -> bool:
        """Answers a request that is all there, in this turn of the event loop or the next.

        Args:
            handler: of its route.
            scope: of ASGI.
            request: with its body.
            client: is sent the answer.

        Returns:
            Whether it will be answered; where not, nothing was done, and `answer` does it.
        """
        begin = AT_ONCE.get(handler)
        if begin is None or len(request.body) > self.most_body:
            return False
        start = time.perf_counter()
        call, request_id = self._begin(scope, request.receive)
        if b"content-encoding" in call.headers:
            return False
        try:
            _check_headers(call)
            begun = begin(self._state, call, request.body)
        except Exception as error:
            self.end(error, call, request_id, start, client)
            return True
        if begun is None:
            return False
        ending = _Ending(self, call, request_id, start, begun.finish, client)
        try:
            begun.batcher.put(begun.item, ending, ending.gone)
        except FocalserveError as error:
            ending.set_exception(error)
        return True

    def end(self, reply: Reply | Exception, call: Call, request_id: str, start: float, client: Client) -> None:
        """Sends the answer of a request that was begun; ClientDisconnect stands for a client that has left."""
        if isinstance(reply, ClientDisconnect) or call.gone:
            self._left(call, start, request_id)
            client.send(None)
            return
        if isinstance(reply, Exception):
            reply = self._failure(reply, call, request_id)
        if not takes_long_to_pack(reply, call):
            client.send(self._seal(packed(reply, call), call, start, request_id))
            return
        later = asyncio.ensure_future(self._send_later(reply, call, request_id, start, client))
        self._packing.add(later)
        later.add_done_callback(self._packing.discard)

    async def _send_later(self, reply: Reply, call: Call, request_id: str, start: float, client: Client) -> None:
        """Sends an answer that takes long to compress."""
        try:
            client.send(self._seal(await asyncio.to_thread(packed, reply, call), call, start, request_id))
        except BaseException as error:
            client.fail(error)

    def _seal(self, reply: Reply, call: Call, start: float, request_id: str) -> Sealed:
        """The answer with all its headers, counted."""
        self._count(call, reply.status, start, request_id)
        return seal(reply, request_id)

    def _left(self, call: Call, start: float, request_id: str) -> None:
        """The client has left."""
        self._state.metrics.cancelled.inc()
        self._count(call, _CLIENT_LEFT, start, request_id)

    def _begin(self, scope: Scope, receive: Receive) -> tuple[Call, str]:
        """The request, and its id."""
        call = Call(scope, receive)
        request_id = _given_id(call.headers) or f"{self._prefix}-{next(self._numbers):08x}"
        scope.setdefault("state", {})["request_id"] = request_id
        return call, request_id

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app answer."""
        start, status = time.perf_counter(), 0
        call, request_id = self._begin(scope, receive)
        scope["app"] = self._app

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *marks(request_id)]
            await send(message)

        try:
            _check_headers(call)
            await self._inner(scope, receive, marked)
        except ClientDisconnect:
            status = status or _CLIENT_LEFT
        except (Exception, asyncio.CancelledError) as error:
            if status:
                raise
            reply = self._failure(error, call, request_id)
            status = reply.status
            await _send(send, seal(reply, request_id))
        self._count(call, status, start, request_id)

    def _failure(self, error: Exception | asyncio.CancelledError, call: Call, request_id: str) -> Reply:
        if isinstance(error, asyncio.CancelledError):  # uvicorn has waited for as long as it may
            error = NotReady("the service is stopping")
        if not isinstance(error, FocalserveError):
            log.exception("request %s failed", request_id)
        elif status_of(error)[0] == 500:
            log.error("request %s: %s", request_id, error, exc_info=error)
        reply = failure_reply(error, request_id, is_oip=call.path.startswith("/v2"))
        if reply.status == 429:
            self._state.metrics.rejected.labels("queue_full").inc()
        return reply

    def _count(self, call: Call, status: int, start: float, request_id: str) -> None:
        took, scope = time.perf_counter() - start, call.scope
        route = scope.get("focalserve.route") or getattr(scope.get("route"), "path", None)
        name = route or (scope["path"] if (scope["method"], scope["path"]) in HOT else "other")
        self._state.metrics.answered(name, status, took)
        if self._state.telemetry is not None:
            self._state.telemetry.record(scope, name, status, start, call.stages)
        if self._log_requests:
            access.info("%s %s %s %.1f ms %s", scope["method"], name, status, took * 1e3, request_id)


def _check_headers(call: Call) -> None:
    headers = call.scope["headers"]
    if len(headers) > _MOST_HEADERS or sum([len(name) + len(value) for name, value in headers]) > _MOST_HEADER_BYTES:
        raise HeadersTooLarge(f"at most {_MOST_HEADERS} headers of {_MOST_HEADER_BYTES} bytes in all")
    if b"host" not in call.headers and call.scope.get("http_version") == "1.1":
        raise BadHeaders("the Host header is missing")


def _given_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The caller's own name for the request: its X-Request-Id, or the trace it belongs to (W3C Trace Context)."""
    name = headers.get(b"x-request-id")
    if name is not None and _SAFE_ID.fullmatch(name):
        return name.decode("ascii")
    return trace_of(headers[b"traceparent"]) if b"traceparent" in headers else None


async def _send(send: Send, sealed: Sealed) -> None:
    await send({"type": "http.response.start", "status": sealed.status, "headers": sealed.headers})
    await send({"type": "http.response.body", "body": sealed.body})
