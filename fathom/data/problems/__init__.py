"""Problem sets: opened from their sources, with disjoint training and held-out splits."""

from __future__ import annotations

from pathlib import Path

from fathom.data.problems.files import open_file
from fathom.data.problems.generated import ProblemSet
from fathom.data.problems.gym import open_gym
from fathom.data.problems.human_eval import open_human_eval
from fathom.data.problems.symbolic import open_symbolic
from fathom.spec.problem import CodeProblems, FileProblems, GymProblems, ProblemSource, SymbolicProblems

__all__ = ["ProblemSet", "open_problems"]


def open_problems(source: ProblemSource, *, cache_dir: Path | None = None, base: Path = Path()) -> ProblemSet:
    """Open a source of problems; packages are fetched into ``cache_dir``, files are found from ``base``.

    Raises:
        SpecError: the source names what there is not.
        SourceError: a package cannot be fetched.
        DataError: a file has a fault, or an optional library is missing.
    """
    match source:
        case GymProblems():
            return open_gym(source)
        case SymbolicProblems():
            return open_symbolic(source, cache_dir)
        case CodeProblems():
            return open_human_eval(source, cache_dir)
        case FileProblems():
            return open_file(source, base)
