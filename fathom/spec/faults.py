"""All that is wrong with a mapping at once, where ``from_mapping`` stops at the first.

A table whose every field can be read is made whole, so contradictions between its fields are found. Where one cannot,
each other field is tried by itself among values that are right: what is wrong whatever the rest is is found
(``SpecError.alone``), and no contradiction with a value that nobody gave.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, Union, get_args, get_origin

from fathom.errors import SpecError, SpecErrors
from fathom.spec.field_docs import FieldDoc, example_line, example_table, field_docs, kind_of, toml_value
from fathom.spec.mapping import convert, field_types, from_mapping, member_of, parse_toml_value, unknown_field
from fathom.spec.renamed import with_current_names

S = TypeVar("S")
_BROKEN: Any = object()
_MOST_FAULTS = 100


class Faults:
    """What is wrong with one file, collected so that all of it is said at once."""

    def __init__(self, found: Iterable[SpecError] = ()) -> None:
        self.found = list(found)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the error that is raised within."""
        try:
            yield
        except SpecError as error:
            self.found += error.faults

    def raise_if_any(self) -> None:
        """Raise the only fault as it is, or several as ``SpecErrors``, each once."""
        distinct = {(fault.path, fault.problem): fault for fault in self.found}
        if len(distinct) == 1:
            raise _with_example_in_remedy(self.found[0])
        if distinct:
            raise SpecErrors("", list(distinct.values())[:_MOST_FAULTS])


def _with_example_in_remedy(error: SpecError) -> SpecError:
    if not error.example or error.example in error.remedy:
        return error
    return SpecError(error.path, error.problem, f"{error.remedy}, e.g. {error.example}", alone=error.alone)


def from_mapping_or_faults(cls: type[S], mapping: Mapping[str, Any]) -> tuple[S | None, list[SpecError]]:
    """Make a spec from a mapping as ``from_mapping`` does; or return None and everything that is wrong with it.

    Each fault is located from the root, and has an example where the field is known.
    """
    try:
        return from_mapping(cls, mapping), []
    except SpecError as error:
        if not error.path:
            return None, [error]
        found: list[SpecError] = []
        _make(cls, mapping, "", found)
        return None, found or [error]


def _read(hint: Any, value: Any, path: str, found: list[SpecError], doc: FieldDoc | None) -> Any:
    """Return a value as a field has it, or ``_BROKEN`` and its faults in ``found``."""
    try:
        if get_origin(hint) in (Union, types.UnionType):
            if value is None and type(None) in get_args(hint):
                return None
            members = [part for part in get_args(hint) if part is not type(None)]
            hint = members[0] if len(members) == 1 else _member(members, value, path)
        if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis and isinstance(value, list | tuple):
            items = [_read(get_args(hint)[0], item, f"{path}[{i}]", found, doc) for i, item in enumerate(value)]
            return _BROKEN if any(item is _BROKEN for item in items) else tuple(items)
        if dataclasses.is_dataclass(hint):
            return _make(hint, value, path, found)
        return convert(hint, value, path)
    except SpecError as error:
        found.append(_with_example(error, doc))
        return _BROKEN


def _member(members: Sequence[Any], value: Any, path: str) -> Any:
    """Return the spec that a table's kind names; an error has the nearest kind as example."""
    try:
        return member_of(members, value, path)
    except SpecError as error:
        kinds = [kind for member in members if (kind := kind_of(member))]
        given = str(value.get("kind"))[:100] if isinstance(value, Mapping) else ""
        nearest = (difflib.get_close_matches(given, kinds, n=1) or kinds)[0]
        error.example = f"kind = {toml_value(nearest)}"
        raise


def _make(cls: Any, mapping: Any, path: str, found: list[SpecError]) -> Any:
    if not isinstance(mapping, Mapping):
        problem = f"expected a table, got {mapping!r}"
        found.append(SpecError(path, problem, "write it as a table of fields", example=example_table(cls)))
        return _BROKEN
    before, docs, kind = len(found), field_docs(cls), kind_of(cls)
    try:
        given = with_current_names(mapping, docs, kind)
    except SpecError as error:
        found.append(_located(error, path, None))
        _make(cls, {name: value for name, value in mapping.items() if name != error.path}, path, found)
        return _BROKEN
    given = {name: value for name, value in given.items() if not (name == "kind" and kind)}
    found += [_located(unknown_field(name, docs), path, None) for name in given if name not in docs]
    for name, doc in docs.items():
        if doc.required and name not in given:
            found.append(_located(SpecError(name, "is missing", "set it"), path, doc))
    hints = field_types(cls)
    values = {
        name: _read(hints[name], value, f"{path}.{name}" if path else name, found, docs[name])
        for name, value in given.items()
        if name in docs
    }
    if len(found) == before:
        try:
            return cls(**values)
        except SpecError as error:
            found.append(_located(error, path, docs.get(_first(error.path)) if error.alone else None))
    reported = {_first(fault.path.removeprefix(f"{path}.") if path else fault.path) for fault in found[before:]}
    tried = {name: value for name, value in values.items() if value is not _BROKEN and name not in reported}
    found += [_located(error, path, docs[name]) for name, error in _wrong_alone(cls, tried).items()]
    return _BROKEN


def _wrong_alone(cls: Any, values: Mapping[str, Any]) -> dict[str, SpecError]:
    """Return the errors of values that are wrong whatever the other fields of their spec are."""
    usual = from_mapping(cls, parse_toml_value(example_table(cls)))
    wrong = {}
    for name, value in values.items():
        try:
            dataclasses.replace(usual, **{name: value})
        except SpecError as error:
            if error.alone and _first(error.path) == name:
                wrong[name] = error
    return wrong


def _first(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _located(error: SpecError, path: str, doc: FieldDoc | None) -> SpecError:
    return _with_example(error.under(path) if path else error, doc)


def _with_example(error: SpecError, doc: FieldDoc | None) -> SpecError:
    if doc is not None and not error.example:
        error.example = example_line(doc)
    return error
