"""Validation of a tool call's arguments against the JSON Schema of its parameters.

Known keywords: type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
uniqueItems, minLength, maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, minProperties,
maxProperties, anyOf, oneOf, allOf, not, and $ref within the schema. Others, ``pattern`` and ``format`` among them, are
ignored: a pattern given by a caller may take forever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

MAX_DEPTH = 32
MAX_STEPS = 20_000
MAX_PROBLEMS = 20
_SHOWN = 60


def validate_arguments(arguments: str | Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return one line for each problem, none where the arguments fit.

    ``arguments`` is a JSON object or its text. A key that the schema does not name is a problem unless the schema says
    otherwise by ``additionalProperties``: models wrap arguments in keys of their own, which are not unwrapped.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return [f"arguments: not JSON ({error})"]
    if not isinstance(arguments, Mapping):
        return [f"arguments: expected an object, got {_kind(arguments)}"]
    if "properties" in schema and not {"additionalProperties", "patternProperties"} & schema.keys():
        schema = {**schema, "additionalProperties": False}
    checker = _Checker(schema)
    problems = []
    for problem in checker.problems(arguments, schema, "arguments", 0):
        problems.append(problem)
        if len(problems) == MAX_PROBLEMS:
            break
    return problems


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def problems(self, value: Any, schema: Any, where: str, depth: int) -> Iterator[str]:
        self._steps += 1
        if depth > MAX_DEPTH or self._steps > MAX_STEPS:  # schemas come from callers, and may refer to themselves
            yield f"{where}: nested too deep or too involved to check"
        elif schema is False:
            yield f"{where}: nothing is allowed here"
        elif isinstance(schema, Mapping):
            yield from self._referred(value, schema, where, depth)
            yield from _value(value, schema, where)
            yield from self._combined(value, schema, where, depth)
            if isinstance(value, Mapping):
                yield from self._object(value, schema, where, depth)
            elif isinstance(value, list):
                yield from self._array(value, schema, where, depth)

    def _fits(self, value: Any, schema: Any, depth: int) -> bool:
        return next(self.problems(value, schema, "", depth + 1), None) is None

    def _referred(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return
        target: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        if target is None or not reference.startswith("#"):
            yield f"{where}: the schema's $ref {reference!r} cannot be resolved"
        else:
            yield from self.problems(value, target, where, depth + 1)

    def _combined(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        for part in _list(schema, "allOf"):
            yield from self.problems(value, part, where, depth + 1)
        if "anyOf" in schema and not any(self._fits(value, part, depth) for part in _list(schema, "anyOf")):
            yield f"{where}: {_shown(value)} fits none of anyOf"
        if "oneOf" in schema:
            fitting = sum(self._fits(value, part, depth) for part in _list(schema, "oneOf"))
            if fitting != 1:
                yield f"{where}: {_shown(value)} fits {fitting} of oneOf, not one"
        if "not" in schema and self._fits(value, schema["not"], depth):
            yield f"{where}: {_shown(value)} is what the schema excludes"

    def _object(self, value: Mapping[str, Any], schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        for name in _list(schema, "required"):
            if isinstance(name, str) and name not in value:
                yield f"{where}.{name}: is required and missing"
        named = schema.get("properties")
        named = named if isinstance(named, Mapping) else {}
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in named:
                yield from self.problems(item, named[name], f"{where}.{name}", depth + 1)
            elif others is False:
                yield f"{where}.{name}: is not a parameter; there are {', '.join(map(str, named)) or 'none'}"
            elif isinstance(others, Mapping):
                yield from self.problems(item, others, f"{where}.{name}", depth + 1)
        yield from _sized(len(value), schema, "Properties", "keys", where)

    def _array(self, value: list[Any], schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        first = _list(schema, "prefixItems")
        for index, item in enumerate(value):
            expected = first[index] if index < len(first) else schema.get("items", True)
            yield from self.problems(item, expected, f"{where}[{index}]", depth + 1)
        yield from _sized(len(value), schema, "Items", "items", where)
        if schema.get("uniqueItems") is True and len(set(map(_normal, value))) < len(value):
            yield f"{where}: items repeat"


def _value(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else _list(schema, "type")
        if not any(_is(value, kind) for kind in kinds):
            yield f"{where}: expected {' or '.join(map(str, kinds))}, got {_kind(value)}"
    if "enum" in schema and _normal(value) not in map(_normal, _list(schema, "enum")):
        yield f"{where}: {_shown(value)} is not one of {_shown(schema['enum'])}"
    if "const" in schema and _normal(value) != _normal(schema["const"]):
        yield f"{where}: {_shown(value)} is not {_shown(schema['const'])}"
    if isinstance(value, str):
        yield from _sized(len(value), schema, "Length", "characters", where)
    if _is(value, "number"):
        for keyword, fails, words in _BOUNDS:
            bound: Any = schema.get(keyword)
            if _is(bound, "number") and fails(value, bound):
                yield f"{where}: {value} is {words} {bound}"
        step: Any = schema.get("multipleOf")
        if _is(step, "number") and step > 0 and not _divides(step, value):
            yield f"{where}: {value} is not a multiple of {step}"


def _divides(step: float, value: float) -> bool:
    if isinstance(step, int) and isinstance(value, int):
        return value % step == 0
    return Fraction(str(value)) % Fraction(str(step)) == 0


_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("minimum", lambda value, bound: value < bound, "less than"),
    ("maximum", lambda value, bound: value > bound, "more than"),
    ("exclusiveMinimum", lambda value, bound: value <= bound, "not more than"),
    ("exclusiveMaximum", lambda value, bound: value >= bound, "not less than"),
)
_KINDS: tuple[tuple[str, type], ...] = (("string", str), ("array", list), ("object", Mapping))


def _sized(size: int, schema: Mapping[str, Any], keyword: str, unit: str, where: str) -> Iterator[str]:
    least: Any = schema.get(f"min{keyword}")
    most: Any = schema.get(f"max{keyword}")
    if _is(least, "number") and size < least:
        yield f"{where}: has {size} {unit}, fewer than {least}"
    if _is(most, "number") and size > most:
        yield f"{where}: has {size} {unit}, more than {most}"


def _list(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _is(value: Any, kind: Any) -> bool:
    if kind == "integer":
        return _kind(value) == "number" and int(value) == value
    return bool(_kind(value) == kind)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "number" if isinstance(value, int) or math.isfinite(value) else "no number"
    return next((name for name, kind in _KINDS if isinstance(value, kind)), type(value).__name__)


def _normal(value: Any) -> Any:
    """Return a hashable form in which equal means equal in JSON: true is not 1, 1.0 is 1."""
    if isinstance(value, list):
        return ("array", *map(_normal, value))
    if isinstance(value, Mapping):
        return ("object", frozenset((key, _normal(item)) for key, item in value.items()))
    return (_kind(value), value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
