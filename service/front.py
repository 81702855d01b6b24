"""The outermost ASGI layer: request ids, header limits, the last catch, and a count of every answer."""

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PROBLEM_TYPE, problem
from service.metrics import Metrics

log = logging.getLogger("focalserve")
access = logging.getLogger("focalserve.access")
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32 * 1024
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Front:
    """Wraps the app: every request gets an id, every failure a body of ours, every answer is counted.

    Args:
        app: the rest.
        metrics: where answers are counted.
        log_requests: a log line per request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log_requests: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, request_id)
            await send(message)

        refused = _refused(scope)
        try:
            if refused is not None:
                await _answer(counted, refused[0], "bad-headers", refused[1], request_id)
            else:
                await self._app(scope, receive, counted)
        except ClientDisconnect:
            status = status or 499
            self._metrics.cancelled.inc()
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise
            await _answer(counted, 500, "internal-error", "an unexpected failure; it has been logged", request_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - start)
            if self._log_requests:
                took = (time.perf_counter() - start) * 1e3
                access.info("%s %s %s %.1f ms %s", scope["method"], route, status, took, request_id)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return uuid.uuid4().hex


def _refused(scope: Scope) -> tuple[int, str] | None:
    headers = scope["headers"]
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > _MOST_HEADER_BYTES:
        return 431, f"at most {_MOST_HEADERS} headers of {_MOST_HEADER_BYTES} bytes in all"
    if scope.get("http_version") == "1.1" and not any(name == b"host" for name, _ in headers):
        return 400, "the Host header is missing"
    return None


def _add_headers(message: MutableMapping[str, Any], request_id: str) -> None:
    message["headers"] = [
        *message.get("headers", []),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]


async def _answer(send: Send, status: int, code: str, detail: str, request_id: str) -> None:
    body = to_json(problem(status, code, detail, request_id))
    headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
