"""Lines that a user should see once, on stderr unless logging is configured otherwise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

logger = logging.getLogger("fathom")
_MAX_LISTED = 8


@lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning, unless this process logged the same one before."""
    logger.warning("%s", message)


def listed(names: Sequence[str]) -> str:
    """Join names by commas; after the eighth they are counted."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
