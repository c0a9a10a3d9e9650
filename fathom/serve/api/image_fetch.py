"""Fetch images by URL, from allowed hosts only and never from a private network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from urllib.parse import urljoin, urlsplit

from fathom.serve.errors import ApiError, refuse

_SECONDS = 10.0
_REDIRECTS = 3
_CHUNK = 65_536
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)


def fetch_image(url: str, where: str, hosts: Collection[str], *, max_bytes: int) -> bytes:
    """Return the body of an http(s) URL on one of ``hosts``, within ten seconds and ``max_bytes``.

    Every redirect is checked like the first URL, and the connection goes to the IP address that was checked.

    Raises:
        ApiError: the host is not allowed or is private, or the response is too large, too slow or not a 200.
    """
    deadline = time.monotonic() + _SECONDS
    for _ in range(_REDIRECTS + 1):
        try:
            location, content = _get(url, where, hosts, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise refuse(where, f"cannot be fetched ({reason})", "send the image as a data: URI") from None
        if location is None:
            return content
        url = urljoin(url, location)
    raise refuse(where, f"redirects more than {_REDIRECTS} times", "give the final address")


def _get(url: str, where: str, hosts: Collection[str], max_bytes: int, deadline: float) -> tuple[str | None, bytes]:
    """Return the redirect's target, or None and the body."""
    connection = _connect(url, where, hosts, deadline)
    try:
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "fathom"})
        answer = connection.getresponse()
        location = answer.getheader("Location")
        if answer.status in _REDIRECT_STATUSES and location:
            return location, b""
        if answer.status != 200:
            raise refuse(where, f"is answered with status {answer.status}", "send the image as a data: URI")
        content = bytearray()
        while chunk := answer.read1(_CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise ApiError(413, f"{where}: exceeds {max_bytes} bytes; give a smaller image", param=where)
            if time.monotonic() > deadline:
                raise TimeoutError(f"took over {_SECONDS:g} s")
        return None, bytes(content)
    finally:
        connection.close()


def _connect(url: str, where: str, hosts: Collection[str], deadline: float) -> http.client.HTTPConnection:
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
    chosen = port or (443 if parts.scheme == "https" else 80)
    left = max(deadline - time.monotonic(), 0.1)
    address = _public_address(host, chosen, where)
    plain = socket.create_connection((address, chosen), timeout=left)
    connection = http.client.HTTPConnection(host, chosen, timeout=left)
    connection.sock = plain
    if parts.scheme == "https":
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    return connection


def _public_address(host: str, port: int, where: str) -> str:
    """Return an IP address of ``host``; all of its addresses must be public."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise refuse(where, f"host {host!r} is in a private network", "send the image as a data: URI")
    return found[0]
