"""`python -m service.worker FILE SETTINGS`: a process that helps the one that began it (`service.workers`)."""

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from pydantic_core import to_json

from models.errors import FocalserveError
from service.app import create_app
from service.channel import Channel
from service.connections import adopt, config_of
from service.errors import NotReady
from service.exchange import Call, Reply
from service.front import Front, Handler, access
from service.link import ENDED, IMAGES, ROWS, TOLD
from service.protocol import CONNECTION, Protocol, Share
from service.settings import LOG_FORMAT, Settings
from service.shared_parts import Asked, pack_rows, unpack_images
from service.state import ServiceState
from service.workers import QUICK

log = logging.getLogger("focalserve")


class QuickFront(Front):
    """Answers what any process may answer. Other requests get here only behind one of these in a pipeline."""

    def handler(self, method: str, path: str) -> Handler:
        """What answers here."""
        quick = QUICK.match(f"{method} {path} ".encode("utf-8", "replace"))
        return (quick and super().handler(method, path)) or _refuse


async def _refuse(state: ServiceState, call: Call) -> Reply:
    raise NotReady("this cannot be asked behind other requests in a pipeline; wait for their answers first")


class Worker(uvicorn.Server, Share):
    """Answers on connections that it is given.

    Args:
        settings: of the service.
        end: of the channel to the first process.
    """

    def __init__(self, settings: Settings, end: socket.socket) -> None:
        app = create_app(settings)
        self._end = end
        self._state: ServiceState = app.state.service
        self._leaving = False
        self._tasks: set[asyncio.Task[Any]] = set()
        super().__init__(config_of(QuickFront(app, self._state), settings, self, lifespan=False))

    def elsewhere(self, connection: Protocol, data: bytes) -> Channel | None:
        """All but hot requests goes back."""
        return self._channel if self._leaving or QUICK.match(data) is None else None

    def lost(self, connection: Protocol) -> None:
        """Tells the first process that there is one fewer."""
        if not connection.moved:
            self._channel.send(ENDED)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens to the first process alone."""
        self.servers = []
        self._channel = Channel(self._end, self._on_message, self._on_end)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was asked, and says what it has counted."""
        await super().shutdown(sockets)
        self._tell(sums=self._state.own_sums())
        await self._channel.sent()
        self._channel.close()
        await self._state.stop()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """The first process says when to stop; signals to the whole group are for that one."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        yield

    def _on_message(self, message: bytes, file: int | None) -> None:
        kind, data = message[:1], message[1:]
        if kind == CONNECTION and file is not None:
            self._begin(adopt(self, self, file, data))
        elif kind == IMAGES:
            self._begin(self._run_images(unpack_images(data)))
        elif kind == TOLD:
            asked = json.loads(data)
            self._begin(self._do(asked.pop("do"), asked.pop("mark", None), asked))

    async def _run_images(self, asked: Asked) -> None:
        """Runs pictures of a request that the first process answers."""
        rows = None
        try:
            rows = await self._state.run_for_another(asked.model, asked.images)
        except FocalserveError as error:
            log.debug("pictures are run by the first process: %s", error)
        except Exception:
            log.exception("pictures could not be run")
        self._channel.send(ROWS + pack_rows(asked.mark, rows))

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, what: str, mark: int | None, more: dict[str, Any]) -> None:
        """One thing that is asked for."""
        match what:
            case "begin":
                await self._change(mark, self._state.load_these(more["models"]))
            case "follow":
                change, name = more["change"]
                await self._change(mark, self._state.load(name) if change == "load" else self._state.unload(name))
            case "count":
                self._tell(mark=mark, result=None, sums=self._state.own_sums())
            case "leave":
                self._leaving = True
                while self.server_state.connections:
                    await asyncio.sleep(0.1)
                self.should_exit = True
            case "stop":
                self.should_exit = True

    async def _change(self, mark: int | None, change: Awaitable[None]) -> None:
        """Changes the models; tells which there are then, or why not."""
        try:
            await change
        except FocalserveError as error:
            self._tell(mark=mark, error=str(error))
        except Exception as error:
            log.exception("a model could not be loaded")
            self._tell(mark=mark, error=type(error).__name__)
        else:
            self._tell(mark=mark, result=self._state.catalog.names())

    def _tell(self, **said: Any) -> None:
        self._channel.send(TOLD + to_json(said))

    def _on_end(self) -> None:
        """The first process is gone."""
        self.force_exit = self.should_exit = True


def main(argv: Sequence[str]) -> int:
    """Helps until told to stop; the exit code."""
    file, text = argv
    settings = Settings.model_validate_json(text)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if settings.log_level == "info":  # what is loaded and why, the first process has said
        log.setLevel(logging.WARNING)
        access.setLevel(logging.INFO)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    Worker(settings, socket.socket(fileno=int(file))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
