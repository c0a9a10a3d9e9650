"""TOML with a comment behind a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def value(given: Any) -> str:
    """Return a plain value as TOML: numbers with underscores, texts quoted, tables inline."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, int):
        return f"{given:_}" if abs(given) >= 10_000 else str(given)
    if isinstance(given, float):
        return f"{given:.12g}" if any(mark in f"{given:.12g}" for mark in ".en") else f"{given:.12g}.0"
    if isinstance(given, str):
        return json.dumps(given, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{name} = {value(item)}" for name, item in given.items()) + " }"
    return "[" + ", ".join(value(item) for item in given) + "]"


def lines(table: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """Return a table's fields, one a line; ``comments`` stand behind the fields they are about."""
    said = comments or {}
    rows = [f"{name} = {value(item)}{f' # {said[name]}' if name in said else ''}" for name, item in table.items()]
    return "\n".join(rows)
