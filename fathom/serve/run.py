"""Run a server: listening, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from fathom.errors import ResourceError
from fathom.serve.model_pool import ModelPool

_LINGER_SECONDS = 5.0
_HEADER_SLACK = 4


class Server(uvicorn.Server):
    """Uvicorn, but the first SIGTERM or SIGINT drains and exits with 0, and the second kills the process."""

    def __init__(self, app: FastAPI) -> None:
        self.models: ModelPool = app.state.models
        settings = self.models.settings
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # it bounds how large headers may grow
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(settings.drain_seconds + _LINGER_SECONDS) + 1,
                h11_max_incomplete_event_size=settings.limits.header_bytes * _HEADER_SLACK,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal; on the second restore the default handler and raise it again."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests finish within ``drain_seconds``, then end the rest with an error."""
        models = self.models
        models.begin_drain()
        draining = asyncio.create_task(
            asyncio.to_thread(models.lifecycle.drain, models.settings.drain_seconds), name="drain"
        )
        await super().shutdown(sockets)
        await draining


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; uvicorn listens on it once requests can be answered.

    Raises:
        ResourceError: the address is in use, or does not belong to this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise ResourceError(f"--host: {host!r} cannot be resolved ({error}); use 127.0.0.1 or 0.0.0.0") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise ResourceError(f"--port: {host}:{port} cannot be used ({reason}); choose another") from None
    return bound


def run(app: FastAPI, bound: socket.socket, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal comes; the models' workers are closed on the way out.

    ``ready`` is called once requests are accepted.
    """
    server = Server(app)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving

    asyncio.run(serve())
