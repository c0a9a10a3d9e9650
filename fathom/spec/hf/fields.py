"""Reading a config.json field by field: typed, located, and with unread fields reported.

Fields that are not part of a spec are carried along. Those known to change what a model computes are refused where
their value means something that is not built (``known_fields``); those that nothing is known of are named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fathom.errors import SpecError
from fathom.spec.hf.known_fields import INERT, UNSUPPORTED

_MOST_BITS = 64
MISSING: Any = object()
"""Marks a field without a default."""


class Fields:
    """The fields of one config.json, with a note of which were read.

    ``aliases`` maps other names of fields to the names they are read by.
    """

    def __init__(self, config: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> None:
        self._config = _without_aliases(config, aliases or {})
        self._read: set[str] = set(aliases or {})
        self._unknown_inside: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def was_read(self, name: str) -> bool:
        """Whether a field was read before."""
        return name in self._read

    def raw(self, name: str, default: Any = None) -> Any:
        """Return a field as it stands and count it as read."""
        self._read.add(name)
        return self._config.get(name, default)

    def integer(self, name: str, default: Any = MISSING) -> int:
        """Return a whole number; null means the default."""
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecError(name, f"expected a whole number, got {value!r}", "correct the config.json")
        return value

    def number(self, name: str, default: Any = MISSING) -> float:
        """Return a number; null means the default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(name, f"expected a number, got {value!r}", "correct the config.json")
        return float(value)

    def flag(self, name: str, default: Any = MISSING) -> bool:
        """Return true or false; null means the default."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise SpecError(name, f"expected true or false, got {value!r}", "correct the config.json")
        return value

    def word(self, name: str, default: Any = MISSING) -> str:
        """Return a string; null means the default."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise SpecError(name, f"expected a string, got {value!r}", "correct the config.json")
        return value

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """Return a whole number or None where the field is null; a missing field takes the default."""
        if self.raw(name, default) is None:
            return None
        return self.integer(name, default)

    def token_id(self, name: str, default: int | None = None) -> int | None:
        """Return a token id; of a list, the first, and None of an empty one (the list itself is carried)."""
        value = self.raw(name, default)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise SpecError(name, f"expected a token id, got {value!r}", "give a whole number")
        return value

    def table(self, name: str) -> Mapping[str, Any] | None:
        """Return a nested table, or None where the field is null or missing."""
        value = self.raw(name)
        if value is not None and not isinstance(value, Mapping):
            raise SpecError(name, f"expected a table, got {value!r}", "correct the config.json")
        return value

    def only(self, name: str, allowed: Collection[Any], remedy: str) -> None:
        """Require a field, where present, to have one of the values that are built."""
        if name in self._config and self.raw(name) not in allowed:
            raise SpecError(name, f"{self._config[name]!r} is not supported", remedy)

    def note_unknown(self, table: str, names: Iterable[str]) -> None:
        """Count fields of a nested table as unknown."""
        self._unknown_inside += [f"{table}.{name}" for name in names]

    def check_rest(self) -> tuple[str, ...]:
        """Return the names of unknown fields that say something, those of nested tables last.

        Raises:
            SpecError: a field that was not read is known to change numbers, and has a value that is not built.
        """
        rest = [(name, value) for name, value in self._config.items() if name not in self._read]
        for name, value in rest:
            known = UNSUPPORTED.get(name)
            if known is not None and value not in (None, "", [], {}, *known.harmless):
                raise SpecError(name, f"{value!r:.60} is not supported, for {known.reason}", known.remedy)
        unknown = (
            name for name, value in rest if name not in INERT and name not in UNSUPPORTED and not is_empty(value)
        )
        return (*unknown, *self._unknown_inside)

    def _value(self, name: str, default: Any) -> Any:
        value = self.raw(name)
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise SpecError(name, f"a whole number of {value.bit_length()} bits", "correct the config.json")
        if value is None:
            if default is MISSING:
                raise SpecError(name, "is missing", "add it to the config.json")
            return default
        return value


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, false, or an empty string, list or table."""
    return value is None or value is False or value in ("", [], {})


def _without_aliases(config: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the config with every field under the name it is read by."""
    renamed = dict(config)
    for alias, name in aliases.items():
        value = config.get(alias)
        if value is None:
            continue
        if config.get(name) not in (None, value):
            raise SpecError(alias, f"{value!r} contradicts {name} {config[name]!r}", "keep one of the two")
        renamed[name] = value
    return renamed
