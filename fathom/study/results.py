"""Writing an experiment's result.json, table.md and picture.png, and helpers for its tables."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fathom.files import json_text

RESULT, TABLE, PICTURE = "result.json", "table.md", "picture.png"
PIXELS_PER_INCH = 130


def write_results(directory: Path, result: Mapping[str, Any], table: str, figure: Figure) -> None:
    """Write the three files; the picture carries no date, so that equal runs give equal files."""
    (directory / RESULT).write_text(json_text(result), encoding="utf-8")
    (directory / TABLE).write_text(table.rstrip() + "\n", encoding="utf-8")
    figure.savefig(directory / PICTURE, dpi=PIXELS_PER_INCH, metadata={"Software": None})


def environment() -> dict[str, str]:
    """Versions that figures may depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "threads": str(torch.get_num_threads())}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers, padded to be read as it is."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]
    padded = [
        [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * width if not column else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def mean_spread(values: Sequence[float], digits: int) -> str:
    """The mean and the standard deviation (of a sample) as text: ``0.92 ± 0.01``; a dash where there are no values."""
    if not values:
        return "-"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
