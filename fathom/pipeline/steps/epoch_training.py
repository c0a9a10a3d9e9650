"""What SFT, DPO and reward model steps share: their training stage, its reports and what it caches."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Protocol

from fathom.checkpoint import store
from fathom.data.folders.split_names import HELD_OUT_SPLITS, split_of
from fathom.data.row_report import RowReport
from fathom.errors import SpecError
from fathom.files import sha256
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import CHECKPOINTS, find_checkpoint
from fathom.pipeline.context import StepContext, model_step
from fathom.pipeline.run_models import adapter_base, initial_tokenizer_files
from fathom.spec.alignment import DpoStep, EpochsSpec, RewardModelStep, SftStep
from fathom.spec.train import TrainSpec, UpdateSpec
from fathom.train.loop import Trainer, TrainSummary
from fathom.train.objective import Objective
from fathom.train.protocols import Loader

EpochsStep = SftStep | DpoStep | RewardModelStep


class EpochLoader(Loader, Protocol):
    """A loader with a known number of tokens per epoch."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that its batches of one pass hold."""
        ...


def train_epochs(
    step: EpochsStep,
    context: StepContext,
    start: LanguageModel,
    loader: EpochLoader,
    objective: Objective | None = None,
) -> TrainSummary:
    """Train ``start``'s model in ``context.path(step)``, from the latest checkpoint there if there is one."""
    directory = context.path(step)
    trainer = Trainer(
        start.model,
        stage_spec(step, loader.tokens_per_epoch),
        loader,
        directory,
        progress=context.progress,
        tensorboard=importlib.util.find_spec("tensorboard") is not None,
        files=initial_tokenizer_files(context, step),
        objective=objective,
        base=adapter_base(context, step, step.train),
    )
    return trainer.run(resume=store.latest(directory / CHECKPOINTS) is not None, allow_changes=True)


def stage_spec(step: EpochsStep, tokens_per_epoch: int) -> TrainSpec:
    """Return epochs of so many tokens as a training stage.

    Raises:
        SpecError: they do not fill one batch.
    """
    train: EpochsSpec = step.train
    total = round(train.epochs * tokens_per_epoch)
    batch = train.batch.at(0) * train.sequence_length
    if total < batch:
        raise SpecError(
            f"steps.{step.name}.train.batch.size",
            f"{train.epochs:g} x {tokens_per_epoch} tokens do not fill one batch of {batch}",
            "lower it or sequence_length, or raise epochs",
        )
    shared: dict[str, Any] = {field.name: getattr(train, field.name) for field in dataclasses.fields(UpdateSpec)}
    return TrainSpec(**shared, sequence_length=train.sequence_length, total_tokens=total, batch=train.batch)


def cache_key(step: EpochsStep, context: StepContext, *parts: object) -> str:
    """Return a ``key`` for ``cached_tensors``: the checkpoint that a step begins with, and whatever else counts."""
    checkpoint = find_checkpoint(context.path(model_step(context.recipe, step)))
    return sha256(repr((str(checkpoint.relative_to(context.directory)), parts)))


def log_lines(context: StepContext, lines: Sequence[str]) -> None:
    """Show lines that are worth keeping."""
    for line in lines:
        context.progress.message(line)


def log_report(context: StepContext, source: str, report: RowReport, what: str) -> None:
    """Show how much of a source is used, why the rest is not, and that a file is named as a split that is held out."""
    first, *rest = report.lines(what)
    split = split_of(PurePath(PurePath(source).name)) if PurePath(source).suffix else ""
    if split in HELD_OUT_SPLITS:
        rest.append(f"{source}: is trained on, although its name says {split}; name another file to hold it out")
    log_lines(context, [f"{source}: {first}", *rest])
