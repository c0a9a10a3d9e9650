"""What every stream of batches checks of a position that it is to continue from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fathom.errors import DataError, shortened

_MOST = 1 << 62


def check_settings(state: Mapping[str, Any], mine: Mapping[str, Any], names: Iterable[str]) -> None:
    """Require that the settings a position was saved with are those of here; ``DataError`` names the first other."""
    for name in names:
        if state.get(name) != mine[name]:
            saved = shortened(repr(state.get(name)))
            raise DataError(
                f"loader state: {name} is {saved}, here it is {mine[name]!r}; "
                "resume with the data and settings it was saved with"
            )


def saved_count(state: Mapping[str, Any], name: str) -> int:
    """Return a count of a position; ``DataError`` where it is none."""
    count = state.get(name)
    if type(count) is not int or not 0 <= count < _MOST:
        saved = shortened(repr(count))
        raise DataError(f"loader state: {name} is {saved}, which is no count; use the checkpoint's own")
    return count
