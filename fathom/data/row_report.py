"""What became of the rows of a data file: how many are used, and why others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fathom.locale import tr

MAX_EXAMPLES = 3
Reason = Literal["malformed", "other_form", "other_split", "unknown_role", "template", "too_long", "nothing_learned"]


class UnusableRow(Exception):
    """Raised by what converts a row that cannot be used; caught where rows are read."""

    def __init__(self, sentence: str, reason: Reason = "malformed") -> None:
        super().__init__(sentence)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row was skipped: one sentence, and the place of the row."""

    reason: Reason
    place: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}" if self.place else self.sentence


@dataclass(slots=True)
class RowReport:
    """Counts of used and skipped rows; filled as they are read and encoded.

    ``left_out`` counts masked turns of used conversations. ``examples`` are the first few of each reason.
    """

    used: int = 0
    left_out: int = 0
    problems: Counter[Reason] = field(default_factory=Counter)
    examples: dict[Reason, list[RowProblem]] = field(default_factory=dict)

    def add(self, problem: RowProblem) -> None:
        """Count a problem, and keep it if it is one of the first."""
        self.problems[problem.reason] += 1
        kept = self.examples.setdefault(problem.reason, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(problem)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON, in the order that problems came."""
        examples = {reason: [[p.place, p.sentence] for p in kept] for reason, kept in self.examples.items()}
        return {
            "used": self.used,
            "left_out": self.left_out,
            "problems": dict(self.problems),
            "examples": examples,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RowReport:
        """Return the report that ``to_json`` gave."""
        examples = {
            reason: [RowProblem(reason, place, sentence) for place, sentence in kept]
            for reason, kept in stored["examples"].items()
        }
        return cls(stored["used"], stored["left_out"], Counter(stored["problems"]), examples)

    @property
    def read(self) -> int:
        """Rows that were used or had a problem."""
        return self.used + self.problems.total()

    @property
    def first(self) -> str:
        """The first problem, or that there is nothing."""
        return next((str(kept[0]) for kept in self.examples.values()), "there are none")

    def lines(self, what: str = "conversations") -> list[str]:
        """Return the report as lines to print: each reason with how often it came, and its first example."""
        lines = [tr("{used} of {read} {what} are used", used=self.used, read=self.read, what=tr(what))]
        if self.left_out:
            masked = tr(
                "{count} turns are masked from the loss: the chat template shows them otherwise", count=self.left_out
            )
            lines.append(masked)
        return lines + [f"{count} x {name}: {self.examples[name][0]}" for name, count in self.problems.most_common()]
