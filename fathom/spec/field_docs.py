"""What every field of a spec means, read from the docstrings below the fields.

A docstring says the meaning first. Lines that begin with ``Unit:``, ``Paper:`` and ``Example:`` may follow: the unit,
the value that a paper publishes with its source, and a value as TOML writes it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import math
import operator
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

from fathom.spec.mapping import field_types, to_mapping

_LABELS = ("Unit", "Paper", "Example")
_SELDOM_LEFT_OUT = frozenset({("ModelSpec", "intermediate_size")})
"""Fields that only special combinations of others do without: examples give them."""
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDoc:
    """A field of ``spec``, for people: ``default`` and ``example`` are TOML values; None where there is none."""

    spec: type = dataclasses.field(repr=False, compare=False)
    name: str
    meaning: str
    type: str
    hint: Any
    required: bool
    default: str | None
    unit: str | None = None
    paper: str | None = None
    example: str | None = None
    choices: tuple[str, ...] = ()


@cache
def field_docs(cls: type) -> Mapping[str, FieldDoc]:
    """Return the documentation of each field of a spec, in the order of its fields; empty texts where it has none."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= _docstrings(each)
    hints, fields = field_types(cls), dataclasses.fields(cls)
    return MappingProxyType({f.name: _field_doc(cls, f, hints[f.name], texts.get(f.name, "")) for f in fields})


def kind_of(spec: Any) -> str | None:
    """Return the ``kind`` that names a spec within a union; None for one that needs none."""
    kind = getattr(spec, "kind", None)
    return kind if isinstance(kind, str) else None


def specs_in(hint: Any) -> tuple[type, ...]:
    """Return the specs that a field of such a type holds, itself or in a list."""
    if dataclasses.is_dataclass(hint):
        return (typing.cast(type, hint),)
    return tuple(spec for part in get_args(hint) for spec in specs_in(part))


def all_specs(*roots: type) -> tuple[type, ...]:
    """Return every spec that is reachable from ``roots`` through fields, each once, roots first."""
    found: dict[type, None] = {}
    waiting = list(roots)
    while waiting:
        spec = waiting.pop(0)
        if spec not in found:
            found[spec] = None
            waiting += [inner for doc in field_docs(spec).values() for inner in specs_in(doc.hint)]
    return tuple(found)


def without_none(hint: Any) -> Any:
    """Return a type without its None."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return functools.reduce(operator.or_, rest)
    return hint


def toml_value(value: Any) -> str:
    """Write a plain value as TOML does on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {toml_value(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    return repr(value) if math.isfinite(value) else str(value)


def example_line(doc: FieldDoc) -> str:
    """Return a line of TOML that sets a field rightly."""
    return f"{doc.name} = {example_value(doc)}"


def example_value(doc: FieldDoc) -> str:
    """Return the example of a field as TOML writes it: its own, its default, or the required fields of its table."""
    if doc.example is not None:
        return doc.example
    if doc.choices and not specs_in(doc.hint):
        return toml_value(doc.choices[0])
    specs = specs_in(doc.hint)
    if not specs or (doc.default is not None and doc.default != "{}"):
        return doc.default or '""'
    return f"[{example_table(specs[0])}]" if get_origin(without_none(doc.hint)) is tuple else example_table(specs[0])


def example_table(spec: type) -> str:
    """Return a spec as a table of TOML on one line: its kind and what it requires."""
    kind = kind_of(spec)
    parts = [f"kind = {toml_value(kind)}"] if kind else []
    named = (doc for doc in field_docs(spec).values() if doc.required or (spec.__name__, doc.name) in _SELDOM_LEFT_OUT)
    parts += [example_line(doc) for doc in named]
    return f"{{ {', '.join(parts)} }}" if parts else "{}"


def summary(spec: type) -> str:
    """Return the first sentence of a spec's docstring as one line."""
    text = " ".join(inspect.cleandoc(spec.__doc__ or "").split("\n\n")[0].split())
    return text.removesuffix(".")


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name) else toml_value(name)


def _field_doc(cls: type, f: dataclasses.Field[Any], hint: Any, text: str) -> FieldDoc:
    required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    meaning, labelled = _parts(text)
    return FieldDoc(
        spec=cls,
        name=f.name,
        meaning=meaning,
        type=type_words(hint),
        hint=hint,
        required=required,
        default=None if required else _default(f),
        unit=labelled.get("Unit"),
        paper=labelled.get("Paper"),
        example=labelled.get("Example"),
        choices=_choices(hint),
    )


def _default(f: dataclasses.Field[Any]) -> str | None:
    value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    if value is None:
        return None
    return toml_value(_differing(value))


def _differing(value: Any) -> Any:
    """Return a value as a mapping has it, without those fields of specs that are what they are by default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return to_mapping(value)
    kind = kind_of(value)
    differing = {name: _differing(getattr(value, name)) for name in field_docs(type(value))}
    usual = {name: doc.default for name, doc in field_docs(type(value)).items()}
    kept = {n: item for n, item in differing.items() if item is not None and usual[n] != toml_value(item)}
    return ({"kind": kind} if kind else {}) | kept


def _choices(hint: Any) -> tuple[str, ...]:
    plain = without_none(hint)
    if get_origin(plain) is Literal:
        return tuple(str(choice) for choice in get_args(plain))
    return tuple(kind for spec in specs_in(plain) if (kind := kind_of(spec)) is not None)


def type_words(hint: Any) -> str:
    """Say in plain words what values a field takes."""
    plain = without_none(hint)
    origin = get_origin(plain)
    if origin is Literal:
        return f"one of {', '.join(toml_value(choice) for choice in get_args(plain))}"
    if origin is tuple:
        parts = get_args(plain)
        if parts[-1] is Ellipsis:
            return f"list of: {type_words(parts[0])}"
        return f"[{', '.join(type_words(part) for part in parts)}]"
    if origin is Mapping:
        return "table of plain values"
    specs = specs_in(plain)
    kinds = [f'"{kind}"' for spec in specs if (kind := kind_of(spec))]
    if len(specs) > 1:
        return f"table with kind = {' or '.join(kinds)}"
    return "table" if specs else _WORDS.get(plain, str(plain))


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into the meaning and its labelled lines; a line that is indented continues the one before."""
    meaning: list[str] = []
    labelled: dict[str, str] = {}
    last: str | None = None
    for line in inspect.cleandoc(text).splitlines():
        label, colon, rest = line.partition(":")
        if colon and label in _LABELS:
            last = label
            labelled[label] = rest.strip()
        elif last is not None and line.startswith(" "):
            labelled[last] += f" {line.strip()}"
        else:
            meaning.append(line)
    return " ".join(" ".join(meaning).split()), labelled


@cache
def _module_docstrings(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return, for each class of a module, the docstrings of its annotated attributes."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                field.target.id: str(text.value.value)
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return MappingProxyType(found)


def _docstrings(cls: type) -> Mapping[str, str]:
    return _module_docstrings(cls.__module__).get(cls.__name__, {})
