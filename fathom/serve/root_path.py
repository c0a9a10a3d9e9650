"""The path below which a reverse proxy publishes a server, such as ``/fathom``."""

from __future__ import annotations

import re

from fathom.errors import SpecError

OWN_SEGMENTS = frozenset(
    {
        "detokenize",
        "favicon.ico",
        "health",
        "metrics",
        "openapi.json",
        "page",
        "ready",
        "tokenize",
        "tokenizer_info",
        "v1",
    }
)
"""First segments of the server's own routes: a root path that began with one could not be told from it."""
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_LONGEST = 200


def check_root_path(root_path: str) -> None:
    """Check the path that a server is published under; "" is none.

    Raises:
        SpecError: it does not begin with a slash, ends with one, holds characters that a URL would have to escape or
            segments that it would resolve, or begins as one of the server's own routes.
    """
    remedy = "give one such as /fathom: a slash, then letters, digits, '-', '_', '.' or '~', and no slash at the end"
    segments = root_path.split("/")[1:]
    if not _ROOT_PATH.fullmatch(root_path) or len(root_path) > _LONGEST or {".", ".."} & set(segments):
        raise SpecError(
            "root_path", f"{root_path[:_LONGEST]!r} is no path that the server can be published under", remedy
        )
    if segments and segments[0] in OWN_SEGMENTS:
        problem = f"{root_path!r} begins with /{segments[0]}, a route of the server's own"
        raise SpecError("root_path", problem, "choose another, such as /fathom")


def below_root(path: str, root_path: str) -> str:
    """Return a path without ``root_path``, which a proxy may have removed already; ``root_path`` itself stays."""
    return path[len(root_path) :] if root_path and path.startswith(f"{root_path}/") else path
