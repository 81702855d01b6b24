"""The outermost ASGI layer: the hot routes, request ids, header limits, the last catch, every count and span."""

import asyncio
import gzip
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from models.errors import FocalserveError
from service import oip, routes
from service.errors import BadHeaders, HeadersTooLarge, status_of
from service.exchange import Call, Header, Reply
from service.failures import failure_reply
from service.state import ServiceState
from service.telemetry import trace_of

log = logging.getLogger("focalserve")
access = logging.getLogger("focalserve.access")
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32 * 1024
_GZIP_FROM = 4096
_GZIP_ELSEWHERE = 64 * 1024
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)
_CLIENT_LEFT = 499
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Handler = Callable[[ServiceState, Call], Awaitable[Reply]]
HOT: dict[tuple[str, str], Handler] = {("POST", "/predict"): routes.predict, ("POST", "/loss"): routes.loss}


class Sealed(NamedTuple):
    """An answer with all its headers, ready to be sent.

    Attributes:
        status: of HTTP.
        headers: all but those that uvicorn adds.
        body: its bytes.
    """

    status: int
    headers: list[Header]
    body: bytes


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
        except Exception as error:
            reply = self._failure(error, call, request_id)
        finally:
            call.close()
        if reply is None or call.gone:
            self._state.metrics.cancelled.inc()
            self._count(call, _CLIENT_LEFT, start, request_id)
            return None
        reply = await _packed(reply, call)
        self._count(call, reply.status, start, request_id)
        return _sealed(reply, request_id)

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
                message["headers"] = [*message.get("headers", []), *_marks(request_id)]
            await send(message)

        try:
            _check_headers(call)
            await self._inner(scope, receive, marked)
        except ClientDisconnect:
            status = status or _CLIENT_LEFT
        except Exception as error:
            if status:
                raise
            reply = self._failure(error, call, request_id)
            status = reply.status
            await _send(send, _sealed(reply, request_id))
        self._count(call, status, start, request_id)

    def _failure(self, error: Exception, call: Call, request_id: str) -> Reply:
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
    if len(headers) > _MOST_HEADERS or sum(map(len, itertools.chain.from_iterable(headers))) > _MOST_HEADER_BYTES:
        raise HeadersTooLarge(f"at most {_MOST_HEADERS} headers of {_MOST_HEADER_BYTES} bytes in all")
    if b"host" not in call.headers and call.scope.get("http_version") == "1.1":
        raise BadHeaders("the Host header is missing")


def _given_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The caller's own name for the request: its X-Request-Id, or the trace it belongs to (W3C Trace Context)."""
    name = headers.get(b"x-request-id")
    if name is not None and _SAFE_ID.fullmatch(name):
        return name.decode("ascii")
    return trace_of(headers[b"traceparent"]) if b"traceparent" in headers else None


async def _packed(reply: Reply, call: Call) -> Reply:
    """The reply, compressed where the client takes gzip and it is worth it."""
    if len(reply.body) < _GZIP_FROM or not _GZIP.search(call.header(b"accept-encoding")):
        return reply
    long = len(reply.body) > _GZIP_ELSEWHERE
    body = await asyncio.to_thread(gzip.compress, reply.body, 1) if long else gzip.compress(reply.body, 1)
    headers = [*reply.headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    return Reply(body, reply.media_type, reply.status, headers)


def _marks(request_id: str) -> tuple[Header, Header]:
    """What every answer says."""
    return (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")


def _sealed(reply: Reply, request_id: str) -> Sealed:
    headers = [
        (b"content-type", reply.media_type),
        (b"content-length", b"%d" % len(reply.body)),
        *_marks(request_id),
        *reply.headers,
    ]
    return Sealed(reply.status, headers, reply.body)


async def _send(send: Send, sealed: Sealed) -> None:
    await send({"type": "http.response.start", "status": sealed.status, "headers": sealed.headers})
    await send({"type": "http.response.body", "body": sealed.body})
