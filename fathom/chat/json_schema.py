"""Checks of a JSON schema before it becomes a grammar: size and depth; ``enforceable_schema`` reads its keywords."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from fathom.chat.enforceable_schema import enforceable
from fathom.errors import DataError

_MOST_REMAINDERS = 10_000
_LARGEST = 1e15
"""Larger multiples have more digits than any grammar takes."""
_INLINE = re.compile(r"%json[^{]*")


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
    reduced = enforceable(schema)
    check_multiples(reduced, "json_schema")
    return json.dumps(reduced, ensure_ascii=False)


def check_multiples(schema: object, where: str) -> None:
    """Refuse multiples that a grammar would have to count too many remainders for.

    The states of ``multipleOf`` n are n without its factors 2 and 5, of several that hold at once the least common
    multiple: a schema of 3 KiB could take minutes and gigabytes.

    Raises:
        DataError: it has such multiples.
    """
    common, total = 1, 0
    for value in _multiples(schema):
        remainders = _remainders(value)
        common, total = math.lcm(common, remainders), total + (remainders if remainders > 1 else 0)
        if max(common, total) > _MOST_REMAINDERS:
            problem = f"multipleOf {str(value)[:40]} is too much to count with the others"
            raise DataError(f"{where}: {problem}; use small numbers and few of them, or check multiples yourself")


def schemas_within(grammar: str) -> Iterator[Any]:
    """Yield the JSON schemas that a grammar in Lark's syntax includes.

    Raises:
        DataError: one is not JSON.
    """
    decoder = json.JSONDecoder(parse_int=float)
    for found in _INLINE.finditer(grammar):
        if found.end() == len(grammar):
            return
        try:
            yield decoder.raw_decode(grammar, found.end())[0]
        except (ValueError, RecursionError) as error:
            shown = " ".join(str(error).split())[:80]
            raise DataError(f"grammar: what follows %json is not JSON ({shown}); write a JSON schema there") from None


def _multiples(schema: object) -> Iterator[int | float]:
    """Yield the numbers of ``multipleOf``, wherever they are."""
    level = [schema]
    while level:
        item = level.pop()
        if isinstance(item, Mapping):
            value = item.get("multipleOf")
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) < _LARGEST:
                yield value
            level += item.values()
        elif isinstance(item, list | tuple):
            level += item


def _remainders(value: float) -> int:
    """Return a number's integer part of digits without the factors 2 and 5."""
    number = abs(Decimal(repr(value)).as_integer_ratio()[0])
    for factor in (2, 5):
        while number % factor == 0:
            number //= factor
    return number


def _check_depth(value: object, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        nested = [item for item in level if isinstance(item, Mapping | list | tuple)]
        level = [child for item in nested for child in (item.values() if isinstance(item, Mapping) else item)]
        if not level:
            return
    raise DataError(f"json_schema: nested more than {max_depth} deep; move the inner parts to $defs and refer to them")
