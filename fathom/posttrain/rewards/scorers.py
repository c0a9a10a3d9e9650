"""Which scorer a spec names; reward models are none of them."""

from __future__ import annotations

from fathom.errors import SpecError
from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.base import Scorer
from fathom.posttrain.rewards.code import CodeScorer
from fathom.posttrain.rewards.format import FormatScorer
from fathom.posttrain.rewards.function import FunctionScorer
from fathom.posttrain.rewards.language import LanguageScorer
from fathom.posttrain.rewards.steps import StepsScorer
from fathom.posttrain.rewards.wire import Setup
from fathom.spec.rewards import (
    AccuracyReward,
    CodeReward,
    FormatReward,
    FunctionReward,
    LanguageReward,
    StepsReward,
)


def make_scorer(setup: Setup) -> Scorer:
    """Make the scorer of a rule reward, inside the process it will run in."""
    match spec := setup.reward:
        case AccuracyReward():
            return AccuracyScorer(spec.method)
        case FormatReward():
            return FormatScorer(spec.style)
        case LanguageReward():
            return LanguageScorer()
        case CodeReward():
            return CodeScorer(spec, unsandboxed=setup.unsandboxed)
        case StepsReward():
            return StepsScorer()
        case FunctionReward():
            return FunctionScorer(spec.target, steps=spec.steps, folders=setup.code_folders)
    raise SpecError("kind", f"{spec.kind!r} has no process of its own", "score it by the model that the step trained")
