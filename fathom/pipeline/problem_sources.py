"""The problems that a step of a recipe names, opened, with what became of a file's rows told."""

from __future__ import annotations

from fathom.data.problems import ProblemSet, open_problems
from fathom.data.problems.files import ListedProblems
from fathom.pipeline.context import StepContext
from fathom.spec.problem import ProblemSource


def opened_problems(source: ProblemSource, context: StepContext) -> ProblemSet:
    """Open a source of problems as ``open_problems`` does; rows of a file that cannot be used are shown."""
    problems = open_problems(source, cache_dir=context.cache_dir, base=context.plan.base)
    if isinstance(problems, ListedProblems) and problems.report.problems:
        first, *rest = problems.report.lines("problems")
        for line in (f"{problems.name}: {first}", *rest):
            context.progress.message(line)
    return problems
