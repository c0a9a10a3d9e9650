"""A case of the compatibility table: something that other people hand over, and what Fathom does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["works", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened: ``detail`` is Fathom's own line or a figure, short, and the same on every machine."""

    status: Status
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table.

    ``what`` is an English phrase and ``zh`` the same in Chinese. ``source`` is the public thread where people met it,
    as ``owner/repo#123``, or empty. ``run`` gets an empty directory, does the thing with real components and returns
    what happened; ``expected`` is the promise.
    """

    what: str
    zh: str
    expected: Status
    run: Callable[[Path], Outcome]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A table of the page: its title in both languages, and its cases."""

    title: str
    title_zh: str
    cases: tuple[Case, ...]
