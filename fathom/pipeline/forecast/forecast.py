"""Makes the forecast of a recipe: each of its steps by arithmetic, and the pace of training by a few steps of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fathom.inference.run_record import last_before
from fathom.pipeline.context import RunPlan
from fathom.pipeline.forecast.models import RecipeModels
from fathom.pipeline.forecast.pace import UTILISATION, Pace, training_pace, training_peak
from fathom.pipeline.forecast.sampling_pace import ANSWER_SHARE, SamplingPace, sampling_pace
from fathom.pipeline.forecast.text_size import (
    TEXT_BYTES_PER_TOKEN,
    TextSize,
    bytes_per_token,
    row_tokens,
    rows_size,
    text_size,
)
from fathom.pipeline.forecast.totals import Basis, Forecast, StepForecast, free_disk, free_memory
from fathom.pipeline.rollouts import answering_engine, rollout_engine
from fathom.plan.cache import cache_bytes_per_token
from fathom.plan.count import count_parameters
from fathom.plan.flops import forward_flops_per_token
from fathom.plan.memory import training_memory
from fathom.spec.alignment import ConversationFile, PairFile, WorkedProblems
from fathom.spec.data import FolderSource
from fathom.spec.engine import EngineSpec
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import (
    AnswersStep,
    CorpusStep,
    DistillStep,
    DpoStep,
    EvaluateStep,
    GrpoStep,
    LearningStep,
    OpenStep,
    RewardModelStep,
    SftStep,
    ShardsStep,
    Step,
    TasksStep,
    TokenizerStep,
    TrainStep,
)
from fathom.spec.train import UpdateSpec
from fathom.train.schedule import total_steps
from fathom.train.step import resolve_precision

WORKED_TOKENS = 80
_TOKENIZER_BYTES = 500_000
_TEXT_SECONDS_PER_MB = {"corpus": 2.4, "tokenizer": 0.8, "shards": 1.2}
"""Seconds of one core for a million bytes of text."""


@dataclass(frozen=True, slots=True)
class _Training:
    """What a step trains on: all its tokens, its optimizer steps, passes, and the tokens of one micro-batch."""

    tokens: float | None
    steps: int | None
    passes: float | None
    micro_tokens: int
    length: int


class Forecaster:
    """Forecasts steps of one plan on one device; text is sampled and paces are measured once."""

    def __init__(self, plan: RunPlan, cache_dir: Path, device: torch.device, *, measure: bool = True) -> None:
        self._plan, self._device, self._measure = plan, device, measure
        self._models = RecipeModels(plan, cache_dir)
        self._peak = training_peak(device)
        self._paces: dict[Any, Pace | None] = {}
        self._sampling_paces: dict[Any, SamplingPace | None] = {}
        self._texts: dict[str, list[TextSize]] = {}
        self._bytes: dict[int, float] = {}

    def forecast(self, out: Path, done: Collection[str] = (), *, notes: Sequence[str] = ()) -> Forecast:
        """Return the forecast of the steps that are not done.

        Raises:
            FathomError: data that a step reads cannot be sampled.
        """
        steps = tuple(self._step(step) for step in self._plan.recipe.steps if step.name not in done)
        return Forecast(
            recipe=self._plan.recipe.name,
            device=self._device.type,
            steps=steps,
            free_memory_bytes=free_memory(self._device),
            free_disk_bytes=free_disk(out),
            notes=tuple(notes),
        )

    def _unique_tokens(self, step: Step) -> float | None:
        """Return the tokens of the corpus that a step reads, None where its sources are fetched by the run."""
        corpus = last_before(self._plan.recipe, step, CorpusStep)
        if corpus is None:
            return None
        sizes = self._text(corpus)
        if sizes is None:
            return None
        training = 1 - corpus.held_out_fraction
        return float(training * sum(size.text_bytes for size in sizes) / self._token_bytes(step, sizes))

    def _step(self, step: Step) -> StepForecast:
        if isinstance(step, CorpusStep | TokenizerStep | ShardsStep):
            return self._prepared(step)
        if isinstance(step, LearningStep):
            return self._learning(step)
        if isinstance(step, OpenStep):
            return self._opened(step)
        base = StepForecast(name=step.name, kind=step.kind, reads="the model before", leaves=f"{step.name}.json")
        spec = self._models.before(step)
        if spec is None or self._peak is None:
            return base
        if isinstance(step, AnswersStep | TasksStep):
            stages = max(1, len(step.stages)) if isinstance(step, TasksStep) else 1
            answers = len(step.problems) * step.count * step.samples
            tokens = stages * answers * step.max_tokens * ANSWER_SHARE
            engine = answering_engine(step.count * step.samples)
            return _sampled(self._with_model(base, spec), self._sampling_pace(spec, engine), tokens)
        if isinstance(step, EvaluateStep):
            flops = step.max_tokens * forward_flops_per_token(spec, spec.max_position_embeddings)
            base = replace(base, seconds=2 * flops / (UTILISATION * self._peak), basis="estimated")
        return replace(base, leaves="report.html") if step.kind == "report" else self._with_model(base, spec)

    def _prepared(self, step: CorpusStep | TokenizerStep | ShardsStep) -> StepForecast:
        corpus = step if isinstance(step, CorpusStep) else last_before(self._plan.recipe, step, CorpusStep)
        reads = {"corpus": "the text", "tokenizer": "the corpus", "shards": "corpus and tokenizer"}[step.kind]
        leaves = {"corpus": "documents", "tokenizer": "tokenizer.json", "shards": "token files"}[step.kind]
        base = StepForecast(name=step.name, kind=step.kind, reads=reads, leaves=leaves)
        sizes = None if corpus is None else self._text(corpus)
        if sizes is None:
            return base
        text = sum(size.text_bytes for size in sizes)
        disk: float = text
        if isinstance(step, ShardsStep):
            disk = 2 * text / self._token_bytes(step, sizes)
        elif isinstance(step, TokenizerStep):
            disk, text = _TOKENIZER_BYTES, min(text, step.sample_bytes)
        seconds = 0.5 + _TEXT_SECONDS_PER_MB[step.kind] * text / 1e6
        return replace(base, seconds=seconds, basis="estimated", disk_bytes=round(disk), peak_disk_bytes=round(disk))

    def _opened(self, step: OpenStep) -> StepForecast:
        base = StepForecast(name=step.name, kind=step.kind, reads=step.model, leaves="its weights in float32")
        source = self._models.source(step)
        if source is None:
            return base
        weights = 4 * count_parameters(source.spec).total
        base = replace(base, disk_bytes=weights, peak_disk_bytes=weights, seconds=weights / 2e8, basis="estimated")
        return self._with_model(base, source.spec)

    def _learning(self, step: LearningStep) -> StepForecast:
        spec = self._models.before(step)
        base = StepForecast(name=step.name, kind=step.kind, reads=_reads(step), leaves="checkpoints and metrics")
        if isinstance(step, GrpoStep | DistillStep):
            return base if spec is None else self._online(step, base, spec)
        size = self._training(step)
        base = replace(base, passes=size.passes)
        if size.tokens is not None:
            per_step = round(size.tokens / size.steps) if size.steps else None
            base = replace(base, tokens=round(size.tokens), steps=size.steps, tokens_per_step=per_step)
        if spec is None:
            return base
        references = 1 if isinstance(step, DpoStep) else 0
        base = self._trained(base, spec, step.train, size.micro_tokens, references=references)
        if size.tokens is None:
            return base
        length = min(size.length, spec.max_position_embeddings)
        pace = self._pace(spec, step.train, max(1, size.micro_tokens // length), length)
        factor = 4 / 3 if isinstance(step, DpoStep) else 1.0
        return _timed(base, pace, factor * size.tokens, base.steps or 0)

    def _online(self, step: GrpoStep | DistillStep, base: StepForecast, spec: ModelSpec) -> StepForecast:
        policy = step.policy
        answers = policy.rollout.questions * policy.rollout.group_size
        drawn = answers * policy.rollout.max_tokens * ANSWER_SHARE
        learned = drawn * (policy.epochs + self._other_passes(step, spec))
        base = replace(base, tokens_per_step=round(drawn), steps=policy.rollouts, tokens=round(drawn * policy.rollouts))
        length = 2 * policy.rollout.max_tokens
        base = self._trained(base, spec, policy, min(policy.micro_batch_tokens, round(answers * length)), references=1)
        pace = self._pace(spec, policy, max(1, min(8, policy.micro_batch_tokens // length)), length)
        timed = _timed(base, pace, learned * policy.rollouts, policy.rollouts * policy.updates)
        sampling = self._sampling_pace(spec, rollout_engine(policy, self._device))
        return _sampled(timed, sampling, drawn * policy.rollouts)

    def _other_passes(self, step: GrpoStep | DistillStep, spec: ModelSpec) -> float:
        """Return what a reference or a teacher computes for each token of an answer, in passes of training."""
        if isinstance(step, GrpoStep):
            return 1 / 3 if step.policy.loss.kl is not None else 0.0
        teacher = self._models.teacher(step)
        return 0.0 if teacher is None else count_parameters(teacher).active / count_parameters(spec).active / 3

    def _trained(
        self, base: StepForecast, spec: ModelSpec, train: UpdateSpec, tokens: int, *, references: int
    ) -> StepForecast:
        memory = training_memory(
            spec,
            tokens=tokens,
            loss_chunk_tokens=train.loss_chunk_tokens,
            activation_checkpointing=train.activation_checkpointing,
            adapter=train.adapter,
            optimizer=train.optimizer,
        )
        learned, checkpointing = memory.gradients, train.checkpoint  # of a checkpoint: all weights, or an adapter's
        saved = learned + memory.optimizer
        return replace(
            self._with_model(base, spec),
            memory_bytes=memory.total + references * learned,
            disk_bytes=saved * checkpointing.keep if checkpointing.keep_optimizer else learned,
            peak_disk_bytes=saved * (checkpointing.keep + 1),
        )

    def _with_model(self, base: StepForecast, spec: ModelSpec) -> StepForecast:
        count = count_parameters(spec)
        memory = 4 * count.total + 2048 * cache_bytes_per_token(spec, bits=32)
        return replace(base, parameters=count.total, active_parameters=count.active, memory_bytes=round(memory))

    def _pace(self, spec: ModelSpec, train: UpdateSpec, sequences: int, length: int) -> Pace | None:
        precision = resolve_precision(train, self._device)
        key = (spec, sequences, length, train.activation_checkpointing, precision)
        if key not in self._paces:
            self._paces[key] = training_pace(
                spec,
                train,
                sequences=sequences,
                length=length,
                device=self._device,
                peak=self._peak,
                measure=self._measure,
            )
        return self._paces[key]

    def _sampling_pace(self, spec: ModelSpec, engine: EngineSpec) -> SamplingPace | None:
        key = (spec, engine)
        if key not in self._sampling_paces:
            self._sampling_paces[key] = sampling_pace(
                spec, engine, device=self._device, peak=self._peak, measure=self._measure
            )
        return self._sampling_paces[key]

    def _training(self, step: TrainStep | SftStep | DpoStep | RewardModelStep) -> _Training:
        """Return the tokens of a step and how they are cut, as far as either is known."""
        if isinstance(step, TrainStep):
            batch, length, unique = step.train.batch, step.train.sequence_length, self._unique_tokens(step)
            micro = batch.for_length(length).micro_batch_size or batch.size
            total = step.train.total_tokens
            passes = None if not unique else total / unique
            return _Training(total, total_steps(step.train), passes, min(micro, batch.size) * length, length)
        sources = step.data if isinstance(step, SftStep) else step.pairs
        each = [self._examples(source) for source in sources]
        known = [found for found in each if found is not None]
        epochs, rows = step.train.epochs, step.train.batch.rows
        examples, tokens = (sum(found[index] for found in known) for index in (0, 1))
        length = step.train.sequence_length or max(64, round(3 * tokens / max(1, examples)))
        micro_tokens = step.train.batch.micro_batch_tokens or length
        if rows is not None:
            micro_tokens = length * min(rows.size, rows.for_length(length).micro_batch_size or 1)
        if len(known) < len(each):
            return _Training(None, None, epochs, micro_tokens, length)
        if rows is not None:
            steps = math.floor(epochs * tokens / (rows.size * length))
        else:
            steps = max(1, math.ceil(epochs * examples / step.train.batch.examples))
            micro_tokens = max(micro_tokens, round(step.train.batch.examples * tokens / max(1, examples)))
        return _Training(epochs * tokens, steps, epochs, micro_tokens, length)

    def _examples(self, source: object) -> tuple[float, float] | None:
        """Return how many conversations or pairs a source has, and their tokens; None where only the run knows."""
        if isinstance(source, WorkedProblems):
            return float(source.count), float(source.count * WORKED_TOKENS)
        if not isinstance(source, ConversationFile | PairFile):
            return None
        found = rows_size(self._plan.data_path(source.path))
        rows = found.rows * (source.repeat if isinstance(source, ConversationFile) else 1)
        return float(rows), rows * row_tokens(found.characters)

    def _text(self, corpus: CorpusStep) -> list[TextSize] | None:
        """Return the text of a corpus by source; None where some of it is fetched or generated."""
        sources = self._plan.manifests[corpus.name].sources
        if not all(isinstance(source, FolderSource) for source in sources):
            return None
        if corpus.name not in self._texts:
            self._texts[corpus.name] = [text_size(source) for source in sources if isinstance(source, FolderSource)]
        return self._texts[corpus.name]

    def _token_bytes(self, step: Step, sizes: list[TextSize]) -> float:
        tokenizer: TokenizerStep | None = last_before(self._plan.recipe, step, TokenizerStep)
        if tokenizer is None or not self._measure:
            return TEXT_BYTES_PER_TOKEN
        size = tokenizer.vocab_size
        if size not in self._bytes:
            self._bytes[size] = bytes_per_token([text for found in sizes for text in found.sample], size)
        return self._bytes[size]


def _reads(step: LearningStep) -> str:
    if isinstance(step, TrainStep):
        return "token files"
    if isinstance(step, SftStep):
        return "conversations, a model"
    return "pairs, a model" if isinstance(step, DpoStep | RewardModelStep) else "problems, a model"


def _timed(base: StepForecast, pace: Pace | None, tokens: float, updates: float) -> StepForecast:
    if pace is None:
        return base
    return replace(base, seconds=pace.seconds(tokens, updates), basis="measured" if pace.measured else "estimated")


def _sampled(base: StepForecast, pace: SamplingPace | None, tokens: float) -> StepForecast:
    """Add the time of sampling to what a step takes besides."""
    if pace is None:
        return replace(base, seconds=None, basis="unknown")
    basis: Basis = "measured" if pace.measured and base.basis != "estimated" else "estimated"
    return replace(base, seconds=(base.seconds or 0.0) + tokens * pace.token, basis=basis)
