"""Addresses that images must not be fetched from, and servers that would hold the fetch for ever."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.serve.api import image_fetch
from fathom.serve.errors import ApiError

PRIVATE = (
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "192.0.0.8"),
    *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.1.2.3", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1"),
    *("2001:10::1", "2001:20::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1"),
    *("fe80::1", "fec0::1", "ff02::1", "ff0e::1", "4000::1"),
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:2800:220:1::1", "2001:4860:4860::8888", "2a00:1450::1")


@pytest.mark.parametrize("address", PRIVATE)
def test_security_an_address_that_is_not_public_unicast_is_refused(address: str) -> None:
    assert not image_fetch.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_security_a_public_address_is_allowed(address: str) -> None:
    assert image_fetch.is_public(address)


@given(st.ip_addresses(v=4))
def test_security_no_ipv6_address_that_translates_to_ipv4_is_allowed(inner: ipaddress.IPv4Address) -> None:
    value = int(inner)
    for prefix, shift in (("::ffff:0:0", 0), ("::", 0), ("64:ff9b::", 0), ("64:ff9b:1::", 0), ("2002::", 80)):
        address = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | value << shift)
        assert not image_fetch.is_public(str(address))


def test_security_the_address_that_is_connected_to_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to a public address first and leads to a private one after all."""
    with _serving(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nsecret")) as port:
        local = socket.create_connection(("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("8.8.8.8", port))])
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: local)
        with pytest.raises(ApiError, match="private network"):
            image_fetch.fetch_image(f"http://cdn.example:{port}/a", "url", {"cdn.example"}, max_bytes=99)


def _drip(connection: socket.socket, before: bytes, drop: bytes) -> None:
    connection.sendall(before)
    for _ in range(500):
        connection.sendall(drop)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("before", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"y"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n", b"y"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ],
    ids=["silence", "status", "headers", "one header", "body", "counted body", "chunks", "trailers"],
)
def test_security_a_slow_server_is_left_at_the_deadline(
    before: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_fetch, "is_public", lambda address: True)
    with _serving(lambda connection: _drip(connection, before, drop)) as port:
        began = time.monotonic()
        with pytest.raises(ApiError, match=r"took over 0\.4 s|cannot be fetched"):
            image_fetch.fetch_image(f"http://127.0.0.1:{port}/a", "url", {"127.0.0.1"}, max_bytes=9_999, seconds=0.4)
        assert time.monotonic() - began < 5


def test_security_a_handshake_that_never_ends_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetch, "is_public", lambda address: True)
    with _serving(lambda connection: time.sleep(3)) as port, pytest.raises(ApiError, match="cannot be fetched"):
        image_fetch.fetch_image(f"https://127.0.0.1:{port}/a", "url", {"127.0.0.1"}, max_bytes=9, seconds=0.4)


@contextlib.contextmanager
def _serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept one connection on a loopback port and hand it to ``answer`` in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the client has left, and with it perhaps the test
                connection, _ = listening.accept()
                with connection:
                    answer(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
