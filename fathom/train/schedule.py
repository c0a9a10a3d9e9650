"""Learning rate and number of steps, as functions of the spec and what was done so far."""

from __future__ import annotations

import math
from functools import lru_cache

from fathom.spec.epochs import ExamplesTrainSpec
from fathom.spec.train import Constant, CosineDecay, Schedule, StepDecay, TrainSpec, UpdateSpec


def learning_rate(spec: TrainSpec, step: int, tokens_seen: int) -> float:
    """The rate of step number ``step``, counted from 1, which starts after ``tokens_seen`` tokens of the stage.

    Decay follows the stage's tokens, not its steps, since the batch may grow (DeepSeek LLM §2.3, V2 §3.1.2, V3 §4.2).
    """
    return rate_at(spec, step, tokens_seen / spec.total_tokens, total_steps(spec))


def rate_at(spec: UpdateSpec, step: int, progress: float, steps: int) -> float:
    """The rate of step number ``step``, counted from 1, which starts when ``progress`` (0 to 1) of the stage is done.

    Warm-up rises linearly from 0 before the first step to the full rate at its last one; where it is a share of the
    stage, it is one of ``steps``.
    """
    warmup = spec.schedule.warmup_of(steps)
    return spec.optimizer.lr * (min(1.0, step / warmup) if warmup else 1.0) * _decay(spec.schedule, progress)


@lru_cache(maxsize=16)
def total_steps(spec: TrainSpec) -> int:
    """Optimizer steps of a whole stage."""
    return steps_left(spec, 0)


def _decay(schedule: Schedule, progress: float) -> float:
    match schedule:
        case Constant():
            return 1.0
        case StepDecay():
            passed: int = sum(progress >= milestone for milestone in schedule.milestones)
            return float(schedule.factor**passed)
        case CosineDecay():
            if progress <= schedule.start or schedule.start == 1.0:
                return 1.0
            done = min(1.0, (progress - schedule.start) / (1.0 - schedule.start))
            return schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * done))


def steps_left(spec: TrainSpec, tokens_seen: int) -> int:
    """Steps from here until ``total_tokens`` were seen; the last one may go beyond.

    Where batches count conversations or pairs, it is the part of all steps that the tokens left are of all tokens.
    """
    if isinstance(spec, ExamplesTrainSpec):
        return math.ceil(spec.total_steps * max(0.0, 1 - tokens_seen / spec.total_tokens))
    steps = 0
    while tokens_seen < spec.batch.ramp_tokens and tokens_seen < spec.total_tokens:
        tokens_seen += spec.batch.at(tokens_seen) * spec.sequence_length
        steps += 1
    left = max(0, spec.total_tokens - tokens_seen)
    return steps + math.ceil(left / (spec.batch.size * spec.sequence_length))
