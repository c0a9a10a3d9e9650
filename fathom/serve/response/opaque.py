"""Reasoning as an opaque text, which clients send back where they do not show it.

It keeps no secret: it lets a conversation go on without any state in the server.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "fathom-reasoning:"


def carry(reasoning: str) -> str:
    """Return reasoning as an opaque text."""
    return base64.b64encode((_MARK + reasoning).encode()).decode()


def carried(opaque: str | None) -> str | None:
    """Return the reasoning in an opaque text of ``carry``, or None where it is of another server."""
    try:
        text = base64.b64decode(opaque or "", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text.removeprefix(_MARK) if text.startswith(_MARK) else None
