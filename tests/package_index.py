"""A package index, played by a server on this machine: pages in either form, files, and every fault there is."""

from __future__ import annotations

import base64
import hashlib
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

CERTIFICATE = Path(__file__).parent / "data" / "fetch" / "localhost.pem"
"""A certificate for localhost and 127.0.0.1, its own authority, with its key; for tests only."""


@dataclass
class Index:
    """What the server holds, and what it was asked for.

    ``digests`` are listed instead of the true ones (None: none is listed), ``urls`` instead of ``/files/NAME``.
    ``faults`` are statuses that a path answers with, one a request, before it works; ``cuts`` are bytes after which
    a file's body ends, one a request. ``login`` is what paths that begin with ``guarded`` ask for.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    form: Literal["json", "html"] = "json"
    digests: dict[str, str | None] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    yanked: dict[str, str | bool] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    slow_seconds: float = 0.0
    login: tuple[str, str] | None = None
    guarded: str = "/"
    proxy_login: tuple[str, str] | None = None
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def simple(self) -> str:
        return f"{self.url}/simple"

    def downloads(self) -> list[str]:
        """Return the files that were asked for, in order."""
        return [path.removeprefix("/files/") for path in self.asked if path.startswith("/files/")]

    def digest(self, name: str) -> str | None:
        return self.digests.get(name, hashlib.sha256(self.files[name]).hexdigest())

    def page(self) -> tuple[str, bytes]:
        """Return the type and text of a package's page."""
        if self.form == "html":
            anchors = []
            for name in self.files:
                fragment = f"#sha256={self.digest(name)}" if self.digest(name) else ""
                yanked = f' data-yanked="{self.yanked[name]}"' if name in self.yanked else ""
                anchors.append(f'<a href="{self.urls.get(name, f"../../files/{name}")}{fragment}"{yanked}>{name}</a>')
            return "text/html; charset=utf-8", f"<!DOCTYPE html><body>{'<br>'.join(anchors)}".encode()
        entries = [
            {
                "filename": name,
                "url": self.urls.get(name, f"../../files/{name}"),
                "hashes": {"sha256": self.digest(name)} if self.digest(name) else {},
                "yanked": self.yanked.get(name, False),
                "size": self.sizes.get(name, len(content)),
            }
            for name, content in self.files.items()
        ]
        page = {"meta": {"api-version": "1.1"}, "name": "x", "files": entries}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        index, path = self.index, urlsplit(self.path).path
        if not self.path.startswith("/") and not self.admitted("Proxy-Authorization", index.proxy_login):
            return self.send(407, b"")
        index.asked.append(self.path if not self.path.startswith("/") else path)
        index.headers.append(dict(self.headers))
        if path.startswith(index.guarded) and not self.admitted("Authorization", index.login):
            return self.send(401, b"")
        if index.faults.get(path):
            return self.send(index.faults[path].pop(0), b"", {"Retry-After": "0"})
        if path in index.redirects:
            return self.send(302, b"", {"Location": index.redirects[path]})
        if path in index.pages:
            return self.send(200, index.pages[path], {"Content-Type": "text/html"})
        if path.startswith("/files/") and path.removeprefix("/files/") in index.files:
            return self.send_file(path, index.files[path.removeprefix("/files/")])
        if path == "/simple/tinytexts/":
            kind, content = index.page()
            return self.send(200, content, {"Content-Type": kind})
        return self.send(404, b"")

    def do_CONNECT(self) -> None:
        self.index.asked.append(f"CONNECT {self.path}")
        self.index.headers.append(dict(self.headers))
        if not self.admitted("Proxy-Authorization", self.index.proxy_login):
            return self.send(407, b"")
        host, _, port = self.path.rpartition(":")
        if host != "127.0.0.1":
            return self.send(502, b"")
        with socket.create_connection((host, int(port))) as target:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            both = [self.connection, target]
            while True:
                for ready in select.select(both, [], [])[0]:
                    data = ready.recv(65_536)
                    if not data:
                        self.close_connection = True
                        return None
                    both[1 - both.index(ready)].sendall(data)

    def admitted(self, header: str, login: tuple[str, str] | None) -> bool:
        if login is None:
            return True
        return self.headers.get(header) == "Basic " + base64.b64encode(":".join(login).encode()).decode()

    def send_file(self, path: str, content: bytes) -> None:
        index, wanted = self.index, self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and index.ranges else 0
        sent = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        body = content[start:]
        cut = index.cuts[path].pop(0) if index.cuts.get(path) else len(body)
        self.send(206 if start else 200, body, sent, cut=cut)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        body = body[:cut]
        step = max(1, len(body) // 8) if self.index.slow_seconds else len(body) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(self.index.slow_seconds)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running_index(*, tls: bool = False) -> Iterator[Index]:
    """Run an index on a free port of this machine until the block ends."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    index = Index(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass.index = index  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave."""
