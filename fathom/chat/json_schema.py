"""Checks of a JSON schema before it becomes a grammar: size, depth and keywords."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fathom.errors import DataError

_ONE = "not if then else items additionalItems contains additionalProperties propertyNames unevaluatedItems "
_ONE += "unevaluatedProperties contentSchema"
_LISTED = "allOf anyOf oneOf prefixItems items"
_NAMED = "properties patternProperties $defs definitions dependentSchemas dependencies"
_VALUES = """
$schema $id id $ref $anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor $vocabulary $comment
type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern
maxItems minItems uniqueItems maxContains minContains maxProperties minProperties required dependentRequired
format contentEncoding contentMediaType title description default deprecated readOnly writeOnly examples example
"""
ONE, LISTED, NAMED = frozenset(_ONE.split()), frozenset(_LISTED.split()), frozenset(_NAMED.split())
KEYWORDS = ONE | LISTED | NAMED | frozenset(_VALUES.split())


def schema_text(schema: Mapping[str, Any], *, max_bytes: int, max_depth: int) -> str:
    """Return the schema as JSON.

    Raises:
        DataError: it is too large, too deep or not JSON, or has a keyword that JSON Schema does not know. Such a
            keyword may be a misspelling, which would then silently mean nothing; those that begin with x- are ignored.
    """
    _check_depth(schema, max_depth)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"json_schema: not JSON ({error}); use text, numbers, lists and objects only") from None
    size = len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise DataError(f"json_schema: {size:,} bytes exceed the limit of {max_bytes:,}; describe less at once")
    for path, keyword in _keywords(schema, ""):
        if keyword not in KEYWORDS and not keyword.startswith("x-"):
            raise DataError(
                f"json_schema{path}: {keyword!r} is not a keyword of JSON Schema; correct it, or start it with x-"
            )
    return text


def _check_depth(value: object, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        nested = [item for item in level if isinstance(item, Mapping | list | tuple)]
        level = [child for item in nested for child in (item.values() if isinstance(item, Mapping) else item)]
        if not level:
            return
    raise DataError(f"json_schema: nested more than {max_depth} deep; move the inner parts to $defs and refer to them")


def _keywords(schema: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield every keyword with the path of its schema; property names and values are not keywords."""
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        yield path, str(keyword)
        inner: list[tuple[str, object]] = []
        if keyword in NAMED and isinstance(value, Mapping):
            inner = [(f".{name}", child) for name, child in value.items()]
        elif keyword in LISTED and isinstance(value, list | tuple):
            inner = [(f"[{index}]", child) for index, child in enumerate(value)]
        elif keyword in ONE:
            inner = [("", value)]
        for name, child in inner:
            yield from _keywords(child, f"{path}.{keyword}{name}")
