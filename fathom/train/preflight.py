"""What can be known of a training stage before its first step: a schedule that never reaches its rate, data read too
often. Pure functions of the spec and a few counts; each returns a sentence to show, or raises where it is hopeless."""

from __future__ import annotations

from fathom.errors import SpecError
from fathom.spec.train import UpdateSpec

HOPELESS_RATE = 0.1
"""A stage whose learning rate never exceeds this share of ``optimizer.lr`` is refused."""
WARMUP_SHARE = 0.03
"""The warm-up that remedies suggest, as a share of the stage's steps."""


def warmup_warning(stage: str, spec: UpdateSpec, steps: int) -> str | None:
    """Return what to say of a warm-up that lasts as long as the stage or longer; None for a shorter one.

    ``stage`` is where the spec stands in a recipe, as ``--set`` takes it: ``pretrain.train``.

    Raises:
        SpecError: the rate never exceeds ``HOPELESS_RATE`` of ``optimizer.lr``.
    """
    warmup = spec.schedule.warmup_of(steps)
    if not warmup or warmup < max(2, steps):
        return None
    peak, wanted = min(1.0, steps / warmup), max(1, round(WARMUP_SHARE * steps))
    problem = f"a warm-up of {warmup:,} steps in a stage of {steps:,}"
    remedy = f"--set {stage}.schedule.warmup_steps={wanted}"
    if peak < HOPELESS_RATE:
        rate = f"the learning rate never exceeds {peak:.1%} of optimizer.lr {spec.optimizer.lr:g}"
        raise SpecError(f"{stage}.schedule.warmup_steps", f"{problem}: {rate}", f"use {remedy}")
    return (
        f"{stage}.schedule: {problem}: the learning rate reaches {peak:.0%} of optimizer.lr {spec.optimizer.lr:g}, and "
        f"only at the last step; a shorter warm-up learns more: {remedy}"
    )
