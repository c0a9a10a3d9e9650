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
