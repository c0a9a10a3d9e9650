"""The web page's files, read once and served from memory: no path of a request touches the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"cache-control": "no-cache", "content-security-policy": _POLICY, "referrer-policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str


def add_files(app: FastAPI) -> None:
    """Serve the page under ``/`` and its files under ``/page/``."""
    files = _read()

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        """Return the page."""
        return _answer(request, files.get("index.html"))

    @app.get("/page/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        """Return one of its files."""
        return _answer(request, files.get(name))


def _read() -> dict[str, _File]:
    folder = resources.files("fathom.serve") / "page"
    if not folder.is_dir():
        return {}
    found = {}
    for entry in folder.iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in _KINDS and entry.is_file():
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[entry.name] = _File(content, f"{_KINDS[suffix]}; charset=utf-8", tag)
    return found


def _answer(request: Request, file: _File | None) -> Response:
    if file is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
