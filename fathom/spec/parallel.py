"""How the processes of a run divide the work: the ``[parallel]`` table of a recipe.

The axes multiply to the number of processes, but ``expert``, which divides the processes that shard the model. One
process needs no table, and one table serves any number: ``shard`` takes what the other axes leave.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.attention import LatentAttention
from fathom.spec.model import ModelSpec

PipelineSchedule = Literal["gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "dualpipe-v"]
SCHEDULES = ("gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "dualpipe-v")
MOST_PROCESSES = 1 << 20
_SUGGESTIONS = 3
_AXES = ("pipeline", "replicate", "shard", "context", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSpec:
    """Degrees of parallelism (torchtitan's terms); each is a number of processes, and 1 leaves its axis out."""

    pipeline: int = 1
    """Stages of consecutive layers, each on its own processes.

    Paper: V2 16 (§3.1.3).
    """
    replicate: int = 1
    """Copies of the (sharded) model, each with its part of every batch."""
    shard: int = 0
    """Processes over which parameters, gradients and optimizer state are sharded (FSDP), each with its part of every
    batch; 0 takes all that the other axes leave.
    """
    expert: int = 1
    """Processes over which each layer's routed experts are divided: a divisor of shard x context.

    Paper: V2 8 (§3.1.3).
    """
    tensor: int = 1
    """Processes over which attention heads and feed-forward widths are divided."""
    context: int = 1
    """Processes over which the tokens of each sequence are divided."""
    sharding: Literal["fsdp", "zero1"] = "fsdp"
    """What is sharded between uses: fsdp gathers a layer's parameters for each use; zero1 gathers them once a step and
    adds gradients up once a step, which takes more memory and less traffic.

    Paper: V2 ZeRO-1 (§3.1.3).
    """
    schedule: PipelineSchedule = "1f1b"
    """The order of the pipeline's forward and backward passes: gpipe, 1f1b, interleaved-1f1b, zero-bubble or
    dualpipe-v.

    Paper: V2 zero bubble (§3.1.3), V3 DualPipe (§3.2.1).
    """

    def __post_init__(self) -> None:
        for axis in (*_AXES, "expert"):
            check.count(axis, getattr(self, axis), MOST_PROCESSES, least=0 if axis == "shard" else 1)
        check.one_of("sharding", self.sharding, ("fsdp", "zero1"))
        check.one_of("schedule", self.schedule, SCHEDULES)

    @property
    def data(self) -> int:
        """Processes that have different sequences of a batch; ``shard`` must be known."""
        return self.replicate * self.shard

    def degrees(self) -> dict[str, int]:
        """The axes that multiply to the number of processes."""
        return {axis: getattr(self, axis) for axis in _AXES}

    def resolved(self, processes: int) -> ParallelSpec:
        """Return the plan of so many processes, ``shard`` known.

        Raises:
            SpecError: the axes do not multiply to that number; the nearest plans that do are named.
        """
        fixed = math.prod(degree for axis, degree in self.degrees().items() if axis != "shard")
        shard = self.shard or max(1, processes // fixed)
        if fixed * shard != processes:
            product = " x ".join(f"{axis} {degree}" for axis, degree in self.degrees().items() if degree > 1)
            raise SpecError(
                "parallel",
                f"{product or 'shard 1'} takes {fixed * shard} processes, and there are {processes}",
                self._remedy(processes, lambda plan: None),
            )
        plan = replace(self, shard=shard)
        if not plan._experts_divide:
            raise SpecError(
                "parallel.expert",
                f"{self.expert} does not divide shard x context, {shard} x {self.context}, into whole sequences",
                self._remedy(processes, lambda other: None),
            )
        return plan

    def checked(self, processes: int, model: ModelSpec) -> ParallelSpec:
        """Return the plan of so many processes for a model.

        Raises:
            SpecError: the axes do not multiply to that number, or do not divide the model; the nearest plans that do
                are named.
        """
        plan = self.resolved(processes)
        try:
            check_divides(plan, model)
        except SpecError as error:
            remedy = self._remedy(processes, lambda other: check_divides(other, model))
            raise SpecError(error.path, error.problem, remedy) from None
        return plan

    @property
    def _experts_divide(self) -> bool:
        """Whether the expert axis divides the processes that shard the model, and none of their sequences."""
        return self.shard * self.context % self.expert == 0 and (self.expert == 1 or self.expert % self.context == 0)

    def _remedy(self, processes: int, fits: Callable[[ParallelSpec], None]) -> str:
        """Name the plans nearest to this one that fit."""
        found = []
        for plan in _plans(self, processes):
            if not plan._experts_divide:
                continue
            try:
                fits(plan)
            except SpecError:
                continue
            found.append(plan)
        found.sort(key=lambda plan: _distance(self, plan))
        if not found:
            return "start another number of processes"
        return f"use {', or '.join(plan.described() for plan in found[:_SUGGESTIONS])}"

    def described(self) -> str:
        """The plan in words: the axes above 1."""
        degrees = self.degrees() | {"expert": self.expert}
        words = [f"{axis} = {degree}" for axis, degree in degrees.items() if degree > 1]
        return ", ".join(words) or "one process"


def check_divides(plan: ParallelSpec, model: ModelSpec) -> None:
    """Refuse axes that do not divide a model.

    Raises:
        SpecError: naming the axis and what it would divide.
    """
    attention, moe = model.attention, model.moe
    heads = attention.num_heads if isinstance(attention, LatentAttention) else attention.num_kv_heads
    widths = {"heads" if isinstance(attention, LatentAttention) else "key-value heads": heads}
    if any(not model.is_moe_layer(index) for index in range(model.num_hidden_layers)):
        widths["intermediate_size"] = model.intermediate_size or 0
    if moe is not None:
        widths["moe_intermediate_size"] = moe.moe_intermediate_size
        widths["shared experts' width"] = moe.shared_intermediate_size
    for name, width in widths.items():
        _divide("tensor", plan.tensor, width, name, model)
    if plan.expert > 1:
        if moe is None:
            raise SpecError("parallel.expert", f"is {plan.expert}, and {model.name} has no experts", "set it to 1")
        _divide("expert", plan.expert, moe.n_routed_experts, "routed experts", model)
    if plan.pipeline * plan_stages(plan) > model.num_hidden_layers:
        problem = f"{plan.pipeline} x {plan_stages(plan)} stages are more than the {model.num_hidden_layers} layers"
        raise SpecError("parallel.pipeline", f"{problem} of {model.name}", "lower it")


def plan_stages(plan: ParallelSpec) -> int:
    """Stages that each process of a pipeline holds."""
    return 2 if plan.pipeline > 1 and plan.schedule in ("interleaved-1f1b", "dualpipe-v") else 1


def _divide(axis: str, degree: int, width: int, name: str, model: ModelSpec) -> None:
    if width % degree:
        problem = f"{degree} does not divide the {width} {name} of {model.name}"
        raise SpecError(f"parallel.{axis}", problem, f"choose a divisor of {width}")


def _plans(near: ParallelSpec, processes: int) -> Iterator[ParallelSpec]:
    """Yield the plans of so many processes whose axes are divisors, near ones among them."""
    divisors = [degree for degree in range(1, processes + 1) if processes % degree == 0]
    choices = [_near(divisors, degree) for degree in (near.pipeline, near.replicate, near.context, near.tensor)]
    for pipeline, replicate, context, tensor in itertools.product(*choices):
        rest, left = divmod(processes, pipeline * replicate * context * tensor)
        if left or not rest:
            continue
        for expert in _near(divisors, near.expert):
            yield replace(
                near,
                pipeline=pipeline,
                replicate=replicate,
                shard=rest,
                expert=expert,
                tensor=tensor,
                context=context,
            )


def _near(divisors: list[int], degree: int) -> list[int]:
    """The divisors around a degree, and 1."""
    ranked = sorted(divisors, key=lambda divisor: abs(math.log2(divisor / degree)))
    return sorted({1, *ranked[:3]})


def _distance(wanted: ParallelSpec, plan: ParallelSpec) -> float:
    axes = [axis for axis in (*_AXES, "expert") if axis != "shard" or wanted.shard]
    return sum(abs(math.log2(getattr(wanted, axis) / getattr(plan, axis))) for axis in axes)
