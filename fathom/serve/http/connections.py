"""Open connections: how many there may be, from where, how slow their clients, and which is closed for another."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import itertools
import json
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fathom.logs import warn_once
from fathom.serve.errors import ApiError
from fathom.serve.http.strict_parser import StrictConnection
from fathom.serve.metrics import Metrics
from fathom.serve.settings import Limits

OVERLOADED = "overloaded"
"""Set in the ASGI state of connections beyond the limits, whose requests get 503 unless they ask for the state."""
OVERLOADED_CONNECTIONS = 16
_LINGER_SECONDS = 2.0
_RECENT_SECONDS = 0.5
"""What has just arrived may be complete once it is read: older connections, of whatever stage, are closed first."""
_CHECK_SECONDS = 1.0
_PROGRESS_BYTES = 64 << 10
_UNSENT_BYTES = 64 << 10


class Stage(enum.IntEnum):
    """What a connection does; those of an earlier stage are closed first where there are too many."""

    LINGERING = 0
    """It was refused, and what its client still sends is discarded, so that the answer is not lost to a reset."""
    WAITING = 1
    """No request, or only a part of a request's head, has arrived."""
    RECEIVING = 2
    """A part of a request's body has arrived."""
    RESPONDING = 3


class Connections:
    """The connections of one server, at most ``most`` and ``limits.connections_per_client`` of one address.

    One beyond that takes the place of the oldest whose request is not complete, of the same address where that has too
    many. Where all are being answered, ``OVERLOADED_CONNECTIONS`` more are open to get a 503, or the server's state.
    ``proxies`` are addresses and networks of which each connection may be another client's. All methods are called
    on the event loop.
    """

    def __init__(self, limits: Limits, most: int, proxies: Sequence[str], metrics: Metrics) -> None:
        self.limits, self.most, self.metrics = limits, most, metrics
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in proxies]
        self._by_stage: dict[Stage, OrderedDict[BoundedProtocol, None]] = {stage: OrderedDict() for stage in Stage}
        self._per_client: Counter[str] = Counter()
        self._overloaded: OrderedDict[BoundedProtocol, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        metrics.connections_open.set_function(self.__len__)

    def __len__(self) -> int:
        return self._within + len(self._overloaded)

    @property
    def _within(self) -> int:
        return sum(map(len, self._by_stage.values()))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hold the connections against their time limits from now on."""
        shortest = min(self.limits.head_timeout_seconds, self.limits.write_timeout_seconds)
        self._timer = loop.call_later(min(_CHECK_SECONDS, shortest / 4), self._check, loop)

    def stop(self) -> None:
        """End what ``start`` began."""
        if self._timer is not None:
            self._timer.cancel()

    def client(self, address: str) -> str | None:
        """Return what counts as one client: an IPv4 address or an IPv6 network of 64 bits; None for a proxy."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address):
            found = found.ipv4_mapped or found
        if any(found in network for network in self._proxies):
            return None
        return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)

    def admit(self, connection: BoundedProtocol) -> None:
        """Add a new connection; close another for it, mark it ``overloaded``, or close it, where there are too many."""
        client = connection.client_key
        crowded = client is not None and self._per_client[client] >= self.limits.connections_per_client
        if crowded or self._within >= self.most:
            connection.overloaded = not self._evict(client if crowded else None)
        if not connection.overloaded:
            self._by_stage[connection.stage][connection] = None
            if client is not None:
                self._per_client[client] += 1
            return
        self._overloaded[connection] = None
        if len(self._overloaded) > OVERLOADED_CONNECTIONS:
            first = min(self._overloaded, key=lambda each: each.stage)
            self.close(first, "refused")

    def place(self, connection: BoundedProtocol, stage: Stage) -> None:
        """Note that a connection's stage has changed."""
        if connection in self._by_stage[connection.stage]:
            del self._by_stage[connection.stage][connection]
            self._by_stage[stage][connection] = None
        connection.stage, connection.stage_since = stage, time.monotonic()

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a connection. Idempotent."""
        self._overloaded.pop(connection, None)
        if connection in self._by_stage[connection.stage]:
            del self._by_stage[connection.stage][connection]
            client = connection.client_key
            if client is not None:
                self._per_client[client] -= 1
                if not self._per_client[client]:
                    del self._per_client[client]

    def close(self, connection: BoundedProtocol, reason: str) -> None:
        """Close a connection at once, whatever is still to be sent, and count the reason."""
        self.count(reason)
        self.remove(connection)
        connection.transport.abort()

    def count(self, reason: str) -> None:
        """Count a connection that is closed before its client would have it."""
        self.metrics.connections_closed.labels(reason).inc()

    def make_room(self) -> None:
        """Close the oldest connection without a complete request: the process can open no further files."""
        warn_once("no more files can be opened for connections, and idle ones are closed; raise the limit (ulimit -n)")
        self._evict(None)

    def _evict(self, client: str | None) -> bool:
        """Close the oldest connection without a complete request, of ``client`` if given; False where there is none."""
        recent = time.monotonic() - _RECENT_SECONDS
        oldest = []
        for stage in (Stage.LINGERING, Stage.WAITING, Stage.RECEIVING):
            of_client = (each for each in self._by_stage[stage] if client is None or each.client_key == client)
            oldest += [*itertools.islice(of_client, 1)]
        if oldest:
            self.close(min(oldest, key=lambda each: each.stage_since > recent), "evicted")
        return bool(oldest)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for connections in (*self._by_stage.values(), self._overloaded):
            for connection in list(connections):
                connection.check(now)
        self.start(loop)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with a strict parser and limits of time; ``registry`` says how many there may be.

    A head must be complete within ``head_timeout_seconds`` of the connection's begin, or of its first byte where the
    connection was kept. What is sent must be taken at 64 KiB per ``write_timeout_seconds`` at least.
    """

    def __init__(self, *, registry: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.registry = registry
        self.conn: StrictConnection = StrictConnection(self.config.h11_max_incomplete_event_size or 0)
        self.stage, self.stage_since = Stage.WAITING, time.monotonic()
        self.overloaded = False
        self.client_key: str | None = None
        self._head_since: float | None = None
        self._linger_until = 0.0
        self._unsent: tuple[int, float] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and start to wait for its first request."""
        super().connection_made(transport)
        _bound_unsent(transport)
        self._head_since = time.monotonic()
        self.client_key = self.registry.client(self.client[0]) if self.client else None
        self.registry.admit(self)
        if self.overloaded:
            self.app_state = {**self.app_state, OVERLOADED: True}

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.registry.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what a client sends; after a refusal, discard it."""
        if self.stage is Stage.LINGERING or self.transport.is_closing():
            return
        super().data_received(data)
        self._update(received=True)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._update(received=False)

    def resume_writing(self) -> None:
        """Note that the client takes what is sent."""
        self._unsent = None
        super().resume_writing()

    def shutdown(self) -> None:
        """End the connection, after the response that it waits for."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # the connection was refused
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read; the parser knows why."""
        self.registry.count("malformed")
        self._refuse(self.conn.fault or ApiError(400, msg, code="malformed_request"))

    def check(self, now: float) -> None:
        """Close the connection where a time limit has passed."""
        if self.stage is Stage.LINGERING:
            if now >= self._linger_until:
                self.transport.abort()
        elif self._head_since is not None and now - self._head_since >= self.registry.limits.head_timeout_seconds:
            self._end_slow_head()
        elif self._stopped_reading(now):
            self.registry.close(self, "write_timeout")

    def _update(self, *, received: bool) -> None:
        if self.stage is Stage.LINGERING:
            return
        if self.cycle is None or self.cycle.response_complete:
            stage = Stage.WAITING
        else:
            stage = Stage.RECEIVING if self.cycle.more_body else Stage.RESPONDING
            if self.overloaded:
                self.cycle.keep_alive = False
        if stage is not Stage.WAITING:
            self._head_since = None
        elif self._head_since is None and (received or self.conn.trailing_data[0]):
            self._head_since = time.monotonic()
        if stage is not self.stage:
            self.registry.place(self, stage)

    def _stopped_reading(self, now: float) -> bool:
        """Whether the client takes too little of what is to be sent; asked while that can only become less."""
        size = self.transport.get_write_buffer_size()
        if size == 0 or (self.stage is Stage.RESPONDING and not self.flow.write_paused):
            self._unsent = None
        elif self._unsent is None or size <= self._unsent[0] - _PROGRESS_BYTES:
            self._unsent = size, now
        else:
            return now - self._unsent[1] >= self.registry.limits.write_timeout_seconds
        return False

    def _end_slow_head(self) -> None:
        if not self.conn.trailing_data[0] or self.conn.our_state is not h11.IDLE:
            self.registry.close(self, "head_timeout")
            return
        self.registry.count("head_timeout")
        seconds = self.registry.limits.head_timeout_seconds
        self._refuse(
            ApiError(408, f"headers: not received within {seconds:g} s; send them faster", code="slow_headers")
        )

    def _refuse(self, error: ApiError) -> None:
        """Send an error unless a response has begun, and end the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(
            status_code=error.status,
            headers=[*self.server_state.default_headers, *headers],
            reason=HTTPStatus(error.status).phrase.encode(),
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self._linger()

    def _linger(self) -> None:
        self._unset_keepalive_if_required()
        self._head_since = None
        self._linger_until = time.monotonic() + _LINGER_SECONDS
        self.registry.place(self, Stage.LINGERING)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


def _bound_unsent(transport: asyncio.Transport) -> None:
    """Have the kernel hold little that it cannot send yet, so that what a client takes is seen at once."""
    connected = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with suppress(OSError):  # the client has left, or this is no TCP
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
