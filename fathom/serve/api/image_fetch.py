"""Fetch images by URL, from allowed hosts only and never from a private network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from fathom.serve.errors import ApiError, refuse

_SECONDS = 10.0
_REDIRECTS = 3
_CHUNK = 65_536
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NEVER = (
    ipaddress.ip_network("192.0.0.0/24"),  # protocols' own
    ipaddress.ip_network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.ip_network("2001::/23"),  # Teredo and other protocols' own
    ipaddress.ip_network("2002::/16"),  # 6to4: any IPv4 address, private ones included
    ipaddress.ip_network("3fff::/20"),  # documentation
)
"""Networks that ``is_global`` does not exclude, or not in every release of Python (RFC 6890 and its registries)."""


def fetch_image(url: str, where: str, hosts: Collection[str], *, max_bytes: int, seconds: float = _SECONDS) -> bytes:
    """Return the body of an http(s) URL on one of ``hosts``, within ``seconds`` in all and ``max_bytes``.

    Every redirect is checked like the first URL, and the connection goes to the IP address that was checked.

    Raises:
        ApiError: the host is not allowed or is private, or the response is too large, too slow or not a 200.
    """
    deadline = time.monotonic() + seconds
    for _ in range(_REDIRECTS + 1):
        try:
            location, content = _get(url, where, hosts, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() > deadline
            reason = f"took over {seconds:g} s" if late else " ".join(str(error).split()) or type(error).__name__
            raise refuse(where, f"cannot be fetched ({reason})", "send the image as a data: URI") from None
        if location is None:
            return content
        url = urljoin(url, location)
    raise refuse(where, f"redirects more than {_REDIRECTS} times", "give the final address")


def is_public(address: str) -> bool:
    """Return whether an IP address is a public unicast one, which leads to no private network by any translation."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NEVER)


def _get(url: str, where: str, hosts: Collection[str], max_bytes: int, deadline: float) -> tuple[str | None, bytes]:
    """Return the redirect's target, or None and the body."""
    host, port, parts = _checked(url, where, hosts)
    with _connected(host, port, where, deadline) as plain:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = plain
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        with connection.sock:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "fathom"})
            answer = connection.getresponse()
            location = answer.getheader("Location")
            if answer.status in _REDIRECT_STATUSES and location:
                return location, b""
            if answer.status != 200:
                raise refuse(where, f"is answered with status {answer.status}", "send the image as a data: URI")
            return None, _body(answer, where, max_bytes, deadline)


def _body(answer: http.client.HTTPResponse, where: str, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while chunk := answer.read1(_CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise ApiError(413, f"{where}: exceeds {max_bytes} bytes; give a smaller image", param=where)
    if time.monotonic() > deadline:  # what then was shut down only looks complete
        raise TimeoutError
    return bytes(content)


def _checked(url: str, where: str, hosts: Collection[str]) -> tuple[str, int, SplitResult]:
    """Return a URL's host, port and parts; ``ApiError`` unless it is a plain address on an allowed host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refuse(where, f"{url[:60]!r} is no address", "give http:// or https://") from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("http", "https") or parts.username is not None:
        raise refuse(where, f"{url[:60]!r} is no plain http or https address", "give one, or a data: URI")
    if host not in hosts:
        raise refuse(where, f"host {host[:80]!r} is not allowed", f"use one of {', '.join(sorted(hosts))}")
    return host, port or (443 if parts.scheme == "https" else 80), parts


@contextmanager
def _connected(host: str, port: int, where: str, deadline: float) -> Iterator[socket.socket]:
    """Connect to a host, checking the address that is connected to; whatever is read or written ends at the deadline.

    A time limit of a socket is one of each read: a server that sends a byte now and then would never meet it.
    """
    left = max(deadline - time.monotonic(), 0.001)
    with _connect(_addresses(host, port, where), port, left) as plain:
        if not _is_allowed(str(plain.getpeername()[0])):
            raise _private(host, where)
        with plain.dup() as same:  # TLS takes the other one over
            ending = threading.Timer(max(deadline - time.monotonic(), 0.001), _shut_down, (same,))
            ending.daemon = True
            ending.start()
            try:
                yield plain
            finally:
                ending.cancel()


def _connect(addresses: Collection[str], port: int, seconds: float) -> socket.socket:
    """Connect to the first of the addresses that takes it; ``OSError`` where none does."""
    until, fault = time.monotonic() + seconds, OSError("has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=max(until - time.monotonic(), 0.001))
        except OSError as error:
            fault = error
    raise fault


def _addresses(host: str, port: int, where: str) -> list[str]:
    """Return the IP addresses of ``host``; ``ApiError`` unless all of them are public."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(map(_is_allowed, found)):
        raise _private(host, where)
    return list(dict.fromkeys(found))


def _is_allowed(address: str) -> bool:
    return is_public(address.partition("%")[0])


def _private(host: str, where: str) -> ApiError:
    return refuse(where, f"host {host!r} is in a private network", "send the image as a data: URI")


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
