"""Lines that a user should see once, on stderr unless logging is configured otherwise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

logger = logging.getLogger("fathom")


@lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning, unless this process logged the same one before."""
    logger.warning("%s", message)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Join names by commas; those after ``most`` are counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
