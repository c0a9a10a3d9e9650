"""Run a server: listening, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from fathom.errors import ResourceError, SpecError
from fathom.serve.http.connections import OVERLOADED_CONNECTIONS, BoundedProtocol, Connections
from fathom.serve.model_pool import ModelPool
from fathom.serve.settings import MOST_CONNECTIONS
from fathom.system import open_files, raise_file_limit

_LINGER_SECONDS = 5.0
_HEADER_SLACK = 4
_ACCEPTED_AT_ONCE = 16
_BACKLOG = 2048
_RESERVED_FILES = 64 + OVERLOADED_CONNECTIONS
"""Left for models' files, child processes, and connections that were accepted while others are being closed."""
_FEWEST_CONNECTIONS = 8


class Server(uvicorn.Server):
    """Uvicorn, but the first SIGTERM or SIGINT drains and exits with 0, and the second kills the process."""

    def __init__(self, app: FastAPI) -> None:
        self.models: ModelPool = app.state.models
        settings, limits = self.models.settings, self.models.settings.limits
        most = affordable_connections(limits.connections)
        self.connections = Connections(limits, most, settings.trusted_proxies, self.models.metrics)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(BoundedProtocol, registry=self.connections),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                forwarded_allow_ips=list(settings.trusted_proxies),
                backlog=_ACCEPTED_AT_ONCE,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=int(settings.drain_seconds + _LINGER_SECONDS) + 1,
                h11_max_incomplete_event_size=limits.header_bytes * _HEADER_SLACK,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. asyncio accepts as many connections at a time as the backlog it knows; the kernel keeps more."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_BACKLOG)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._handle_loop_error)
        self.connections.start(loop)

    def _handle_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make room where ``accept`` has no descriptor left, upon which asyncio tries again in a second."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            self.connections.make_room()
        else:
            loop.default_exception_handler(context)

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
        self.connections.stop()


def affordable_connections(given: int | None) -> int:
    """Return how many connections may be open; the limit on open files is raised for them where the system allows.

    Raises:
        SpecError: ``given`` are more than the process may open files for.
    """
    used = open_files() + _RESERVED_FILES
    most = raise_file_limit(used + (given or MOST_CONNECTIONS)) - used
    if given is not None and given > most:
        remedy = f"raise the limit (ulimit -n) to {given + used}, or give {max(most, 0)} at most"
        raise SpecError("connections", f"{given} are more than this process may open files for", remedy)
    return given or max(min(most, MOST_CONNECTIONS), _FEWEST_CONNECTIONS)


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
