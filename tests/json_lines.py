"""Files with a JSON value on each line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write a row a line, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of such a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
