"""One text of a source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source. ``id`` is its file inside the source, then its number in that file."""

    text: str
    source: str
    id: str
