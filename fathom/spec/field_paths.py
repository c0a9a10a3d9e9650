"""Fields of recipes by their paths, e.g. ``model.attention`` or ``steps.sft.train.batch.size``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

from fathom.errors import SpecError
from fathom.spec.data import Manifest
from fathom.spec.field_docs import FieldDoc, field_docs, kind_of, specs_in
from fathom.spec.problem import ProblemSource
from fathom.spec.recipe import Recipe, Step

MOST_DEPTH = 12
MOST_ALIKE = 4
"""Fields of one name that are all explained; of more, the path must say which."""


@dataclass(frozen=True, slots=True)
class Place:
    """A table of a recipe or a field of one: ``field`` is None where the path names the table of one spec."""

    path: str
    specs: tuple[type, ...]
    field: FieldDoc | None = None


def find(path: str) -> tuple[Place, ...]:
    """Return the places that a path names: tables, or fields; one per spec that has such a field.

    A path begins at the recipe (``model``, ``steps``, ``problems.NAME``), at a manifest (``sources``), or at a step's
    kind. Tables with a kind go by it: ``steps.sft`` or ``model.attention.mla``; without the kind all are searched.
    Numbers, as in ``steps[3]``, are left out. The end of a path stands for all fields that end so, and a step's name
    before it, as ``--set`` has it, for its step.

    Raises:
        SpecError: there is no such field; similar ones are named.
    """
    parts = _parts(path)
    if not parts:
        return (Place("", (Recipe,)),)
    places = _starts(parts[0])
    parts = parts[2:] if parts[0] == "problems" else parts[1:]
    for part in parts:
        places = tuple(inner for place in places for inner in _below(place, part))
    if not places:
        places = _ending(path)
    if not places:
        near = difflib.get_close_matches(path, all_paths(), n=4, cutoff=0.5) or _same_end(path)
        remedy = f"did you mean {', '.join(near)}?" if near else "`fathom recipe fields` lists the parts of a recipe"
        raise SpecError(path, "no field of a recipe", remedy)
    return places


@cache
def all_paths() -> tuple[str, ...]:
    """Return the path of every field of recipes and manifests, those within a kind by that kind."""
    return tuple(dict.fromkeys((*_walk("", Recipe, 0), *_walk("", Manifest, 0))))


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[.\[\]]+", path.strip()) if part and not part.isdigit()]


def _ending(path: str) -> tuple[Place, ...]:
    """Return the fields whose paths end in ``path``, or in all but its first part; one of those that mean the same."""
    parts = _parts(path)
    for end in (".".join(parts), ".".join(parts[1:])):
        ways = [each for each in all_paths() if end and each.endswith(f".{end}")]
        docs: dict[str, Place] = {}
        for place in (place for each in ways for place in find(each)):
            docs.setdefault(str(place.field), place)
        if 0 < len(docs) <= MOST_ALIKE:
            return tuple(docs.values())
    return ()


def _same_end(path: str) -> list[str]:
    last = _parts(path)[-1]
    names = {each.rpartition(".")[2] for each in all_paths()}
    near = difflib.get_close_matches(last, sorted(names), n=1)
    return [each for each in all_paths() if near and each.rpartition(".")[2] == near[0]][:4]


def _starts(name: str) -> tuple[Place, ...]:
    for root in (Recipe, Manifest):
        if name in field_docs(root):
            doc = field_docs(root)[name]
            return (Place(name, specs_in(doc.hint), doc),)
    if name == "problems":
        return (Place("problems.NAME", specs_in(ProblemSource)),)
    return tuple(Place(f"steps.{name}", (step,)) for step in get_args(Step) if kind_of(step) == name)


def _below(place: Place, part: str) -> Iterator[Place]:
    """Yield what a part of a path names within a table: one of its kinds, or a field of every kind that has it."""
    kinds = {kind_of(spec): spec for spec in place.specs} if len(place.specs) > 1 else {}
    if part in kinds:
        yield Place(f"{place.path}.{part}", (kinds[part],))
        return
    for spec in place.specs:
        doc = field_docs(spec).get(part)
        if doc is not None:
            kind = f".{kind_of(spec)}" if len(kinds) > 1 else ""
            yield Place(f"{place.path}{kind}.{part}", specs_in(doc.hint), doc)


def _walk(path: str, spec: type, depth: int) -> Iterator[str]:
    for name, doc in field_docs(spec).items():
        below = f"{path}.{name}" if path else name
        yield below
        inner = specs_in(doc.hint)
        for each in inner if depth < MOST_DEPTH else ():
            kind = f".{kind_of(each)}" if len(inner) > 1 else ""
            if kind:
                yield f"{below}{kind}"
            yield from _walk(f"{below}{kind}", each, depth + 1)
