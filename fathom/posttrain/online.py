"""Training on sampled answers: sample, score, update; what GRPO and on-policy distillation share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.data.packed import PackedBatch
from fathom.errors import TrainError
from fathom.model.decoder import Decoder
from fathom.posttrain.logprob_monitor import DEFAULT_BOUNDS, P99_SHARE, LogprobDifference, LogprobMonitor
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rollout import Rollout, RolloutSampler, pack_rollouts, packing_order, sample_rollouts
from fathom.posttrain.routing import RoutingAgreement
from fathom.progress import NULL_PROGRESS, Progress
from fathom.signals import StopRequest
from fathom.spec.problem import Problem
from fathom.spec.rollout import OnlineSpec
from fathom.train.alarms import ROLLOUTS, Alarms
from fathom.train.loop import adapt, check_dtype
from fathom.train.measure import peak_memory
from fathom.train.metrics import JsonLines, read_json_lines
from fathom.train.micro_batch import split
from fathom.train.objective import Objective
from fathom.train.record import METRICS
from fathom.train.schedule import rate_at
from fathom.train.stage import Stage
from fathom.train.state import Position
from fathom.train.step import StepRunner, counter_seed
from fathom.train.trackers import NO_TRACKING, Tracker, Tracking

_SHOWN = {"reward": "reward", "accuracy": "right", "loss": "loss", "length": "tokens each"}
"""Metrics that are reported as progress, and what they are called there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """A rollout's answers with columns of one number a token, and metrics."""

    rollouts: Sequence[Rollout]
    columns: Mapping[str, Sequence[Sequence[float]]]
    values: Mapping[str, Any] = field(default_factory=dict)


class OnlineTrainer(ABC):
    """Trains a decoder on answers that ``sampler`` samples with the same weights.

    A stage owns one directory: metrics.jsonl, one line a rollout; samples.jsonl, its first group's answers; and
    checkpoints/. Checkpoints are taken between rollouts, and a resumed run samples what an uninterrupted one would.
    """

    def __init__(
        self,
        model: Decoder,
        spec: OnlineSpec,
        sampler: RolloutSampler,
        prompt_formatter: PromptFormatter,
        questions: ProblemStream,
        directory: Path,
        *,
        progress: Progress = NULL_PROGRESS,
        files: Sequence[Path] = (),
        base: AdapterBase | None = None,
        tracking: Tracking = NO_TRACKING,
    ) -> None:
        check_dtype(model)
        adapt(model, spec, progress)
        self.model, self.spec, self.sampler, self.prompt_formatter = model, spec, sampler, prompt_formatter
        self.questions, self.directory = questions, directory
        self.logprob_monitor = LogprobMonitor()
        self._progress = progress
        self._files = files
        self._base = base
        self._tracking = tracking

    @property
    def context(self) -> int:
        """How long a prompt with its answer may be."""
        return self.model.spec.max_position_embeddings

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside weights: where the problems stand."""
        return self.questions.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.questions.restore(state)

    @abstractmethod
    def objective(self) -> Objective:
        """Return the objective; it passes the log-probabilities it computes to ``self.logprob_monitor``."""

    @abstractmethod
    def collect_rollouts(self, number: int) -> RolloutBatch:
        """Sample the answers of rollout ``number``, counted from 1, with the columns that the objective needs."""

    @abstractmethod
    def begin(self, position: Position) -> None:
        """Prepare to continue after ``position``; called once, when weights are those of the position."""

    @abstractmethod
    def end(self, position: Position) -> None:
        """Called when a rollout's updates are done."""

    @abstractmethod
    def reduce_metrics(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Turn the objective's sums over one optimizer step into metrics."""

    def run(self, resume: bool = False, *, allow_changes: bool = False) -> Path:
        """Train until ``rollouts`` are done, from the latest checkpoint if there is one; returns the last checkpoint.

        ``allow_changes`` is as for ``fathom.train.Trainer.run``.

        Raises:
            CheckpointError: not resuming but the directory holds checkpoints, or the latest one cannot be used.
            TrainError: loss or gradient is not finite, or the sampler's log-probabilities are not the trainer's.
            ResourceError: no room for the last checkpoint, or memory ran out.
            Interrupted: SIGINT or SIGTERM; the rollout was finished and saved first.
        """
        stage = Stage(
            self.directory,
            model=self.model,
            spec=self.spec,
            source=self,
            files=self._files,
            note=self._progress.message,
            base=self._base,
        )
        position = stage.start(resume, allow_changes=allow_changes)
        self.begin(position)
        self.sampler.forget()
        runner = StepRunner(
            self.model,
            stage.optimizer,
            self.spec,
            objective=self.objective(),
            balanced=self.spec.balanced,
            replay_routing=self.spec.replay_routing,
        )
        metrics = JsonLines(self.directory / METRICS, after_step=position.step)
        samples = JsonLines(self.directory / "samples.jsonl", after_step=position.step)
        trackers = self._tracking.open(self.directory, after_step=position.step, note=self._progress.message)
        before = read_json_lines(self.directory / METRICS)
        alarms = Alarms(ROLLOUTS, note=self._progress.message, before=before, unit="rollout")
        run = _Run(self, stage, runner, metrics, samples, trackers, alarms)

        def sync() -> None:
            metrics.sync()
            samples.sync()

        try:
            stage.record_changes(metrics)
            with StopRequest() as stop:
                path = stage.run(run.step, more=lambda now: now.step < self.spec.rollouts, stop=stop, sync=sync)
            stage.check_stop(stop)
            alarms.end()
            return path
        finally:
            self.model.eval()
            metrics.close()
            samples.close()
            for tracker in trackers:
                tracker.close()

    def sample(self, problems: Sequence[Problem], number: int, *, first_group: int = 0) -> list[Rollout]:
        """Sample a group of answers to each problem with the current weights."""
        self.model.eval()
        return sample_rollouts(
            self.sampler,
            self.prompt_formatter,
            problems,
            self.spec.rollout,
            seed=counter_seed(self.spec.seed, number),
            context=self.context,
            first_group=first_group,
        )


class _Run:
    """One call of ``OnlineTrainer.run``: the state that lives between its rollouts."""

    def __init__(
        self,
        trainer: OnlineTrainer,
        stage: Stage,
        runner: StepRunner,
        metrics: JsonLines,
        samples: JsonLines,
        trackers: Sequence[Tracker],
        alarms: Alarms,
    ) -> None:
        self.trainer, self.stage, self.runner, self.metrics, self.samples = trainer, stage, runner, metrics, samples
        self.trackers, self.alarms = trackers, alarms
        self.spec = trainer.spec

    def step(self, before: Position) -> Position:
        """Sample, update, report."""
        number, started = before.step + 1, time.perf_counter()
        rollout_batch = self.trainer.collect_rollouts(number)
        sampled = time.perf_counter()
        values, tokens, loss = self._update(rollout_batch, number, before)
        ended = time.perf_counter()
        answer_tokens = sum(len(rollout.answer_ids) for rollout in rollout_batch.rollouts)
        position = Position(number, before.tokens + answer_tokens, before.seconds + ended - started, loss)
        values |= {
            **rollout_batch.values,
            "tokens": position.tokens,
            "rollout_tokens_per_second": answer_tokens / max(sampled - started, 1e-9),
            "update_tokens_per_second": tokens / max(ended - sampled, 1e-9),
            "rollout_seconds": sampled - started,
            "update_seconds": ended - sampled,
            "seconds": position.seconds,
            "peak_memory_bytes": peak_memory(self.runner.device),
        }
        self.metrics.write(number, self.alarms.add(number, values))
        for tracker in self.trackers:
            tracker.write(number, values)
        self._keep_samples(rollout_batch, number)
        self.trainer.end(position)
        self._report(position, values)
        return position

    def _update(self, rollout_batch: RolloutBatch, number: int, before: Position) -> tuple[dict[str, Any], int, float]:
        """Take the rollout's optimizer steps; returns what to log, the tokens that were trained on, and the loss."""
        trainer, spec = self.trainer, self.spec
        batches = minibatches(rollout_batch, spec, counter_seed(spec.seed, number))
        self.trainer.model.train()
        found: list[dict[str, Any]] = []
        trained, loss = 0, 0.0
        rate = rate_at(spec, number, before.step / spec.rollouts, spec.rollouts)
        for index, batch in enumerate(batches):
            trainer.logprob_monitor.reset()
            micros = split(batch, 1, spec.micro_batch_tokens, self.runner.device)
            gradients = self.runner.accumulate(micros, len(batch.lengths), number, observe=False)
            if not gradients.finite:
                self.runner.discard()
                kept = {"tokens": batch.tokens_N, "targets": batch.targets_N, **batch.columns}
                self.stage.refuse(number, gradients, kept | {"lengths": torch.tensor(batch.lengths)})
            if index == 0:
                difference = trainer.logprob_monitor.difference
                self._check(difference, number)
                found.append(difference.values())
            self.runner.apply(gradients, rate)
            trained, loss = trained + len(batch.tokens_N), gradients.loss
            found.append(trainer.reduce_metrics(gradients.sums) | {"grad_norm": gradients.norm_value})
            routed = RoutingAgreement.from_sums(gradients.sums)
            if routed.tokens:
                found.append({"routing_equal": routed.equal, "routing_shared": routed.shared})
        if batches:
            trainer.sampler.forget()
        return _means(found) | {"lr": rate, "loss": loss, "updates": len(batches)}, trained, loss

    def _check(self, difference: LogprobDifference, number: int) -> None:
        bound = self.spec.max_logprob_difference
        if bound is None:
            bound = DEFAULT_BOUNDS[self.runner.dtype]
        if difference.exceeds(bound):
            self.runner.discard()
            raise TrainError(
                f"rollout {number}: tokens' log-probabilities as they were sampled and as the trainer computes them "
                f"differ by up to {difference.maximum:.3g} (99th percentile {difference.p99:.3g}), more than "
                f"max_logprob_difference {bound:g} (99th percentile {P99_SHARE * bound:g}); sample in the trainer's "
                "precision (EngineSpec.compute_dtype), or raise max_logprob_difference knowing that the policy then "
                "learns from another's answers"
            )

    def _keep_samples(self, rollout_batch: RolloutBatch, number: int) -> None:
        if not rollout_batch.rollouts:
            return
        first = rollout_batch.rollouts[0]
        shown = [rollout.text for rollout in rollout_batch.rollouts if rollout.group == first.group][:4]
        problem = {"task": first.problem.task, "question": first.problem.question, "expected": first.problem.answer}
        self.samples.write(number, {**problem, "answers": shown})

    def _report(self, position: Position, values: Mapping[str, Any]) -> None:
        metrics = {label: f"{values[name]:.3g}" for name, label in _SHOWN.items() if name in values}
        self.trainer._progress.update(position.step, self.spec.rollouts, "rollouts", metrics=metrics)


def minibatches(rollout_batch: RolloutBatch, spec: OnlineSpec, seed: int) -> list[PackedBatch]:
    """Cut a rollout into its optimizer steps: all answers in a new order every epoch, in ``updates`` equal parts.

    Within a step, answers are packed group by group, so that a prompt is computed once a micro-batch.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(spec.epochs):
        order = torch.randperm(len(rollout_batch.rollouts), generator=generator)
        for part in order.tensor_split(spec.updates):
            drawn = sorted(part.tolist())
            chosen = [drawn[place] for place in packing_order([rollout_batch.rollouts[index] for index in drawn])]
            if chosen:
                columns = {name: [column[index] for index in chosen] for name, column in rollout_batch.columns.items()}
                batches.append(pack_rollouts([rollout_batch.rollouts[index] for index in chosen], columns))
    return batches


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the metrics of several optimizer steps, by name."""
    names = dict.fromkeys(name for values in found for name in values)
    return {
        name: sum(values[name] for values in found if name in values) / sum(name in values for values in found)
        for name in names
    }
