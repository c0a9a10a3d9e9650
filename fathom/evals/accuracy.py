"""Accuracy with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """``correct`` of ``n`` answers."""

    correct: int
    n: int

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Accuracy:
        """Count verdicts."""
        listed = list(verdicts)
        return cls(correct=sum(listed), n=len(listed))

    @property
    def value(self) -> float:
        """correct / n; NaN where n is 0."""
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 % (Wilson 1927): within 0 and 1, and valid for small n; (0, 1) where n is 0."""
        if not self.n:
            return 0.0, 1.0
        share, z2 = self.value, Z_95 * Z_95
        centre = share + z2 / (2 * self.n)
        reach = Z_95 * math.sqrt(share * (1 - share) / self.n + z2 / (4 * self.n * self.n))
        scale = 1 + z2 / self.n
        return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
