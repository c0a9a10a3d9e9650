"""Progress of a stage of epochs, in the units that its user thinks in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fathom.train.protocols import ExampleCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochProgress:
    """How many conversations or pairs (``unit``) of ``epochs`` epochs a loader has given."""

    loader: ExampleCounter
    epochs: float
    unit: str

    def now(self) -> tuple[int, int, str]:
        """Return the examples given, those of all epochs together, and which epoch that is, e.g. "2 of 3"."""
        each = self.loader.examples_per_epoch
        total = math.ceil(self.epochs * each)
        given = min(self.loader.examples_given, total)
        return given, total, f"{max(1, math.ceil(given / each))} of {math.ceil(self.epochs)}"
