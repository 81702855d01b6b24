"""How uvicorn serves in every process: its configuration, and connections that come from another process."""

import asyncio
import socket
from functools import partial

import uvicorn

from service.front import Front
from service.protocol import Protocol, Share
from service.settings import Settings


def config_of(front: Front, settings: Settings, share: Share, lifespan: bool) -> uvicorn.Config:
    """How uvicorn serves, in every process.

    Args:
        front: the application.
        settings: of the service.
        share: who answers on which connection.
        lifespan: whether the application is told of start and stop.
    """
    return uvicorn.Config(
        front,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        server_header=False,
        proxy_headers=False,
        lifespan="auto" if lifespan else "off",
        http=partial(Protocol, share=share),  # type: ignore[arg-type]
    )


def new_protocol(server: uvicorn.Server, share: Share, early: bytes = b"") -> Protocol:
    """A connection's, for uvicorn's server."""
    lifespan = server.lifespan.state
    return Protocol(
        config=server.config, server_state=server.server_state, app_state=lifespan, share=share, early=early
    )  # fmt: skip


async def adopt(server: uvicorn.Server, share: Share, file: int, data: bytes) -> None:
    """Takes a connection over from another process.

    Args:
        server: of uvicorn.
        share: who answers on which connection.
        file: of its socket.
        data: what was read of it.
    """

    def protocol() -> Protocol:
        made = new_protocol(server, share, data)
        share.taken(made)
        return made

    taken = socket.socket(fileno=file)
    taken.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(protocol, taken)
