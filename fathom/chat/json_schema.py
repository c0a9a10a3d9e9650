"""Checks of a JSON schema before it becomes a grammar: size and depth; ``enforceable_schema`` reads its keywords."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fathom.chat.enforceable_schema import enforceable
from fathom.errors import DataError


def schema_text(schema: Mapping[str, Any], *, max_bytes: int, max_depth: int) -> str:
    """Return what a grammar enforces of the schema, as JSON.

    Raises:
        DataError: it is too large, too deep or not JSON, or constrains what cannot be enforced.
    """
    _check_depth(schema, max_depth)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"json_schema: not JSON ({error}); use text, numbers, lists and objects only") from None
    size = len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise DataError(f"json_schema: {size:,} bytes exceed the limit of {max_bytes:,}; describe less at once")
    return json.dumps(enforceable(schema), ensure_ascii=False)


def _check_depth(value: object, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        nested = [item for item in level if isinstance(item, Mapping | list | tuple)]
        level = [child for item in nested for child in (item.values() if isinstance(item, Mapping) else item)]
        if not level:
            return
    raise DataError(f"json_schema: nested more than {max_depth} deep; move the inner parts to $defs and refer to them")
