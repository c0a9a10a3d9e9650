"""Several models on the same cases: accuracies with intervals, paired differences, and tables of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.evals.accuracy import Accuracy
from fathom.evals.pass_at_k import Estimate, paired_difference
from fathom.locale import marked

Verdicts = Mapping[str, bool]
"""Whether each case was answered right, by its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model on one task; ``difference`` is how much more it has right than the first model on the same cases.

    ``accuracy`` has Wilson's interval, ``difference`` that of Newcombe 1998 for paired proportions (method 10), both at
    95 %. The first model has no difference.
    """

    model: str
    task: str
    accuracy: Accuracy
    difference: Estimate | None = None

    def row(self) -> dict[str, Any]:
        """Return the cell as plain values."""
        low, high = self.accuracy.interval
        plain: dict[str, Any] = {
            "model": self.model,
            "task": self.task,
            "cases": self.accuracy.n,
            "accuracy": self.accuracy.value,
            "low": low,
            "high": high,
        }
        other = self.difference
        names = ("difference", "difference_low", "difference_high")
        values = (None, None, None) if other is None else (other.value, other.low, other.high)
        return plain | dict(zip(names, values, strict=True))

    @property
    def accuracy_text(self) -> str:
        """The accuracy with its interval, in percent."""
        low, high = self.accuracy.interval
        return f"{self.accuracy.value:.1%} ({low:.0%}-{high:.0%})"

    @property
    def difference_text(self) -> str:
        """The difference with its interval, in percentage points; empty for the first model."""
        if self.difference is None:
            return ""
        value, low, high = (100 * each for each in (self.difference.value, self.difference.low, self.difference.high))
        return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def compare(verdicts: Mapping[str, Mapping[str, Verdicts]]) -> list[Cell]:
    """Return a cell for every task and model of ``verdicts`` (model -> task -> verdicts), task by task.

    Models are compared on the cases that both answered.
    """
    models = list(verdicts)
    cells = []
    for task in dict.fromkeys(task for each in verdicts.values() for task in each):
        first = verdicts[models[0]].get(task, {})
        for model in models:
            own = verdicts[model].get(task)
            if own is None:
                continue
            both = [case for case in first if case in own] if model != models[0] else []
            difference = paired_difference([first[c] for c in both], [own[c] for c in both]) if both else None
            cells.append(Cell(model=model, task=task, accuracy=Accuracy.of(own.values()), difference=difference))
    return cells


HEADINGS = (
    marked("task"),
    marked("model"),
    marked("cases"),
    marked("right (95 %)"),
    marked("points more than the first (95 %)"),
)


def text_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Return the cells as rows of texts, one for each of ``HEADINGS``."""
    return [(c.task, c.model, f"{c.accuracy.n:,}", c.accuracy_text, c.difference_text) for c in cells]


def markdown(cells: Sequence[Cell]) -> str:
    """Return the cells as a table of Markdown."""
    rows = [HEADINGS, ("---", "---", "---:", "---:", "---:"), *text_rows(cells)]
    return "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |\n" for row in rows)


def comma_separated(cells: Sequence[Cell]) -> str:
    """Return the cells as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(cells[0].row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cell.row() for cell in cells)
    return file.getvalue()
