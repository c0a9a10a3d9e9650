"""What SFT, DPO and reward model steps share: their training stage, its reports and what it caches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from fathom.checkpoint import store
from fathom.data.folders.split_names import HELD_OUT_SPLITS, split_of
from fathom.data.packed import PackedBatch
from fathom.data.row_report import RowReport
from fathom.data.validation_split import choose_held_out
from fathom.errors import DataError
from fathom.files import sha256
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import find_checkpoint
from fathom.locale import tr
from fathom.pipeline.context import StepContext, model_step
from fathom.pipeline.learned import check_learned
from fathom.pipeline.run_models import adapter_base, initial_tokenizer_files
from fathom.plan.memory import training_memory
from fathom.posttrain.preferences import GroupLoader, TrainingExample, pack_groups
from fathom.spec.alignment import ConversationFile, DpoStep, PairFile, RewardModelStep, SftStep
from fathom.spec.epochs import ExamplesTrainSpec
from fathom.spec.train import MICRO_BATCH_TOKENS, BatchSpec, TrainSpec, UpdateSpec
from fathom.system import memory_limit
from fathom.tokenizer import Tokenizer
from fathom.train.epochs import EpochProgress
from fathom.train.loop import Trainer, TrainSummary
from fathom.train.objective import Objective
from fathom.train.parts import RankLoader
from fathom.train.preflight import ExampleSet, epoch_lines, unfilled_batch, warmup_warning
from fathom.train.protocols import ExampleCounter, Loader
from fathom.train.schedule import total_steps
from fathom.train.validation import Validation

HELD_OUT = "held_out.jsonl"
"""What a step holds out, as conversations, beside its checkpoints."""
TOKENIZER = "tokenizer"
"""The tokenizer with a chat template, where the model that a step begins with has none."""
MEMORY_SHARE = 0.8
"""The part of the machine's memory that an example may take in training, where no sequence_length is given."""
EpochsStep = SftStep | DpoStep | RewardModelStep


class EpochLoader(Loader, ExampleCounter, Protocol):
    """A loader with a known number of tokens per epoch."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that its batches of one pass hold."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochData:
    """What a step learns from: a loader of its examples, the longest one's length, and what is held out, if anything.

    ``unit`` is what its examples are called.
    """

    loader: EpochLoader
    sequence_length: int
    unit: str
    held_out: PackedBatch | None = None

    @classmethod
    def of_groups(
        cls,
        step: DpoStep | RewardModelStep,
        groups: Sequence[Sequence[TrainingExample]],
        held_out: Sequence[Sequence[TrainingExample]],
        *,
        sequence_length: int,
        unit: str,
    ) -> EpochData:
        """Return the data of a step that learns from groups of answers, each in one batch."""
        loader = GroupLoader(
            groups,
            sequence_length=sequence_length,
            seed=step.train.seed,
            unit="examples" if step.train.batch.rows is None else "rows",
        )
        return cls(
            loader=loader,
            sequence_length=sequence_length,
            unit=unit,
            held_out=pack_groups(held_out) if held_out else None,
        )


def train_epochs(
    step: EpochsStep, context: StepContext, start: LanguageModel, data: EpochData, objective: Objective | None = None
) -> TrainSummary:
    """Train ``start``'s model in ``context.path(step)``, from the latest checkpoint there if there is one."""
    directory = context.path(step)
    validation = None
    if data.held_out is not None:
        validation = Validation(batch=data.held_out, patience=step.train.patience)
    elif step.train.patience is not None:
        patience = step.train.patience
        said = tr("patience {patience} has no effect: nothing is held out to validate on", patience=patience)
        context.progress.message(said)
    spec = stage_spec(step, data)
    _preflight(step, context, spec, data)
    group = context.group(start.model)
    trainer = Trainer(
        start.model,
        spec,
        RankLoader(data.loader, group),
        directory,
        progress=context.progress,
        tracking=context.tracking(step),
        files=_tokenizer_files(step, context, start.tokenizer),
        objective=objective,
        base=adapter_base(context, step, step.train),
        validation=validation,
        epochs=EpochProgress(loader=data.loader, epochs=step.train.epochs, unit=data.unit),
        group=group,
    )
    summary = trainer.run(resume=store.latest(directory / store.CHECKPOINTS) is not None, allow_changes=True)
    if group.leads:
        check_learned(step, directory, context.progress)
    return summary


def _tokenizer_files(step: EpochsStep, context: StepContext, tokenizer: Tokenizer) -> list[Path]:
    """Return the tokenizer's files of a result.

    Where the model has no chat template they bring the one that its conversations were encoded by, so that the result
    can chat.
    """
    files = initial_tokenizer_files(context, step)
    sources = step.data if isinstance(step, SftStep) else step.pairs
    if tokenizer.can_chat or not any(isinstance(source, ConversationFile | PairFile) for source in sources):
        return files
    folder = context.path(step) / TOKENIZER
    tokenizer.with_template(tokenizer.chat_template).save(folder)
    context.progress.message(tr("the model has no chat template: Fathom's is learned, and kept with the result"))
    made = sorted(folder.iterdir())
    return [*made, *(file for file in files if file.name not in {own.name for own in made})]


def _examples(data: EpochData) -> ExampleSet:
    return ExampleSet(
        unit=data.unit, examples=data.loader.examples_per_epoch, tokens=max(1, data.loader.tokens_per_epoch)
    )


def _preflight(step: EpochsStep, context: StepContext, spec: TrainSpec, data: EpochData) -> None:
    """Say how long the stage is, and what is wrong with that."""
    stage, steps = f"{step.name}.train", total_steps(spec)
    log_lines(context, epoch_lines(stage, _examples(data), step.train.epochs, steps))
    warning = warmup_warning(stage, spec, steps)
    if warning is not None:
        context.progress.message(warning)


def stage_spec(step: EpochsStep, data: EpochData) -> TrainSpec:
    """Return epochs over so many examples as a training stage.

    Raises:
        SpecError: they do not fill one batch of rows.
    """
    train, tokens_per_epoch = step.train, data.loader.tokens_per_epoch
    total = round(train.epochs * tokens_per_epoch)
    rows = train.batch.rows
    shared: dict[str, Any] = {field.name: getattr(train, field.name) for field in dataclasses.fields(UpdateSpec)}
    shared |= {"sequence_length": data.sequence_length, "total_tokens": total}
    if rows is None:
        size, each = train.batch.examples, data.loader.examples_per_epoch
        whole, part = divmod(train.epochs, 1.0)
        steps = int(whole) * math.ceil(each / size) + math.ceil(round(part * each, 6) / size)
        longest = max(data.sequence_length, MICRO_BATCH_TOKENS)
        return ExamplesTrainSpec(
            **shared,
            batch=BatchSpec(size=size, micro_batch_size=size),
            total_steps=max(1, steps),
            micro_batch_tokens=train.batch.micro_batch_tokens or longest,
        )
    batch = rows.at(0) * data.sequence_length
    if total < batch:
        raise unfilled_batch(f"{step.name}.train", _examples(data), train.epochs, rows, data.sequence_length)
    return TrainSpec(**shared, batch=rows)


def longest_example(step: EpochsStep, start: LanguageModel) -> int:
    """Return the most tokens an example may have: as the step says, or as the model's context and the memory allow.

    It is the machine's memory that counts, not what is free of it now, so that a resume finds the same number.
    """
    if step.train.sequence_length is not None:
        return step.train.sequence_length
    context = start.spec.max_position_embeddings
    if start.model.device.type != "cpu":
        return context
    usable = MEMORY_SHARE * memory_limit()
    low, high = 1, context
    while low < high:
        middle = (low + high + 1) // 2
        needed = training_memory(
            start.spec,
            tokens=middle,
            loss_chunk_tokens=step.train.loss_chunk_tokens,
            activation_checkpointing=step.train.activation_checkpointing,
            adapter=step.train.adapter,
            optimizer=step.train.optimizer,
        )
        low, high = (middle, high) if needed.total <= usable else (low, middle - 1)
    return low


def hold_out(step: EpochsStep, keys: Iterable[int]) -> frozenset[int]:
    """Return the keys of the examples that are held out of a step's own data.

    Raises:
        DataError: located at the step; none would be left.
    """
    try:
        return choose_held_out(keys, step.train.validation.fraction)
    except DataError as error:
        raise DataError(f"steps.{step.name}.train.{error}") from None


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
