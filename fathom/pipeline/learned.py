"""A training step that changed no weight is not done."""

from __future__ import annotations

from pathlib import Path

from fathom.errors import TrainError
from fathom.progress import Progress
from fathom.spec.recipe import DistillStep, GrpoStep, LearningStep
from fathom.train.alarms import learned
from fathom.train.metrics import read_json_lines
from fathom.train.record import METRICS

_TELLING = 3
"""Rollouts of answers that are all rewarded alike may be chance where they are fewer."""


def check_learned(step: LearningStep, directory: Path, progress: Progress) -> None:
    """Refuse to call a step done of whose logged steps or rollouts none changed a weight.

    Of a few rollouts whose answers were all rewarded alike it is only said.

    Raises:
        TrainError: naming what to change.
    """
    lines = read_json_lines(directory / METRICS)
    if not lines or learned(lines):
        return
    if isinstance(step, DistillStep):
        problem = f"none of its {len(lines):,} rollouts changed the model: student and teacher agree in every token"
        remedy = "take a teacher that is another model than the student, or raise optimizer.lr"
    elif isinstance(step, GrpoStep):
        problem = f"none of its {len(lines):,} rollouts changed the model: all answers to a problem were rewarded alike"
        remedy = "take problems that the model solves now and then, or a reward that tells answers apart"
    else:
        problem = f"none of its {len(lines):,} logged steps changed the model: the gradient or the learning rate was 0"
        remedy = "freeze less, raise optimizer.lr, or give data with tokens that count in the loss"
    if isinstance(step, GrpoStep) and len(lines) < _TELLING:
        progress.message(f"step {step.name!r}: {problem}; {remedy}")
        return
    raise TrainError(f"step {step.name!r}: {problem}; {remedy}, and run with --restart or another --out")
