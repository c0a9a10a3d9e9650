"""The hub, played by a server on this machine that speaks its protocol for the repository owner/tiny."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_MODEL = "/api/models/owner/tiny"


@dataclass
class Hub:
    """What the server holds and was asked for.

    ``refusal`` is the status and error code it answers everything with, ``gated`` what it answers for files.
    ``sent`` are the files whose content it sent, ``asked`` all requests.
    """

    url: str
    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None
    gated: bool = False
    sent: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if "owner/tiny" in path:
            hub.tokens.add(self.headers.get("Authorization"))
        name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
        if hub.refusal is not None:
            self.send(hub.refusal[0], b"", {"X-Error-Code": hub.refusal[1]}, body=body)
        elif path in (_MODEL, f"{_MODEL}/revision/main", f"{_MODEL}/revision/{COMMIT}"):
            self.send(200, self.description(), {}, body=body)
        elif path.startswith(f"{_MODEL}/revision/"):
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif path == f"{_MODEL}/tree/{COMMIT}":
            self.send(200, self.listing(), {}, body=body)
        elif name in hub.files and hub.gated:
            self.send(403, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        elif name in hub.files:
            if body:
                hub.sent.append(name)
            etag = f'"{hashlib.sha1(hub.files[name]).hexdigest()}"'
            self.send(200, hub.files[name], {"ETag": etag, "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)

    def description(self) -> bytes:
        siblings = [{"rfilename": name} for name in self.hub.files]
        return json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode()

    def listing(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.hub.files.items()
            ]
        ).encode()

    def send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve a repository of these files until the block ends, past any proxy."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", dict(files))
    handler.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    direct = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ.update(dict.fromkeys(direct, "127.0.0.1"))
    try:
        yield hub
    finally:
        for name, before in direct.items():
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
        server.shutdown()
        server.server_close()
        thread.join()
