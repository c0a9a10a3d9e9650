"""Lines that a user should see once, on stderr unless logging is configured otherwise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from fathom.terminal import one_line, visible

_LONGEST = 200
logger = logging.getLogger("fathom")


class RecordFormatter(logging.Formatter):
    """Writes a record so that no text within it looks like another record: every line but the first is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, control characters shown."""
        return "\n    ".join(visible(super().format(record)).split("\n"))


@lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning as one line, unless this process logged the same one before."""
    logger.warning("%s", one_line(message))


def listed(names: Sequence[str], most: int = 8) -> str:
    """Join names by commas; those after ``most`` are counted, and long ones are cut."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:most]) + more
