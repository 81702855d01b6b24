"""create_app(settings): builds and wires, nothing else."""

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.errors import FocalserveError
from service import audit_routes, documented, info
from service.errors import PROBLEM_TYPE, problem
from service.failures import failure_reply
from service.front import Front
from service.openapi import add_request_schemas
from service.settings import Settings
from service.state import ServiceState, log


def create_app(settings: Settings, on_refused: Callable[[], None] = lambda: None) -> FastAPI:
    """The ASGI application. Models are loaded by its lifespan, while /healthz already answers.

    Args:
        settings: everything that can be set.
        on_refused: called when a bundle must not be served; the process should then end.
    """
    state = ServiceState(settings, on_refused)
    app: FastAPI = FastAPIOffline(
        title="focalserve",
        version=version("focalserve"),
        summary="Classify images with a focal-loss model, and find the wrong labels.",
        lifespan=_lifespan,
        exception_handlers={
            FocalserveError: _on_error,
            HTTPException: _on_http_error,
            RequestValidationError: _on_validation_error,
        },
    )
    app.state.service = state
    app.include_router(documented.router)
    app.include_router(audit_routes.router)
    app.include_router(info.router)
    _complete_openapi(app)
    # Around FastAPI's own layers, not among them: hot routes pass none of those.
    app.middleware_stack = Front(app, state)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    state: ServiceState = app.state.service
    state.start(lambda: log.info("ready %.2f s after the process began", _process_age()))
    try:
        yield
    finally:
        await state.stop()


def _complete_openapi(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        return add_request_schemas(generate())

    app.openapi = openapi  # type: ignore[method-assign]


async def _on_error(request: Request, error: Exception) -> Response:
    reply = failure_reply(error, request.state.request_id, is_oip=False)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, reply.media_type.decode())


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http-error")
    detail = {404: "there is no such path", 405: "that path has no such method"}.get(error.status_code, "refused")
    body = to_json(problem(error.status_code, code, detail, request.state.request_id))
    headers = {key: value for key, value in (error.headers or {}).items() if key.lower() == "allow"}
    return Response(body, error.status_code, headers, PROBLEM_TYPE)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    body = to_json(problem(422, "invalid-request", "a path or query parameter does not fit", request.state.request_id))
    return Response(body, 422, None, PROBLEM_TYPE)


def _process_age() -> float:
    """Seconds since this process began, by the kernel's account where it gives one."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            began = int(file.read().rsplit(") ", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return time.process_time()
