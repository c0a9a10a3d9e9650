"""The trainer: steps until the tokens are spent, with metrics, checkpoints and an orderly stop.

A training stage owns one directory: metrics.jsonl and experts.jsonl (one line per logged step), checkpoints/ and,
after a step whose loss was not finite, bad_batch-STEP.safetensors and .json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.data.packed import PackedBatch
from fathom.errors import SpecError
from fathom.locale import tr
from fathom.model.adapters.attach import attach
from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode
from fathom.progress import NULL_PROGRESS, Progress
from fathom.signals import StopRequest
from fathom.spec.train import TrainSpec, UpdateSpec
from fathom.train.epochs import EpochProgress
from fathom.train.gradients import Gradients
from fathom.train.group import ALONE, Group, any_rank
from fathom.train.metrics import read_json_lines
from fathom.train.micro_batch import batch_size, split
from fathom.train.objective import Objective
from fathom.train.pipeline import make_runner
from fathom.train.protocols import Loader, TokenBatch
from fathom.train.record import METRICS, Recorder, ThroughputMeter
from fathom.train.schedule import learning_rate, steps_left
from fathom.train.stage import Stage
from fathom.train.state import Position
from fathom.train.step import StepRunner
from fathom.train.trackers import NO_TRACKING, Tracking
from fathom.train.validation import EVALUATIONS, VALIDATION_LOSS, BestWeights, Validation, held_out_loss

__all__ = ["Evaluate", "TrainSummary", "Trainer"]

Evaluate = Callable[[Decoder], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """How a stage ended. ``loss`` is the last step's; ``seconds`` are those of all its steps, resumes included."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    tokens_per_second: float
    checkpoint: Path
    evaluation: Mapping[str, float] | None = None


class Trainer:
    """Trains a decoder on one stage's batches, on the device the model is on; its weights stay float32.

    ``evaluate`` is called every ``evaluate_every_steps`` with the model in evaluation mode and without gradients; its
    numbers join that step's line. ``bytes_per_token`` gives each source's bytes of text per token, in the order of
    the loader's source indices, for bits per byte; sources beyond it (synthetic ones) are left out of that figure.
    ``files`` are copied into every checkpoint. ``objective`` is what is minimised, a language model's loss by default.
    Where ``spec`` has an adapter, the model gets it in place and keeps its weights; ``base`` says where these are.
    ``validation`` is measured before the first step, every ``evaluate_every_steps`` or tenth of the stage, and at the
    end. ``epochs`` says what progress counts instead of tokens.
    Each rank of a ``group`` has a trainer, whose ``loader`` yields the rank's part of each batch; rank 0 writes.
    """

    def __init__(
        self,
        model: Decoder,
        spec: TrainSpec,
        loader: Loader,
        directory: Path,
        *,
        evaluate: Evaluate | None = None,
        progress: Progress = NULL_PROGRESS,
        bytes_per_token: Mapping[str, float] | None = None,
        tracking: Tracking = NO_TRACKING,
        files: Sequence[Path] = (),
        objective: Objective | None = None,
        validation: Validation | None = None,
        epochs: EpochProgress | None = None,
        group: Group = ALONE,
        base: AdapterBase | None = None,
    ) -> None:
        if spec.sequence_length > model.spec.max_position_embeddings:
            raise SpecError(
                "sequence_length",
                f"{spec.sequence_length} exceeds the model's context of {model.spec.max_position_embeddings}",
                "shorten it or stretch the context",
            )
        check_dtype(model)
        adapt(model, spec, progress)
        self.model = model
        self.spec = spec
        self.loader = loader
        self.directory = directory
        self._evaluate = evaluate
        self._progress = progress
        self._bytes_per_token = dict(bytes_per_token or {})
        self._tracking = tracking
        self._validation = None if group.pipeline is not None else validation
        self._epochs = epochs
        self._files = tuple(files)
        self._objective = objective
        self._group = group
        self._base = base

    def run(self, resume: bool = False, *, allow_changes: bool = False) -> TrainSummary:
        """Train until ``total_tokens`` were seen, from the latest checkpoint when ``resume`` and there is one.

        The spec may differ from the one that was saved as ``fathom.spec.resume`` says; fields that change what is
        learned only where ``allow_changes``. metrics.jsonl says what differed.

        Periodic checkpoints that the disk has no room for are noted and tried again when the next is due; training
        goes on. The last one must succeed.

        Raises:
            CheckpointError: not resuming but the directory holds checkpoints, or the latest one is damaged or of
                another model or a spec that may not differ.
            TrainError: loss or gradient norm is not finite; the step was not taken and its batch is kept.
            ResourceError: no room for the last checkpoint, or memory ran out.
            Interrupted: SIGINT or SIGTERM; the step was finished and saved first.
        """
        stage = Stage(
            self.directory,
            model=self.model,
            spec=self.spec,
            source=self.loader,
            files=self._files,
            note=self._progress.message,
            group=self._group,
            base=self._base,
        )
        position = stage.start(resume, allow_changes=allow_changes)
        runner = make_runner(
            self.model,
            stage.optimizer,
            self.spec,
            sources=len(self._bytes_per_token),
            objective=self._objective,
            group=self._group,
        )
        recorder = self._recorder(runner, position.step)
        try:
            if recorder is not None:
                stage.record_changes(recorder.metrics)
            with StopRequest() as stop:
                summary = _Run(self, stage, runner, recorder, stop).go()
            stage.check_stop(stop)
            if recorder is not None:
                recorder.end()
            return summary
        finally:
            if recorder is not None:
                recorder.close()

    def _recorder(self, runner: StepRunner, after_step: int) -> Recorder | None:
        """Open the metrics; None on ranks that write none."""
        if not self._group.leads:
            return None
        return Recorder(
            self.directory,
            runner,
            sequence_length=self.spec.sequence_length,
            after_step=after_step,
            bytes_per_token=self._bytes_per_token,
            note=self._progress.message,
            tracking=self._tracking,
        )

    def _evaluated(self, stop: StopRequest, step: int) -> Mapping[str, float] | None:
        every = self.spec.evaluate_every_steps
        if self._evaluate is None or every is None or step % every or self._group.pipeline is not None:
            return None
        if any_rank(self._group, stop.signal_name is not None):
            return None
        with eval_mode(self.model), torch.no_grad():
            return self._evaluate(self.model)


class _Run:
    """One call of ``Trainer.run``: the state that lives between its steps."""

    def __init__(
        self, trainer: Trainer, stage: Stage, runner: StepRunner, recorder: Recorder | None, stop: StopRequest
    ) -> None:
        self.trainer, self.stage, self.runner, self.recorder, self.stop = trainer, stage, runner, recorder, stop
        self.spec = trainer.spec
        self.pace = ThroughputMeter()
        self.total_steps = stage.position.step + steps_left(self.spec, stage.position.tokens)
        self.evaluation: Mapping[str, float] | None = None
        self.validation = trainer._validation
        self.best = self._best_weights(stage.position.step)

    def go(self) -> TrainSummary:
        if self.validation is not None and self.stage.position.step == 0:
            self._record_start(self.validation)
        self.trainer.model.train()
        path = self.stage.run(self._step, more=self._more, stop=self.stop, sync=self._sync, finish=self._finish)
        if self.best is not None and not self._more(self.stage.position) and self.runner.group.leads:
            self.best.discard()
        return self._summary(path)

    def _more(self, position: Position) -> bool:
        return position.tokens < self.spec.total_tokens and not (self.best is not None and self.best.exhausted)

    def _finish(self, position: Position) -> None:
        loss = self._validation_loss()
        if loss is not None:
            said = tr("validation loss {loss} after {count} steps", loss=loss, count=f"{position.step:,}")
            self.trainer._progress.message(said)
        if self.best is None:
            return
        if position.tokens < self.spec.total_tokens:
            ended = {"step": position.step, "total": self.total_steps}
            self.trainer._progress.message(tr("stopped early after step {step} of {total}", **ended))
        self.best.restore(position.step)

    def _best_weights(self, step: int) -> BestWeights | None:
        if self.validation is None or self.validation.patience is None:
            return None
        rows = read_json_lines(self.trainer.directory / METRICS) if step else []
        return BestWeights(
            self.trainer.model,
            self.trainer.directory,
            patience=self.validation.patience,
            evaluations=[row for row in rows if VALIDATION_LOSS in row.get("evaluation", {}) and row["step"] <= step],
            note=self.trainer._progress.message,
        )

    def _record_start(self, validation: Validation) -> None:
        found = held_out_loss(self.runner, validation.batch, self.spec.micro_batch)
        if self.recorder is not None:
            self.recorder.record_start(found)
        loss = f"{found[VALIDATION_LOSS]:.3f}"
        self.trainer._progress.message(tr("validation loss {loss} before training", loss=loss))
        if self.best is not None:
            self.best.add(0, found[VALIDATION_LOSS])

    def _sync(self) -> None:
        if self.recorder is not None:
            self.recorder.sync()

    def _step(self, before: Position) -> Position:
        number, spec = before.step + 1, self.spec
        started = time.perf_counter()
        batch = self.trainer.loader.next(spec.batch.at(before.tokens))
        sequences, tokens = batch_size(batch, self.runner.group)
        last = before.tokens + tokens >= spec.total_tokens
        observe = number == 1 or last or self._evaluates(number) or number % spec.log_every_steps == 0
        micros = split(batch, *spec.micro_batch, self.runner.device, self.runner.group)
        gradients = self.runner.accumulate(micros, sequences, number, observe=observe)
        if not gradients.finite:
            self.runner.discard()
            self.stage.refuse(number, gradients, _tensors(batch))
        rate = learning_rate(spec, number, before.tokens)
        self.runner.apply(gradients, rate)
        seconds = time.perf_counter() - started
        position = Position(number, before.tokens + tokens, before.seconds + seconds, gradients.loss)
        self.pace.add(tokens, seconds)
        self._report(position)
        if gradients.observation is not None:
            self._record(position, gradients, rate)
        return position

    def _report(self, position: Position) -> None:
        metrics = {
            "step": f"{position.step}/{self.total_steps}",
            "loss": f"{position.loss or 0.0:.3f}",
            "tokens/s": f"{self.pace.recent:,.0f}",
        }
        loss = self._validation_loss()
        if loss is not None:
            metrics["validation"] = loss
        epochs = self.trainer._epochs
        if epochs is None:
            self.trainer._progress.update(position.tokens, self.spec.total_tokens, "tokens", metrics=metrics)
        else:
            done, total, epoch = epochs.now()
            self.trainer._progress.update(done, total, epochs.unit, metrics={"epoch": epoch} | metrics)

    def _validation_loss(self) -> str | None:
        """Return the last validation loss as it is shown."""
        loss = (self.evaluation or {}).get(VALIDATION_LOSS)
        return None if loss is None else f"{loss:.3f}"

    def _evaluates(self, number: int) -> bool:
        every = self.spec.evaluate_every_steps
        if every is None:
            return self.validation is not None and number % max(1, self.total_steps // EVALUATIONS) == 0
        return number % every == 0

    def _validated(self, position: Position) -> Mapping[str, float] | None:
        """Measure the held-out loss where it is due, the end included; a stop does not wait for it."""
        ends = position.tokens >= self.spec.total_tokens
        if self.validation is None or not (ends or self._evaluates(position.step)):
            return None
        if any_rank(self.runner.group, self.stop.signal_name is not None) and not ends:
            return None
        found = held_out_loss(self.runner, self.validation.batch, self.spec.micro_batch)
        if self.best is not None:
            self.best.add(position.step, found[VALIDATION_LOSS])
        return found

    def _record(self, position: Position, gradients: Gradients, rate: float) -> None:
        assert gradients.observation is not None
        evaluation = self._validated(position) or self.trainer._evaluated(self.stop, position.step)
        self.evaluation = evaluation if evaluation is not None else self.evaluation
        if self.recorder is None:
            return
        self.recorder.record(
            position,
            gradients,
            gradients.observation,
            rate=rate,
            speed=self.pace.since_logged(),
            evaluation=evaluation,
        )

    def _summary(self, path: Path) -> TrainSummary:
        position = self.stage.position
        return TrainSummary(
            steps=position.step,
            tokens=position.tokens,
            loss=position.loss if position.loss is not None else float("nan"),
            seconds=position.seconds,
            tokens_per_second=position.tokens / max(position.seconds, 1e-9),
            checkpoint=path,
            evaluation=self.evaluation,
        )


def check_dtype(model: Decoder) -> None:
    """Refuse weights that are not float32: they would round away small updates."""
    dtypes = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if dtypes:
        raise SpecError("model", f"has weights of {dtypes.pop()}", "train float32 weights and set precision")


def adapt(model: Decoder, spec: UpdateSpec, progress: Progress) -> None:
    """Attach the adapter that a stage trains, unless the model has it, and say what is trained and what is not."""
    if spec.adapter is None or model.adaptation is not None:
        return
    total = sum(parameter.numel() for parameter in model.parameters())
    adaptation = attach(model, spec.adapter, seed=spec.seed)
    learned = sum(model.get_parameter(name).numel() for name in adaptation.names)
    layers = sum(name.endswith("A") for name in adaptation.names)
    said = tr(
        "LoRA of rank {rank} on {layers} layers: {learned} parameters are trained, {share} of the model's {total}",
        rank=spec.adapter.rank,
        layers=layers,
        learned=f"{learned:,}",
        share=f"{learned / total:.2%}",
        total=f"{total:,}",
    )
    progress.message(said)
    if adaptation.left_out:
        progress.message(tr("not adapted: {names}", names=", ".join(adaptation.left_out)))


def _tensors(batch: TokenBatch | PackedBatch) -> dict[str, torch.Tensor]:
    if isinstance(batch, PackedBatch):
        return {"tokens": batch.tokens_N, "targets": batch.targets_N, "lengths": torch.tensor(batch.lengths)}
    return {"tokens": batch.tokens_BT1, "source": batch.source_B}
