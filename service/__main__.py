"""`python -m service` and `focalserve serve`: settings, then uvicorn with a drain."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from models.errors import InvalidInput
from service.app import create_app
from service.connections import adopt, config_of, new_protocol
from service.front import Front
from service.protocol import Protocol
from service.settings import LOG_FORMAT, Settings, load_settings
from service.state import ServiceState
from service.workers import Workers

log = logging.getLogger("focalserve")
EXIT_USAGE = 2
EXIT_REFUSED = 3
_LISTENERS = 16
"""New connections that are taken in a turn of the event loop, at most."""


class Server(uvicorn.Server):
    """Uvicorn that drains: SIGTERM makes /readyz say 503 while requests are still answered, then it stops.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refused = False
        self._adopting: set[asyncio.Task[None]] = set()
        app = create_app(settings, self._end_refused)
        self._state: ServiceState = app.state.service
        self._workers = self._state.images.helpers = Workers(self._state, self._on_connection)
        front = app.middleware_stack
        assert isinstance(front, Front)  # FastAPI's own first steps are not for hot routes
        super().__init__(config_of(front, settings, self._workers, lifespan=True))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, several times on one socket: a turn of uvloop takes one new connection of each listener."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        listening = [one.fileno() for server in self.servers for one in server.sockets]
        for file in listening * (_LISTENERS - 1):
            copy = socket.socket(fileno=os.dup(file))
            self.servers.append(await loop.create_server(self._protocol, sock=copy, backlog=self.config.backlog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was asked, here and in the processes that help."""
        began = time.monotonic()
        await self._workers.stop()
        took = time.monotonic() - began
        self.config.timeout_graceful_shutdown = max(1, round(self._settings.grace_seconds - took))
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn then leaves this out
            await self.lifespan.shutdown()

    def _protocol(self) -> Protocol:
        return new_protocol(self, self._workers)

    def _on_connection(self, file: int, data: bytes) -> None:
        """A connection that comes back from a process that helps, since it asks for what that one does not do."""
        task = asyncio.create_task(adopt(self, self._workers, file, data))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    @property
    def exit_code(self) -> int:
        """0 after a stop that was asked for, 3 where a bundle was refused or the port could not be had."""
        return EXIT_REFUSED if self._refused or not self.started else 0

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handles SIGTERM and SIGINT here; unlike uvicorn's own it does not raise them again at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._stop_now)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not reached while `capture_signals` is ours."""
        self._stop_now()

    def _drain(self) -> None:
        if self._state.draining:
            self._stop_now()
            return
        self._state.draining = True
        log.info("SIGTERM: /readyz says 503; stopping in %g s", self._settings.drain_seconds)
        asyncio.get_running_loop().call_later(self._settings.drain_seconds, self._stop_now)

    def _stop_now(self) -> None:
        if self.should_exit:
            self.force_exit = True
            self._workers.kill()
            self._state.catalog.halt()
        self._state.draining = True
        self.should_exit = True

    def _end_refused(self) -> None:
        self._refused = True
        self.should_exit = True


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop; the exit code."""
    try:
        settings = load_settings(sys.argv[1:] if argv is None else argv)
    except InvalidInput as error:
        print(f"focalserve serve: {error}\nfocalserve serve --help lists every setting", file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    server = Server(settings)
    log.info("focalserve on http://%s:%d, models %s", settings.host, settings.port, settings.models.name)
    server.run()
    return server.exit_code


if __name__ == "__main__":
    sys.exit(main())
