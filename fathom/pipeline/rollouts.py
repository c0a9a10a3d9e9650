"""What the grpo and distill steps share: problems, and the engine that draws rollouts."""

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


def questions(context: StepContext, sources: tuple[ProblemSource, ...], seed: int) -> ProblemStream:
    """Open a step's problems."""
    return ProblemStream([opened_problems(source, context) for source in sources], seed=seed)
