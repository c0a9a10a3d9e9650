"""Specs from and to plain mappings (TOML, JSON): strict, typed, every error located.

A field that is a union of specs is a table with a ``kind``; a union with one member, or a bare spec, needs none.
A field typed ``Mapping[str, Any]`` is a table of plain values, whatever its keys: such a spec checks and copies it
with ``plain_table``, and leaves it out of its hash (``field(hash=False)``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from fathom.errors import SpecError, shortened
from fathom.spec.renamed import with_current_names

S = TypeVar("S")
_MOST_BITS = 64

MAX_TOML_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_INTEGER = (1 << 63) - 1
"""The largest that TOML has, and that a tensor can count."""
_FLATTER = f"use at most {MAX_DEPTH} levels"
_KEY = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"""(?<![\w."'-]){_KEY}(?:[ \t]*+\.[ \t]*+{_KEY}){{{MAX_DEPTH}}}""")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of at most ``MAX_TOML_BYTES``; any that cannot be used raises ``SpecError`` with its place."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise SpecError(str(path), "is no file", "name a .toml file")
        with path.open("rb") as file:
            content = file.read(MAX_TOML_BYTES + 1)
        if len(content) > MAX_TOML_BYTES:
            raise SpecError(str(path), f"has more than {MAX_TOML_BYTES:,} bytes", "keep data in files of their own")
        return parse_toml(content.decode())
    except FileNotFoundError:
        raise SpecError(str(path), "no such file", "check the path") from None
    except IsADirectoryError:
        raise SpecError(str(path), "is a folder", "name the .toml file itself") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), f"cannot be read ({error})", "check the file and its permissions") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(str(path), f"is not valid TOML: {error}", "correct that line") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        tomllib.TOMLDecodeError: it is none.
        SpecError: it is nested too deeply, or has an integer of more than 64 bits or a zero byte; located at the value.
    """
    deep = _DEEP_KEY.search(text)  # tomllib takes time that grows with the square of a key's parts
    if deep is not None:
        raise SpecError(f"line {text.count(chr(10), 0, deep.start()) + 1}", "a key of too many parts", _FLATTER)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError("nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    check_bounds(values)
    return values


def parse_toml_value(text: str) -> Any:
    """Parse one value as TOML writes it; raises as ``parse_toml`` does."""
    return parse_toml(f"value = {text}")["value"]


def check_bounds(values: Any) -> None:
    """Require of the values of a recipe what ``parse_toml`` does; ``SpecError`` is located at the value."""
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(values, ())]
    while waiting:
        value, place = waiting.pop()
        if isinstance(value, int) and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
            raise SpecError(_located(place), f"a number of {value.bit_length()} bits", "give one of at most 63")
        if isinstance(value, str) and "\0" in value:  # no system takes it in a path
            raise SpecError(_located(place), f"{shortened(repr(value))} holds a zero byte", "remove it")
        if isinstance(value, Mapping):
            inside: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, list | tuple):
            inside = enumerate(value)
        else:
            continue
        if len(place) >= MAX_DEPTH:
            raise SpecError(_located(place), "is nested too deeply", _FLATTER)
        waiting += [(item, (*place, name)) for name, item in inside]


def _located(place: Iterable[Any]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def from_mapping(cls: type[S], mapping: Mapping[str, Any], path: str = "") -> S:
    """Make a spec from a mapping; unknown, missing or mistyped fields raise ``SpecError`` located below ``path``."""
    try:
        return typing.cast(S, _make(cls, mapping))
    except RecursionError:
        raise SpecError(path, "is nested too deeply", _FLATTER) from None
    except SpecError as error:
        raise (error.under(path) if path else error) from None


def to_mapping(spec: Any) -> Any:
    """Turn a spec into mappings, lists and plain values; ``from_mapping`` gives an equal spec back.

    None fields are left out (TOML has no null).
    """
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        kind = getattr(type(spec), "kind", None)
        head = {"kind": kind} if isinstance(kind, str) else {}
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        return head | {name: to_mapping(value) for name, value in values.items() if value is not None}
    if isinstance(spec, Mapping):
        return {name: to_mapping(value) for name, value in spec.items()}
    if isinstance(spec, tuple | list):
        return [to_mapping(item) for item in spec]
    return spec


def plain_table(path: str, value: Any) -> dict[str, Any]:
    """Return a deep copy of a table of plain values: texts, booleans, finite numbers, lists and tables of these.

    JSON's null passes too, tuples become lists; anything else raises ``SpecError`` located below ``path``.
    """
    if not isinstance(value, Mapping):
        raise SpecError(path, f"expected a table, got {value!r}", "write it as a table of names and values")
    for name in value:
        if not isinstance(name, str):
            raise SpecError(path, f"{name!r} is no text", "name every entry of a table by a text")
    return {name: _plain(f"{path}.{name}", item) for name, item in value.items()}


def _plain(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_table(path, value)
    if isinstance(value, list | tuple):
        return [_plain(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if type(value) is float and not math.isfinite(value):
        raise SpecError(path, f"{value} is not finite", "give a finite number")
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise SpecError(path, f"{value!r} is no plain value", "use texts, numbers, booleans, lists and tables")


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the types of a spec's fields."""
    return typing.get_type_hints(cls)


def _make(cls: Any, mapping: Any) -> Any:
    if not isinstance(mapping, Mapping):
        raise SpecError("", f"expected a table, got {mapping!r}", "write it as a table of fields")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kind = getattr(cls, "kind", None)
    given = with_current_names(mapping, fields, kind if isinstance(kind, str) else None)
    given = {name: value for name, value in given.items() if not (name == "kind" and isinstance(kind, str))}
    for name in given:
        if name not in fields:
            raise unknown_field(name, fields)
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in given:
            raise SpecError(name, "is missing", f"set it in {cls.__name__}")
    values = {name: convert(field_types(cls)[name], value, name) for name, value in given.items()}
    return cls(**values)


def unknown_field(name: str, fields: Iterable[str]) -> SpecError:
    """Return the error of a field that a spec does not have."""
    near = difflib.get_close_matches(str(name)[:100], list(fields), n=1)
    known = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(fields))}"
    return SpecError(name, "unknown field", known)


def convert(hint: Any, value: Any, path: str) -> Any:
    """Return a plain value as a field of type ``hint`` has it; ``SpecError`` is located below ``path``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, path)
    if origin is Literal:
        if value not in get_args(hint):
            raise SpecError(path, f"unknown value {value!r}", f"use one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if origin is tuple:
        return _convert_tuple(get_args(hint), value, path)
    if origin is Mapping:
        return plain_table(path, value)
    if dataclasses.is_dataclass(hint):
        try:
            return _make(hint, value)
        except SpecError as error:
            raise error.under(path) from None
    return _convert_scalar(hint, value, path)


def _convert_union(members: Sequence[Any], value: Any, path: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = [m for m in members if m is not type(None)]
    if len(members) == 1:
        return convert(members[0], value, path)
    return convert(member_of(members, value, path), value, path)


def member_of(members: Sequence[Any], value: Any, path: str) -> Any:
    """Return the spec of a union that a table's ``kind`` names."""
    specs: dict[str, Any] = {m.kind: m for m in members if hasattr(m, "kind")}
    if not specs:
        raise TypeError(f"{path}: only unions of specs are supported, got {members}")
    if not isinstance(value, Mapping):
        raise SpecError(path, f"expected a table, got {value!r}", f"give one with a kind of {', '.join(sorted(specs))}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in specs:
        problem = "needs a kind" if kind is None else f"unknown kind {kind!r}"
        raise SpecError(f"{path}.kind", problem, f"use one of {', '.join(sorted(specs))}")
    return specs[kind]


def _convert_tuple(args: Sequence[Any], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SpecError(path, f"expected a list, got {value!r}", "write it as [a, b, ...]")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
    if len(value) != len(hints):
        raise SpecError(path, f"expected {len(hints)} values, got {len(value)}", "write it as [a, b, ...]")
    return tuple(convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise SpecError(path, f"a whole number of {value.bit_length()} bits", f"give one of at most {_MOST_BITS}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise SpecError(path, f"expected {hint.__name__}, got {value!r}", f"give a value of type {hint.__name__}")
    return value
