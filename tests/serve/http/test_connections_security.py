"""Clients that hold connections: half-sent heads, slow bodies, slow readers, idle ones, and too many of any."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.serve.http.connections import OVERLOADED_CONNECTIONS, Connections
from fathom.serve.metrics import Metrics
from fathom.serve.run import affordable_connections
from fathom.serve.settings import LOOPBACK_NETWORKS, Limits
from tests.serve.serving import Running, Serve, wait_until

HALF = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
STREAM: dict[str, Any] = {
    "prompt": "The",
    "max_tokens": 480,
    "ignore_eos": True,
    "stream": True,
    "n": 4,
    "logprobs": 20,
}
"""Its answer is larger than all buffers: it does not end before it is read."""


@contextlib.contextmanager
def clients(server: Running, count: int, sent: bytes = b"", *, window: int = 0) -> Iterator[list[socket.socket]]:
    """Open connections that have each sent the same; ``window`` bounds what they take without reading."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            if window:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            one.settimeout(20)
            one.connect(("127.0.0.1", server.port))
            one.sendall(sent)
            found.append(one)
        yield found


def post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content


def read_health(connection: socket.socket) -> None:
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        received += connection.recv(65_536)
    assert received.startswith(b"HTTP/1.1 200")


def rest(connection: socket.socket) -> bytes:
    """Return all that comes until the connection is closed."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65_536):
            received += chunk
    return received


def next_byte(connection: socket.socket) -> bytes | None:
    """Return the next byte without taking it: none once the connection is closed, None while nothing has come."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""
    finally:
        connection.settimeout(20)


def open_ones(connections: Sequence[socket.socket]) -> list[int]:
    return [number for number, one in enumerate(connections) if next_byte(one) != b""]


def trickle(connection: socket.socket, content: bytes, pause: float = 0.05) -> int:
    """Send byte by byte; return how many were sent before an answer came or the connection was closed."""
    for count, byte in enumerate(content):
        if next_byte(connection) is not None:
            return count
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes([byte]))
        time.sleep(pause)
    return len(content)


def closed(server: Running, reason: str) -> float:
    return server.metric(f'fathom_connections_closed_total{{reason="{reason}"}}')


def test_245_half_sent_heads_are_closed_in_time(serve: Serve) -> None:
    with serve(limits=Limits(head_timeout_seconds=0.5)) as server, clients(server, 245, HALF) as slow:
        assert {rest(one)[:12] for one in slow} == {b"HTTP/1.1 408"}
        assert closed(server, "head_timeout") == 245
        assert wait_until(lambda: server.metric("fathom_connections_open") == 1)


@pytest.mark.parametrize(
    "sent", [b"", HALF[:1], GET + HALF[:1], b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n"]
)
def test_a_head_sent_byte_by_byte_gets_no_more_time(serve: Serve, sent: bytes) -> None:
    limits = Limits(head_timeout_seconds=0.5, keep_alive_seconds=20)
    with serve(limits=limits) as server, clients(server, 1, sent) as (slow,):
        if sent.startswith(b"GET") and len(sent) > 20:
            read_health(slow)
        began = time.monotonic()
        content = b"a" * 400 if b"999" in sent else b"X-A: " + b"a" * 400
        assert trickle(slow, content if sent else HALF + content) < 400
        assert time.monotonic() - began >= 0.4


def test_a_connection_without_a_request_is_closed_unanswered(serve: Serve) -> None:
    limits = Limits(head_timeout_seconds=1.0, keep_alive_seconds=1.0)
    with serve(limits=limits) as server, clients(server, 1) as (silent,), clients(server, 1, GET) as (kept,):
        assert rest(silent) == b""
        assert rest(kept).count(b"HTTP/1.1") == 1


@pytest.mark.slow
def test_a_kept_connection_may_be_idle_for_longer_than_a_head_may_take(serve: Serve) -> None:
    limits = Limits(head_timeout_seconds=1.0, keep_alive_seconds=20)
    with serve(limits=limits) as server, clients(server, 1) as (kept,):
        for _ in range(3):
            kept.sendall(GET)
            read_health(kept)
            time.sleep(1.5)


def test_a_body_must_come_at_a_least_rate(serve: Serve) -> None:
    limits = Limits(head_timeout_seconds=1.5, body_bytes_per_second=1000)
    head = HEAD + b"Content-Length: 2000\r\n\r\n"
    with serve(limits=limits) as server:
        with clients(server, 1, head) as (slow,):
            assert trickle(slow, b" " * 400) < 400
            assert rest(slow).startswith(b"HTTP/1.1 408")
        assert closed(server, "body_timeout") == 1
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode().ljust(2000)
        with clients(server, 1, head) as (fair,):
            for at in range(0, 2000, 400):
                fair.sendall(body[at : at + 400])
                time.sleep(0.2)
            assert fair.recv(65_536).startswith(b"HTTP/1.1 200")


def test_one_address_holds_so_many_and_its_oldest_idle_one_goes_first(serve: Serve) -> None:
    limits = Limits(connections_per_client=4)
    with serve(limits=limits, trusted_proxies=()) as server, clients(server, 10, HALF) as slow:
        assert wait_until(lambda: open_ones(slow) == [6, 7, 8, 9])
        with server.http() as http:
            assert http.get("/health").status_code == 200
        assert wait_until(lambda: open_ones(slow) == [7, 8, 9])
        assert closed(server, "evicted") >= 7


def test_connections_of_a_proxy_are_not_those_of_one_client(serve: Serve) -> None:
    with serve(limits=Limits(connections_per_client=4)) as server, clients(server, 10, HALF) as slow:
        assert wait_until(lambda: len(server.server.connections) == 10)
        assert open_ones(slow) == [*range(10)]


def test_heads_are_closed_before_bodies_and_answers_never(serve: Serve) -> None:
    with (
        serve(limits=Limits(connections=6, head_timeout_seconds=200, body_timeout_seconds=200)) as server,
        clients(server, 2, post(STREAM), window=2048) as streams,
        clients(server, 2, HEAD + b"Content-Length: 100\r\n\r\n{") as bodies,
        clients(server, 2, HALF) as heads,
    ):
        assert wait_until(lambda: server.service.metrics.in_progress == 2)
        with clients(server, 1, HALF):
            assert wait_until(lambda: open_ones(heads) == [1])
            with clients(server, 2, post({"prompt": "a", "max_tokens": 1})) as good:
                assert wait_until(lambda: open_ones(heads) == [])
                assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in good)
                assert open_ones(bodies) == [0, 1]
                time.sleep(0.6)
                with clients(server, 4, HEAD + b"Content-Length: 100\r\n\r\n{"):
                    assert wait_until(lambda: open_ones(bodies) == [])
                    assert open_ones(streams) == [0, 1]


def test_where_all_are_answered_one_more_gets_503_and_health_still_answers(serve: Serve) -> None:
    with serve(limits=Limits(connections=4)) as server:
        with clients(server, 4, post(STREAM), window=2048) as streams:
            assert wait_until(lambda: server.service.metrics.in_progress == 4)
            with clients(server, 3 * OVERLOADED_CONNECTIONS, HALF), server.http() as http:
                assert http.get("/health").json() == {"status": "ok"}
                refused = http.post("/v1/completions", json={"prompt": "a"})
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "too_many_connections"
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.headers["connection"] == "close"
                assert http.get("/ready").headers["connection"] == "close"
                with clients(server, 1, b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\n\r\n") as (asked,):
                    assert rest(asked).startswith(b"HTTP/1.1 503")
                assert len(server.server.connections) <= 4 + OVERLOADED_CONNECTIONS
            assert open_ones(streams) == [0, 1, 2, 3]
            assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in streams)
        assert server.idle()
        assert closed(server, "refused") >= 1
        with server.http() as http:
            assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_requests_sent_ahead_wait_in_the_kernel_while_answers_are_not_read(serve: Serve) -> None:
    ahead = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2000
    with serve(limits=Limits(write_timeout_seconds=1.5)) as server, clients(server, 1, window=2048) as (slow,):
        slow.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            slow.sendall(ahead)
        assert wait_until(lambda: len(server.server.server_state.connections) == 1)
        (held,) = server.server.server_state.connections
        with server.http() as http:
            largest = len(http.get("/openapi.json").content)
        assert wait_until(lambda: held.transport.get_write_buffer_size() > 0)  # type: ignore[union-attr]
        for _ in range(10):
            assert held.transport.get_write_buffer_size() <= (64 << 10) + largest + 1000  # type: ignore[union-attr]
            assert len(held.conn.trailing_data[0]) <= 256 << 10  # type: ignore[union-attr]
            time.sleep(0.02)
        assert wait_until(lambda: closed(server, "write_timeout") == 1)


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_given_up(serve: Serve, closing: bytes) -> None:
    with serve(limits=Limits(write_timeout_seconds=0.4)) as server:
        page = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n" + closing + b"\r\n"
        with clients(server, 20, page * 40, window=2048):
            assert wait_until(lambda: len(server.server.connections) == 20)
            assert wait_until(lambda: server.metric("fathom_connections_open") == 1)


@pytest.mark.slow
def test_a_client_that_reads_slowly_but_reads_gets_its_whole_answer(serve: Serve) -> None:
    count = 40
    with serve(limits=Limits(write_timeout_seconds=1.5)) as server, server.http() as http:
        whole = len(http.get("/openapi.json").content)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n"
        sent = (request + b"\r\n") * (count - 1) + request + b"Connection: close\r\n\r\n"
        with clients(server, 1, sent, window=16_384) as (slow,):
            received, began = 0, time.monotonic()
            while chunk := slow.recv(32_768):
                received += len(chunk)
                time.sleep(max(0.0, received / 1_000_000 - (time.monotonic() - began)))
            assert received > count * whole
            assert time.monotonic() - began > 2 * 1.5


def test_a_client_is_an_ipv4_address_or_an_ipv6_network() -> None:
    connections = Connections(Limits(), 10, (*LOOPBACK_NETWORKS, "10.0.0.0/24", "fd00::1"), Metrics(dict))
    assert connections.client("192.0.2.7") == connections.client("::ffff:192.0.2.7") == "192.0.2.7"
    assert connections.client("2001:db8::1") == connections.client("2001:db8::2:0:0:9") == "2001:db8::/64"
    assert connections.client("2001:db8:0:1::1") == "2001:db8:0:1::/64"
    assert connections.client("fe80::1%eth0") == "fe80::/64"
    for proxy in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.0.0.200", "fd00::1"):
        assert connections.client(proxy) is None


def test_more_connections_than_files_may_be_open_are_refused_with_what_is_possible() -> None:
    most = affordable_connections(None)
    assert 8 <= most <= 4096
    assert affordable_connections(10) == 10
    with pytest.raises(SpecError, match=r"connections: 1000000000000 .* or give (\d+) at most") as caught:
        affordable_connections(10**12)
    assert affordable_connections(int(str(caught.value).split()[-3])) > 0
