"""What a recipe asks of several processes that they cannot do, said before anything is made."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fathom.errors import SpecError
from fathom.pipeline.context import RunPlan, spec_during
from fathom.spec.alignment import DpoStep, RewardModelStep, SftStep
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import ParallelSpec
from fathom.spec.recipe import TrainStep
from fathom.spec.train import UpdateSpec

SharedStep = TrainStep | SftStep | DpoStep | RewardModelStep
"""Steps that several processes run together."""


def check_parallel(plan: RunPlan, processes: int, done: Collection[str]) -> None:
    """Refuse steps that so many processes cannot run; of a model that only the run knows, when it is opened.

    Raises:
        SpecError: naming the field and the remedy.
    """
    parallel = plan.recipe.parallel.resolved(processes)
    for step in plan.recipe.steps:
        if step.name in done or not isinstance(step, SharedStep):
            continue
        model = spec_during(plan.recipe, step) if isinstance(step, TrainStep) else plan.recipe.model
        if model is not None:
            plan.recipe.parallel.checked(processes, model)
        for field, problem, remedy in _faults(step, parallel, model):
            raise SpecError(f"steps.{step.name}.{field}", problem, remedy)


def _faults(step: SharedStep, parallel: ParallelSpec, model: ModelSpec | None) -> Iterator[tuple[str, str, str]]:
    train: UpdateSpec = step.train
    if train.adapter is not None:
        yield "train.adapter", "is trained by one process", "start one process, or leave the adapter out"
    if train.optimizer.muon is not None or train.optimizer.state_dtype != "float32":
        yield "train.optimizer", "Muon and bfloat16 moments are for one process", "leave muon and state_dtype out"
    if isinstance(step, TrainStep):
        if step.images is not None:
            yield "images", "are read by one process", "start one process"
        batch = step.train.batch.for_length(step.train.sequence_length)
        field, rows = "size", batch.size
        if batch.initial_size is not None:  # between these, batches are whole micro-batches
            field, rows = "micro_batch_size", batch.micro_batch_size or 1
        if rows % parallel.data:
            problem = f"{rows} rows do not divide among {parallel.data} processes (replicate x shard)"
            yield f"train.batch.{field}", problem, f"choose a multiple of {parallel.data}"
    elif step.train.patience is not None:
        yield "train.patience", "the best weights are kept by one process", "leave patience out"
    if parallel.context > 1:
        yield from _context_faults(step, parallel, model)


def _context_faults(
    step: SharedStep, parallel: ParallelSpec, model: ModelSpec | None
) -> Iterator[tuple[str, str, str]]:
    """What cannot be done where the tokens of a sequence lie on several processes."""
    remedy = "set parallel.context to 1"
    if not isinstance(step, TrainStep):
        yield "train", "packed conversations are not divided along their tokens", remedy
        return
    if step.train.sequence_length % parallel.context:
        length = step.train.sequence_length
        problem = f"{length} tokens do not divide among {parallel.context} processes (parallel.context)"
        yield "train.sequence_length", problem, f"choose a multiple of {parallel.context}"
    if model is None:
        return
    if model.num_nextn_predict_layers and step.train.mtp_loss_weight:
        yield "train.mtp_loss_weight", "MTP modules need whole sequences", f"set it to 0, or {remedy}"
    if model.moe is not None and (model.moe.router.draws or model.moe.router.balance.capacity_factor is not None):
        yield "train", "routers that draw or drop need whole sequences", remedy
