"""Connections to a server in this process, written to and read byte by byte."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.connections import config_of
from service.exchange import WholeRequest
from service.front import Client, Front, Handler
from service.protocol import Share
from service.sealed import Sealed
from service.state import ServiceState
from tests.serving import SIZE, Json, pictures, png_of, settings_of, write_linear

IMAGE = png_of(pictures(1, SIZE)[0])
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: %d\r\n" % len(IMAGE)
WHOLE = HEAD + b"\r\n" + IMAGE


class Watched(Front):
    """Counts the requests that come as ASGI messages; may fail in the outermost layer, or say nothing."""

    messages = 0
    broken = False
    silent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.messages += scope["type"] == "http"
        await super().__call__(scope, receive, send)

    async def answer(self, handler: Handler, scope: Scope, receive: Receive) -> Sealed | None:
        if self.broken:
            raise KeyError("broken")
        return None if self.silent else await super().answer(handler, scope, receive)

    def at_once(self, handler: Handler, scope: Scope, request: WholeRequest, client: Client) -> bool:
        if self.broken:
            raise KeyError("broken")
        return not self.silent and super().at_once(handler, scope, request, client)


class Answer(NamedTuple):
    """A response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body)
        return found


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *parts: bytes) -> None:
        """Each part in a packet of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0.002)

    async def read(self, body: bool = True) -> Answer:
        """The next answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:-2])
            length = int(headers.get("content-length", "0")) if body else 0
            return Answer(int(head[0].split()[1]), headers, await self.reader.readexactly(length))

    @property
    def name(self) -> tuple[str, int]:
        """The address that the server sees."""
        found: tuple[str, int] = self.writer.get_extra_info("sockname")
        return found

    async def closed(self) -> bool:
        """Whether the server has hung up, and said nothing before."""
        async with asyncio.timeout(10):
            return await self.reader.read() == b""


class Site(NamedTuple):
    """A running server."""

    port: int
    front: Watched
    server: uvicorn.Server
    task: asyncio.Task[None]
    lines: list[Line]
    state: ServiceState

    async def connect(self) -> Line:
        self.lines.append(Line(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.lines[-1]

    async def stop(self) -> None:
        self.server.should_exit = True
        async with asyncio.timeout(20):
            await self.task


@asynccontextmanager
async def site(folder: Path, wait: float = 0.0, **values: Any) -> AsyncGenerator[Site]:
    """A server of a linear model on a port of its own, which answers an image alone after `wait` milliseconds.

    Args:
        folder: for the model.
        wait: as said.
        values: more settings.
    """
    write_linear(folder, ["a", "b"])
    app = create_app(settings_of(models=folder, max_wait_ms=wait, port=0, **values))
    front = Watched(app, app.state.service)
    server = uvicorn.Server(config_of(front, app.state.service.settings, Share(), lifespan=True))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with asyncio.timeout(20), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
    front.messages = 0
    found = Site(port, front, server, task, [], app.state.service)
    yield found
    await found.stop()
    for line in found.lines:
        line.writer.close()
        with contextlib.suppress(ConnectionError):
            await line.writer.wait_closed()
