"""Endless generated problem sets with disjoint splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fathom.data.problems.split import held_out
from fathom.errors import DataError
from fathom.spec.problem import Problem, Split

CandidateGenerator = Callable[[Split, int, int, int], Problem]
"""Makes a candidate from a split, a seed, the number of the attempt, and its index; depends on these four only."""

_ATTEMPTS = 64
_MAX_CANDIDATES = 4096


class ProblemSet(Protocol):
    """The problems of a task, in two splits that share no question."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """Return problems ``start`` to ``start + count`` of a split; each depends on split, index and seed only.

        A finite split repeats after its last problem. Held-out problems are pairwise different up to that end.
        """
        ...

    def size(self, split: Split) -> int | None:
        """Return how many problems a split has; None where they are generated without end."""
        ...


class GeneratedProblems:
    """A ``ProblemSet`` over a generator of candidates, by the rule of ``split``; ``task`` is what is hashed.

    A training problem is the first candidate of its index in the training split: any index costs the same. Held-out
    problems are the different held-out questions in the order they are met, so reaching one costs all before it, ten
    candidates each; they are kept.
    """

    def __init__(self, name: str, task: str, draw: CandidateGenerator) -> None:
        self.name = name
        self._task, self._draw = task, draw
        self._held_out: dict[int, _HeldOut] = {}

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """Return problems of a split, as ``ProblemSet`` says; too few different questions raise ``DataError``."""
        check_range(start, count)
        if split == "held_out":
            kept = self._held_out.setdefault(seed, _HeldOut(self.name, self._task, self._draw, seed))
            return [kept[index] for index in range(start, start + count)]
        return [self._training(index, seed) for index in range(start, start + count)]

    def size(self, split: Split) -> int | None:
        """Return None: there is no end."""
        return None

    def _training(self, index: int, seed: int) -> Problem:
        for attempt in range(_ATTEMPTS):
            problem = self._draw("train", seed, attempt, index)
            if not held_out(self._task, problem.question):
                return problem
        raise DataError(f"{self.name}: all of {_ATTEMPTS} questions are held out; allow more different ones")


class _HeldOut:
    """The different held-out questions of one seed, found as they are asked for; repeated where there are no more."""

    def __init__(self, name: str, task: str, draw: CandidateGenerator, seed: int) -> None:
        self._name, self._task, self._draw, self._seed = name, task, draw, seed
        self._found: list[Problem] = []
        self._questions: set[str] = set()
        self._next, self._ended = 0, False

    def __getitem__(self, index: int) -> Problem:
        while index >= len(self._found) and not self._ended:
            self._search()
        if not self._found:
            raise DataError(f"{self._name}: none of {_MAX_CANDIDATES} questions is held out; allow more different ones")
        return self._found[index % len(self._found)]

    def _search(self) -> None:
        """Find one more, or learn that a long search finds none."""
        for _ in range(_MAX_CANDIDATES):
            problem = self._draw("held_out", self._seed, 0, self._next)
            self._next += 1
            if problem.question not in self._questions and held_out(self._task, problem.question):
                self._found.append(problem)
                self._questions.add(problem.question)
                return
        self._ended = True


def check_range(start: int, count: int) -> None:
    """Refuse a negative start or count."""
    if start < 0 or count < 0:
        raise DataError(f"problems: start {start}, count {count}; give 0 or more of both")
