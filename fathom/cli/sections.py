"""Sections of names and values on a terminal, or as plain lines of a fixed width."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from fathom.cli.terminal import FilteredConsole

PIPE_COLUMNS = 140
NAME_COLUMNS = 17


def report_console() -> Console:
    """Return a console as wide as the terminal, or ``PIPE_COLUMNS`` wide."""
    console = FilteredConsole()
    return console if console.is_terminal else FilteredConsole(width=PIPE_COLUMNS)


def padded(text: str, width: int) -> str:
    """Return a text with spaces up to a width in cells, of which a Chinese character takes two; no text is cut."""
    return text if cell_len(text) >= width else set_cell_size(text, width)


def section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a title, and a line for each name and value; further lines of a value stand below it."""
    console.print()
    console.print(title, style="bold")
    for name, value in rows:
        first, *more = value.splitlines() or [""]
        line = Text.assemble((f"  {padded(name, NAME_COLUMNS - 1)} ", "dim"), first)
        for extra in more:
            line.append(f"\n  {'':<{NAME_COLUMNS}}{extra}")
        console.print(line, soft_wrap=not console.is_terminal)
