"""The protocol by which long work reports its progress; every ``progress`` argument of the package takes it.

``amount`` and ``size`` are how reports write counts and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

NO_METRICS: Mapping[str, str] = MappingProxyType({})


def amount(value: float) -> str:
    """Write a count shortly: 950, 12.3k, 4.56M."""
    return "".join(_scaled(value))


def size(count: float) -> str:
    """Write bytes shortly, in powers of 1000: 950 B, 12.3 kB, 2.1 GB."""
    number, prefix = _scaled(count)
    return f"{number} {prefix}B"


def _scaled(value: float) -> tuple[str, str]:
    """Return a value in three digits and the prefix of its unit."""
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:  # which rounds to 1000 of the smaller unit
            return f"{value / unit:.3g}", prefix
    return f"{value:.0f}", ""


class Progress(Protocol):
    """Receives progress reports; the command line draws them with an estimate of the time left.

    Calls return quickly and may come from several threads, one at a time. An implementation may raise from ``update``
    to stop the work, which then publishes nothing. Derive from ``NullProgress`` to implement some of the methods.
    """

    def stage(self, name: str, index: int, total: int) -> None:
        """Step ``name`` of a run starts, number ``index`` (from 1) of ``total``; ``finish`` ends it."""
        ...

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Report that ``done`` of ``total`` units (None: unknown) are finished.

        ``phase`` names the part of the work that is counted, e.g. "fetch"; ``metrics`` are short values to show by
        name, e.g. the loss.
        """
        ...

    def message(self, text: str) -> None:
        """Report one line to be kept, e.g. a warning."""
        ...

    def finish(self, seconds: float) -> None:
        """The current stage is done after so many seconds."""
        ...


class NullProgress:
    """A ``Progress`` that ignores every report."""

    def stage(self, name: str, index: int, total: int) -> None:
        """Ignore the report."""

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Ignore the report."""

    def message(self, text: str) -> None:
        """Ignore the report."""

    def finish(self, seconds: float) -> None:
        """Ignore the report."""


NULL_PROGRESS = NullProgress()
"""The default of every ``progress`` argument."""
