"""What a source leaves out of its text: counts by reason, with the first examples of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.locale import marked, tr

MAX_EXAMPLES = 3

HIDDEN = marked("hidden files and folders")
PACKAGES = marked("folders of installed packages")
DESCRIPTIONS = marked("descriptions beside data files")
OTHER_KINDS = marked("files of other kinds")
ARCHIVES = marked("archives")
OTHER_SPLITS = marked("held-out splits beside training data")
BROKEN_LINKS = marked("broken links")
REPEATED = marked("files and folders reached before by another path")
UNREADABLE = marked("unreadable files")
POINTERS = marked("pointers of Git LFS")
EMPTY = marked("empty files")
BINARY = marked("binary files")
ENCODING = marked("files not in UTF-8")
DAMAGED = marked("damaged files, read up to the damage")
NO_COLUMN = marked("files without a column of text")
BAD_RECORDS = marked("unreadable records")
NO_TEXT = marked("records without text")


@dataclass(slots=True)
class LeftOut:
    """How much was left out for one reason, and the first examples, each with its place."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LeftOutReport:
    """Everything left out, by reason."""

    reasons: dict[str, LeftOut] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one thing left out; ``example`` names it."""
        entry = self.reasons.setdefault(reason, LeftOut())
        entry.count += 1
        if len(entry.examples) < MAX_EXAMPLES:
            entry.examples.append(example)

    def merge(self, other: LeftOutReport) -> None:
        """Add what another report counted."""
        for reason, entry in other.reasons.items():
            mine = self.reasons.setdefault(reason, LeftOut())
            mine.count += entry.count
            mine.examples += entry.examples[: MAX_EXAMPLES - len(mine.examples)]

    @property
    def count(self) -> int:
        """How many things were left out."""
        return sum(entry.count for entry in self.reasons.values())

    def lines(self) -> list[str]:
        """Return a line for each reason, e.g. ``left out empty files: 2, e.g. notes/a.txt``."""
        return [
            tr(
                "left out {reason}: {count}, e.g. {example}",
                reason=tr(reason),
                count=f"{entry.count:,}",
                example=entry.examples[0],
            )
            for reason, entry in self.reasons.items()
        ]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Mapping[str, Any]]) -> LeftOutReport:
        """Read back what ``dataclasses.asdict`` made of ``reasons``."""
        return cls({reason: LeftOut(**entry) for reason, entry in values.items()})
