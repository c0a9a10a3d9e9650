"""Parsing of JSON request bodies: errors name the field, and unknown fields are ignored and named to the client."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from fathom.serve.errors import ApiError, ClientDisconnected
from fathom.serve.executor import SMALL_BODY_BYTES, PreprocessExecutor
from fathom.serve.http.json_cost import parse_cost
from fathom.serve.http.notices import notices_of
from fathom.serve.schemas.common import RequestModel
from fathom.serve.schemas.ignored import IgnoredFields

B = TypeVar("B", bound=RequestModel)
_MOST_NANOSECONDS = 40_000_000
"""Larger bodies are refused where the parser would keep the interpreter to itself for longer."""
_SHOWN = 80


async def read_body(request: Request, model: type[B], executor: PreprocessExecutor) -> B:
    """Return a request's body. Fields that were ignored are added to the request's notices.

    What it takes counts among the bodies of all requests until the end of the HTTP exchange.

    Raises:
        ApiError: it is not JSON, a field is missing or of the wrong type, or other requests' bodies take too much.
        ClientDisconnected: the client left before it was complete.
    """
    content = bytearray()
    held = executor.memory.hold()
    cleanup: ExitStack = request.state.cleanup
    cleanup.callback(held.release)
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        held.add(len(message.get("body", b"")))
        content += message.get("body", b"")
        more = message.get("more_body", False)
    parse = functools.partial(parse_body, content, model, held.add)
    body, ignored = parse() if len(content) <= SMALL_BODY_BYTES else await executor.run(parse)
    held.add(-len(content))
    notices_of(request).ignore(ignored)
    return body


def parse_body(
    content: bytes | bytearray, model: type[B], hold: Callable[[int], None] = lambda nbytes: None
) -> tuple[B, IgnoredFields]:
    """Parse and validate JSON as ``model``; return it with the fields that were ignored.

    ``hold`` is called with the bytes that it will take, before it is parsed.

    Raises:
        ApiError: names the wrong field, its value and the remedy.
    """
    if len(content) > SMALL_BODY_BYTES:
        cost = parse_cost(content)
        if cost.nanoseconds > _MOST_NANOSECONDS:
            raise ApiError(
                413,
                f"body: its {len(content)} bytes hold more JSON values than may be read at once; send fewer or leave "
                "out fields that are not needed",
                code="body_too_large",
            )
        hold(len(content) + cost.nbytes)
    ignored = IgnoredFields()
    try:
        body = model.model_validate_json(content)
    except ValidationError as error:
        raise _validation_error(error) from None
    body.take_ignored(ignored)
    return body.resolved(ignored), ignored


def _validation_error(error: ValidationError) -> ApiError:
    """Return the error of the fault that lies deepest, of those that the branches of a union have."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return ApiError(400, f"body: {faults[0]['msg']}; send a JSON object", code="invalid_json")
    paths = [_path(fault["loc"]) for fault in faults]
    index = max(range(len(faults)), key=lambda index: len(paths[index]))
    fault, where = faults[index], _format_path(paths[index]) or "body"
    if fault["type"] == "missing":
        return ApiError(400, f"{where}: is missing; give it", param=where, code="missing_field")
    shown = _shown(error.errors(include_url=False, include_context=False)[index]["input"])
    return ApiError(400, f"{where}: {_lower_first(fault['msg'])}, got {shown}; correct it", param=where)


def _shown(given: Any) -> str:
    """Return the beginning of a value as JSON; the rest is not written."""
    written = ""
    for piece in json.JSONEncoder(ensure_ascii=True).iterencode(given[:_SHOWN] if isinstance(given, str) else given):
        written += piece[: _SHOWN + 1]
        if len(written) > _SHOWN:
            return written[:_SHOWN] + "..."
    return written


def _lower_first(message: str) -> str:
    return message[0].lower() + message[1:]


def _path(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the path of an error without the union branches that pydantic adds to it."""
    return tuple(
        step for index, step in enumerate(location) if isinstance(step, int) or index == 0 or not _is_union_branch(step)
    )


def _is_union_branch(step: str) -> bool:
    return step in ("str", "constrained-str", "int", "float", "bool") or "[" in step or step[:1].isupper()


def _format_path(path: tuple[int | str, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_SHOWN]}" for step in path)
    return text.removeprefix(".")
