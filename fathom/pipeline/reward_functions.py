"""Rewards at work in a recipe: rules in processes of their own, and reward models that steps before have trained."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.pipeline.context import StepContext
from fathom.pipeline.reward_models import external_scorers
from fathom.pipeline.trust import check_functions, code_folders
from fathom.posttrain.rewards.failures import MonitoredJudge
from fathom.posttrain.rewards.judge import Judge
from fathom.spec.recipe import Step
from fathom.spec.rewards import RewardSpec


def open_judge(context: StepContext, step: Step, rewards: Sequence[RewardSpec], *, seconds: float) -> MonitoredJudge:
    """Make a step's judge, whose failures are noted; enter it as a context.

    Raises:
        CodeNotAllowedError: a reward is a function, and the run may call none.
    """
    check_functions(step, rewards, context.plan.base, context.trust)
    judge = Judge(
        rewards,
        seconds=seconds,
        external=external_scorers(context, step, rewards),
        code_folders=code_folders(context.plan.base),
        unsandboxed=context.trust.unsandboxed,
    )
    return MonitoredJudge(judge, rewards, note=context.progress.message, folder=context.plan.base.resolve())
