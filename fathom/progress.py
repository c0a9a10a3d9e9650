"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

NO_FACTS: Mapping[str, str] = MappingProxyType({})


class Progress(Protocol):
    """Receives news of a run; the command line draws it, tests and libraries ignore it."""

    def stage(self, name: str, index: int, total: int) -> None:
        """Step ``name`` begins; it is number ``index`` (from 1) of ``total``."""
        ...

    def update(self, done: float, total: float | None, unit: str, facts: Mapping[str, str] = NO_FACTS) -> None:
        """``done`` of ``total`` units are finished; ``facts`` are short values to show, e.g. loss."""
        ...

    def message(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def finish(self, seconds: float) -> None:
        """The current step is done."""
        ...


class Silent:
    """Ignores everything."""

    def stage(self, name: str, index: int, total: int) -> None:
        """Ignore."""

    def update(self, done: float, total: float | None, unit: str, facts: Mapping[str, str] = NO_FACTS) -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""

    def finish(self, seconds: float) -> None:
        """Ignore."""
