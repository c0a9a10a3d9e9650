"""Strict parsing of JSON request bodies; errors name the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from fathom.serve.errors import ApiError, ClientDisconnected
from fathom.serve.executor import PreprocessExecutor

B = TypeVar("B", bound=BaseModel)
_INLINE_BYTES = 32_768
"""Bodies up to this size are parsed on the event loop: faster than handing them to a thread."""
_SHOWN = 80


async def read_body(request: Request, model: type[B], executor: PreprocessExecutor) -> B:
    """Return a request's body.

    Raises:
        ApiError: it is not JSON, or a field is unknown, missing or of the wrong type.
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
    parse: Callable[[], B] = lambda: parse_body(bytes(content), model)  # noqa: E731  one expression, run here or there
    return parse() if len(content) <= _INLINE_BYTES else await executor.run(parse)


def parse_body(content: bytes, model: type[B]) -> B:
    """Parse and validate JSON as ``model``; ``ApiError`` names the wrong field."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise _validation_error(error, content) from None


def _validation_error(error: ValidationError, content: bytes) -> ApiError:
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
    if fault["type"] == "extra_forbidden":
        return ApiError(400, f"{where}: is an unknown field; leave it out", param=where, code="unknown_field")
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
