"""The chat page's files, read once and served with ETags and a strict Content-Security-Policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from fathom.files import sha256

INDEX = "index.html"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "cache-control": "no-cache",  # cached but revalidated: files of two versions never mix
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page; ``etag`` names its bytes."""

    body: bytes
    content_type: str
    etag: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every response with this file."""
        return {**_HEADERS, "etag": self.etag}


def page_files() -> Mapping[str, PageFile]:
    """Return the page's files by name; those of others are named ``vendor/...``."""
    root = files("fathom.serve").joinpath("page")
    found = {}
    for prefix, folder in (("", root), ("vendor/", root.joinpath("vendor"))):
        for file in folder.iterdir():
            content_type = _TYPES.get("." + file.name.rpartition(".")[2])
            if content_type is not None:
                body = file.read_bytes()
                found[prefix + file.name] = PageFile(body, content_type, f'"{sha256(body)[:32]}"')
    return found


def page_router(root_path: str = "") -> APIRouter:
    """Return the routes ``/``, ``/page/{name:path}`` and ``/favicon.ico``; files are read now, not at each request.

    All addresses within the page are relative, so ``root_path`` is redirected to ``root_path`` with a slash.
    """
    known = page_files()
    router = APIRouter(include_in_schema=False)

    def respond(request: Request, name: str) -> Response:
        if name not in known:
            raise HTTPException(404, f"{name[:80]!r} is not a file of the page")
        file = known[name]
        if _etag_matches(request.headers.get("if-none-match", ""), file.etag):
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, media_type=file.content_type, headers=file.headers)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return respond(request, INDEX)

    @router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return respond(request, name)

    @router.api_route("/favicon.ico", methods=["GET", "HEAD"])
    async def favicon(request: Request) -> Response:
        return respond(request, "favicon.svg")

    if root_path:

        @router.api_route(root_path, methods=["GET", "HEAD"])
        async def root(request: Request) -> Response:
            return RedirectResponse(f"{root_path}/", 308)

    return router


def _etag_matches(header: str, etag: str) -> bool:
    """Whether an If-None-Match header holds ``etag``, compared weakly as RFC 9110 asks."""
    given = {each.strip().removeprefix("W/") for each in header.split(",")}
    return "*" in given or etag in given
