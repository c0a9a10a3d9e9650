"""The code reward: does the answer's program pass the problem's tests?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.posttrain.rewards.base import RIGHT, RewardInput
from fathom.posttrain.rewards.checks import checks_of
from fathom.posttrain.rewards.extract import ANSWER_BEGIN, THINK_BEGIN, THINK_END, split_reasoning
from fathom.posttrain.sandbox import SandboxLimits, run_program
from fathom.spec.rewards import CodeReward

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


class CodeScorer:
    """Runs one program per answer in the sandbox; problems without ``tests`` are not its concern."""

    def __init__(self, spec: CodeReward, *, unsandboxed: bool = False) -> None:
        self._limits = SandboxLimits(seconds=spec.seconds, memory_mib=spec.memory_mib)
        self._unsandboxed = unsandboxed

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Need nothing."""

    def score(self, answered: RewardInput) -> float | None:
        """Run the program and its tests."""
        details = answered.problem.details
        if not details.get("tests"):
            return None
        program = whole_program(answered.answer, details)
        ran = run_program(program, checks_of(details), limits=self._limits, unsandboxed=self._unsandboxed)
        return RIGHT if ran.passed else 0.0


def code_of(answer: str) -> str:
    """The last fenced block of Python of an answer, one that is never closed included, else the whole answer."""
    tagged = any(tag in answer for tag in (THINK_BEGIN, THINK_END, ANSWER_BEGIN))
    text = split_reasoning(answer).answer if tagged else answer
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text


def whole_program(answer: str, details: Mapping[str, Any]) -> str:
    """The program an answer stands for.

    An answer that defines the ``entry_point`` follows the problem's ``prompt``, whose imports and helpers it may use;
    any other continues the prompt, as HumanEval asks for.
    """
    prompt, entry_point = str(details.get("prompt", "")), str(details.get("entry_point", ""))
    code = code_of(answer)
    if not prompt:
        return code
    defined = bool(entry_point) and re.search(rf"^(?:async )?(?:def|class) {re.escape(entry_point)}\b", code, re.M)
    return f"{prompt}\n    pass\n\n{code}" if defined else prompt + code
