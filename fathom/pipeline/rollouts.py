"""The engines that draw a run's answers, and the problems that learning steps ask."""

from __future__ import annotations

import torch

from fathom.pipeline.context import StepContext
from fathom.pipeline.problem_sources import opened_problems
from fathom.posttrain.problem_stream import ProblemStream
from fathom.spec.engine import EngineSpec
from fathom.spec.problem import ProblemSource
from fathom.spec.rollout import OnlineSpec
from fathom.train.step import resolve_precision

LARGEST_BATCH = 256
ANSWERS_AT_ONCE = 128
"""Answers that steps which only ask draw together."""


def rollout_engine(policy: OnlineSpec, device: torch.device) -> EngineSpec:
    """Lay out an engine that draws a whole rollout at once, or as much of it as is worth batching.

    It computes in the precision that the update computes in on ``device``, and records which experts tokens go to, so
    that the update's routing can be compared with the rollout's.
    """
    answers = policy.rollout.questions * policy.rollout.group_size
    return EngineSpec(
        max_batch=min(answers, LARGEST_BATCH),
        record_routing=True,
        compute_dtype="bfloat16" if resolve_precision(policy, device) == torch.bfloat16 else "auto",
    )


def answering_engine(answers: int) -> EngineSpec:
    """Lay out an engine that draws so many answers, as many at once as are worth batching."""
    return EngineSpec(max_batch=min(answers, ANSWERS_AT_ONCE), step_tokens=1024)


def questions(context: StepContext, sources: tuple[ProblemSource, ...], seed: int) -> ProblemStream:
    """Open a step's problems."""
    return ProblemStream([opened_problems(source, context) for source in sources], seed=seed)
