from collections.abc import Callable
from typing import Any

import pytest

from fathom.posttrain.rewards.base import RewardInput
from fathom.spec.problem import Problem

Ask = Callable[..., RewardInput]


@pytest.fixture
def ask() -> Ask:
    """Make an answer to a problem whose reference is ``reference``."""

    def make(
        answer: str, reference: str = "r", *, prompt: str = "p", language: Any = "en", details: Any = None
    ) -> RewardInput:
        problem = Problem(id="1", task="t", question="q", answer=reference, language=language, details=details or {})
        return RewardInput(prompt=prompt, answer=answer, problem=problem)

    return make
