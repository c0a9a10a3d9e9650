"""Fields that a request has and its schema has not: ignored, and named to the client."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

MAX_NAMED = 16
"""Names in the header and the log; further ones are counted."""
_MAX_NAME = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]$-]")
_INDEX = re.compile(r"\[\d+\]")


class IgnoredValue:
    """Type of a field whose value is not read: None for null, else True. The value never becomes Python objects."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(core_schema.none_schema(), default=True, on_error="default")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {}


class IgnoredFields:
    """Paths of ignored fields in order of their appearance. Fields of one name in the items of a list count as one."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._more = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the paths that are named."""
        return iter(self._first.values())

    def __len__(self) -> int:
        """Count all ignored fields."""
        return sum(self._counts.values()) + self._more

    def add(self, path: str, known: frozenset[str] = frozenset(), *, note: str = "") -> None:
        """Add a field. ``known`` are the names of its object's schema, one of which may have been meant.

        ``note`` says in a few ASCII words why a known field is ignored.
        """
        kind = _INDEX.sub("[]", path[: 2 * _MAX_NAME])
        if kind in self._counts:
            self._counts[kind] += 1
        elif len(self._first) == MAX_NAMED:
            self._more += 1
        else:
            name = path.rpartition(".")[2]
            meant = difflib.get_close_matches(name[:_MAX_NAME], known, n=1, cutoff=0.85)
            hint = f"did you mean {meant[0]}?" if meant else note
            self._first[kind] = _safe(path) + (f" ({hint})" if hint else "")
            self._counts[kind] = 1

    @property
    def text(self) -> str:
        """All names in one line of safe characters, at most about 2 KiB; empty without any."""
        named = [
            first if self._counts[kind] == 1 else f"{first} ({self._counts[kind]} times)"
            for kind, first in self._first.items()
        ]
        return ", ".join([*named, f"and {self._more} more"] if self._more else named)


def _safe(path: str) -> str:
    shown = path if len(path) <= _MAX_NAME else path[:_MAX_NAME] + "..."
    return _UNSAFE.sub("?", shown) or "(empty)"
