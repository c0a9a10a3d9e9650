"""API keys: each with a name for logs and metrics, and with what its requests may ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.errors import DataError, SpecError
from fathom.files import sha256
from fathom.spec import check
from fathom.spec.mapping import from_mapping, read_toml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FEWEST_CHARS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key, given itself or as its SHA-256, and its limits; None is no limit beside the server's own.

    ``max_tokens`` bounds the answer of a request, ``models`` are the names of those it may use (aliases follow their
    model), and ``priority`` lets its requests' priority count where there are several keys. Budgets of a minute or a
    day refill evenly; those of tokens count prompts and answers.
    """

    name: str
    key: str | None = field(default=None, repr=False)
    sha256: str | None = field(default=None, repr=False)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    max_tokens: int | None = None
    models: tuple[str, ...] | None = None
    priority: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            remedy = "give 1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit"
            raise SpecError("name", f"{self.name[:80]!r} is no name of a key", remedy)
        if (self.key is None) == (self.sha256 is None):
            raise SpecError("key", "is needed, or sha256, and not both", "give one of the two")
        if self.key is not None and not _is_key(self.key):
            problem = f"is shorter than {_FEWEST_CHARS} characters or holds a space or an unprintable one"
            raise SpecError("key", problem, "give a long random key")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise SpecError("sha256", "is no SHA-256", "give 64 hexadecimal digits, in lower case")
        for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                check.positive(name, value)
        if self.models is not None and not self.models:
            raise SpecError("models", "names none", "name those that the key may use, or leave it out")

    @property
    def digest(self) -> str:
        """The key's SHA-256, which also says whose stored responses and cached prefixes are its own."""
        return sha256(self.key) if self.key is not None else str(self.sha256)


def _is_key(key: str) -> bool:
    return len(key) >= _FEWEST_CHARS and key.isascii() and key.isprintable() and " " not in key


def numbered(keys: tuple[str | ApiKey, ...]) -> tuple[ApiKey, ...]:
    """Return keys by name: those given as a text are key-1, key-2, ...

    Raises:
        SpecError: a key is too short, or two have one name.
    """
    try:
        found = tuple(
            each if isinstance(each, ApiKey) else ApiKey(name=f"key-{index}", key=each)
            for index, each in enumerate(keys, 1)
        )
    except SpecError as error:
        raise SpecError("api_keys", f"a key {error.problem}", "give long random keys, one a line") from None
    check_distinct(found)
    return found


def check_distinct(keys: tuple[ApiKey, ...]) -> None:
    """Refuse two keys of one name, or of one value: which limits hold would not be known."""
    for what, values in (("name", [key.name for key in keys]), ("value", [key.digest for key in keys])):
        again = next((index for index, value in enumerate(values) if value in values[:index]), None)
        if again is not None:
            first = keys[values.index(values[again])].name
            raise SpecError(f"keys.{keys[again].name}", f"has the {what} of another key, {first}", "make it another")


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Read a TOML file: a table ``[keys.NAME]`` for each key, and ``[defaults]`` for what they leave out.

    Raises:
        DataError: the file cannot be read, or a table or field is wrong; it names it, but no key.
    """
    try:
        given = read_toml(path)
        unknown = set(given) - {"keys", "defaults"}
        if unknown:
            raise SpecError(sorted(unknown)[0], "is not known here", "write tables [keys.NAME] and [defaults]")
        keys, defaults = _table("keys", given.get("keys", {})), _table("defaults", given.get("defaults", {}))
        if {"name", "key", "sha256"} & set(defaults):
            raise SpecError("defaults", "holds a name or a key", "write it in a table [keys.NAME]")
        if not keys:
            raise SpecError("keys", "is missing", 'write a table [keys.NAME] with key = "..." for each key')
        found = tuple(
            from_mapping(ApiKey, defaults | _table(f"keys.{name}", table) | {"name": name}, f"keys.{name}")
            for name, table in keys.items()
        )
        check_distinct(found)
    except SpecError as error:
        raise DataError(f"{path}: {error}") from None
    return found


def _table(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(path, "is no table", f"write [{path}] on a line of its own")
    return value
