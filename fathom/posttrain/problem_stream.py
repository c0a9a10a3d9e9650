"""The stream of training problems: sources in turn, resumable at any problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.data.problems import ProblemSet
from fathom.data.saved_position import check_settings, saved_count
from fathom.spec.problem import Problem


class ProblemStream:
    """Draws training problems from several sets in turn; the n-th depends on nothing but the sets, the seed and n."""

    def __init__(self, sets: Sequence[ProblemSet], *, seed: int) -> None:
        self._sets = tuple(sets)
        self._seed = seed
        self._drawn = 0

    def next(self, count: int) -> list[Problem]:
        """Return the next ``count`` problems."""
        first, sets = self._drawn, len(self._sets)
        self._drawn += count
        found: dict[int, Problem] = {}
        for offset, problems in enumerate(self._sets):
            numbers = range(first + (offset - first) % sets, first + count, sets)
            if numbers:
                start = numbers[0] // sets
                drawn = problems.problems("train", start, len(numbers), seed=self._seed)
                found |= dict(zip(numbers, drawn, strict=True))
        return [found[number] for number in range(first, first + count)]

    def state(self) -> dict[str, Any]:
        """Return how many problems were drawn, and from what."""
        return {"drawn": self._drawn, "seed": self._seed, "sets": [problems.name for problems in self._sets]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; other sources or another seed raise ``DataError``."""
        check_settings(state, self.state(), ("seed", "sets"))
        self._drawn = saved_count(state, "drawn")
