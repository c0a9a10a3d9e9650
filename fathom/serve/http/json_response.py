"""Large responses as JSON, written without keeping the interpreter from other requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

_PIECES = 4096
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def written(content: Any) -> bytes:
    """Return ``content`` as JSON, in UTF-8. The encoder in C would not let go of the interpreter before it is done."""
    done = bytearray()
    pieces: list[str] = []
    for piece in _ENCODER.iterencode(content):
        pieces.append(piece)
        if len(pieces) == _PIECES:
            done += "".join(pieces).encode()
            pieces.clear()
    return bytes(done + "".join(pieces).encode())


async def json_response(content: Mapping[str, Any], *, large: bool) -> Response:
    """Return a JSON response; a ``large`` one is written in a thread."""
    if not large:
        return JSONResponse(content)
    return Response(await asyncio.to_thread(written, content), media_type="application/json")
