"""Parsing of JSON request bodies: errors name the field, and unknown fields are ignored and named to the client."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from fathom.serve.errors import ApiError, ClientDisconnected
from fathom.serve.executor import PreprocessExecutor
from fathom.serve.http.json_cost import parsed_bytes
from fathom.serve.http.notices import notices_of
from fathom.serve.schemas.common import RequestModel
from fathom.serve.schemas.ignored import IgnoredFields

B = TypeVar("B", bound=RequestModel)
_INLINE_BYTES = 32_768
"""Bodies up to this size are parsed on the event loop: faster than handing them to a thread."""
_UNWEIGHED_BYTES = 1 << 20
_MOST_EXPANSION = 20
"""Larger bodies are refused where their values would take more than this many times their length."""
_SHOWN = 80


async def read_body(request: Request, model: type[B], executor: PreprocessExecutor) -> B:
    """Return a request's body. Fields that were ignored are added to the request's notices.

    Raises:
        ApiError: it is not JSON, or a field is missing or of the wrong type.
        ClientDisconnected: the client left before it was complete.
    """
    content = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        content += message.get("body", b"")
        more = message.get("more_body", False)
    parse = functools.partial(parse_body, content, model)
    body, ignored = parse() if len(content) <= _INLINE_BYTES else await executor.run(parse)
    notices_of(request).ignore(ignored)
    return body


def parse_body(content: bytes | bytearray, model: type[B]) -> tuple[B, IgnoredFields]:
    """Parse and validate JSON as ``model``; return it with the fields that were ignored.

    Raises:
        ApiError: names the wrong field, its value and the remedy.
    """
    if len(content) > _UNWEIGHED_BYTES and parsed_bytes(content) > _MOST_EXPANSION * len(content):
        raise ApiError(
            413,
            f"body: its {len(content)} bytes hold more JSON values than may be read at once; send fewer or leave out "
            "fields that are not needed",
            code="body_too_large",
        )
    ignored = IgnoredFields()
    try:
        body = model.model_validate_json(content)
    except ValidationError as error:
        raise _validation_error(error, content) from None
    body.take_ignored(ignored)
    return body.resolved(ignored), ignored


def _validation_error(error: ValidationError, content: bytes | bytearray) -> ApiError:
    faults = error.errors(include_url=False, include_context=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return ApiError(400, f"body: {faults[0]['msg']}; send a JSON object", code="invalid_json")
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        return ApiError(400, "body: cannot be read as JSON; send a JSON object", code="invalid_json")
    fault = max(faults, key=lambda fault: len(_path(fault["loc"], given)))
    path = _path(fault["loc"], given)
    where = _format_path(path) or "body"
    if fault["type"] == "missing":
        return ApiError(400, f"{where}: is missing; give it", param=where, code="missing_field")
    shown = json.dumps(_at(given, path), ensure_ascii=True)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return ApiError(400, f"{where}: {_lower_first(fault['msg'])}, got {shown}; correct it", param=where)


def _lower_first(message: str) -> str:
    return message[0].lower() + message[1:]


def _path(location: tuple[int | str, ...], given: Any) -> tuple[int | str, ...]:
    """Return the path of an error in ``given``, without the union branches that pydantic adds to it."""
    path: list[int | str] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if (
            isinstance(given, dict)
            and isinstance(step, str)
            and (step in given or (last and not _is_union_branch(step)))
        ):
            path.append(step)
            given = given.get(step)
        elif isinstance(given, list) and isinstance(step, int) and step < len(given):
            path.append(step)
            given = given[step]
    return tuple(path)


def _is_union_branch(step: str) -> bool:
    return step in ("str", "int", "float", "bool") or "[" in step or step[:1].isupper()


def _format_path(path: tuple[int | str, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_SHOWN]}" for step in path)
    return text.removeprefix(".")


def _at(given: Any, path: tuple[int | str, ...]) -> Any:
    for step in path:
        if isinstance(given, dict):
            given = given.get(step)
        elif isinstance(given, list) and isinstance(step, int):
            given = given[step]
    return given
