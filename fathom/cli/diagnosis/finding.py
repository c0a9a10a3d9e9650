"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found; ``remedy`` says what a missing piece would bring and how to get it, or how to repair
    a broken one.

    Only broken ones are faults: ``fathom doctor`` then ends with 1.
    """

    section: str
    name: str
    value: str
    status: Status = "ok"
    remedy: str = ""


def size(count: float) -> str:
    """Write bytes shortly: 512 MiB, 23.4 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
