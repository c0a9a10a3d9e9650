"""HumanEval's own solutions pass, empty bodies and forgeries fail, all 164 of each, through the judge."""

import pytest

from fathom.cli.options import cache_directory
from fathom.data.problems.human_eval import open_human_eval
from fathom.errors import ResourceError, SourceError
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.judge import Judge
from fathom.spec.problem import CodeProblems, Problem
from fathom.spec.rewards import CodeReward
from tests.posttrain.verdicts.forgeries import ALWAYS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    try:
        return open_human_eval(CodeProblems(), cache_dir=cache_directory()).problems("held_out", 0, 164)
    except SourceError as error:
        pytest.skip(str(error))


def correct(problems: list[Problem], answers: list[str]) -> int:
    asked = [
        RewardInput(prompt=problem.question, answer=answer, problem=problem)
        for problem, answer in zip(problems, answers, strict=True)
    ]
    try:
        judge = Judge([CodeReward(seconds=20.0)])
    except ResourceError as error:
        pytest.skip(str(error))
    with judge:
        return sum(judgement.correct is True for judgement in judge.judge(asked))


def test_every_published_solution_passes(problems: list[Problem]) -> None:
    solutions = [str(problem.details["canonical_solution"]) for problem in problems]
    assert correct(problems, solutions) == 164
    fenced = [f"```python\n{p.question}{solution}```" for p, solution in zip(problems, solutions, strict=True)]
    assert correct(problems[:16], fenced[:16]) == 16


def test_no_empty_body_passes(problems: list[Problem]) -> None:
    assert correct(problems, ["    pass\n"] * 164) == 0


def test_security_no_object_that_agrees_with_everything_passes(problems: list[Problem]) -> None:
    forgery = "    return Always()\n\n" + ALWAYS.format(base="", truth=True)
    assert correct(problems, [forgery] * 164) == 0
