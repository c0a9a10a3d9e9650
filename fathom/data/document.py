"""The document, and the callback that reports progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source. ``id`` tells where it came from: file inside the source, then its number in the file."""

    text: str
    source: str
    id: str


class Progress(Protocol):
    """Called from time to time with how far a stage is; ``total`` is None where nobody knows."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Take note; must return quickly and may be called from several threads, one at a time."""
        ...


def silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """Report nothing."""
