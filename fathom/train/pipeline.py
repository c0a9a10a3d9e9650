"""Training steps of a pipeline: each process runs its stages' part of every micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fathom.errors import FathomError, SpecError
from fathom.parallel.pipeline import Part, Pipeline, Stage, with_loss
from fathom.train.gradients import MicroBatchSums
from fathom.train.group import Group
from fathom.train.micro_batch import MicroBatch
from fathom.train.step import StepDraws, StepRunner, check_trainable


def make_runner(*args: Any, group: Group, **options: Any) -> StepRunner:
    """Return the runner of a group: of whole models, or of stages."""
    if group.pipeline is None:
        return StepRunner(*args, group=group, **options)
    return PipelineRunner(group.pipeline, *args, group=group, **options)


class PipelineRunner(StepRunner):
    """A ``StepRunner`` whose model is cut into stages; sums and losses are those of all stages."""

    def __init__(self, pipeline: Pipeline, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pipeline = pipeline
        for stage in pipeline.stages:
            stage.function = self._stage
        self._micros: list[MicroBatch] = []
        self._step: tuple[StepDraws, MicroBatchSums, bool]
        self._width = 0

    def _run(
        self, micros: Iterable[MicroBatch], draws: StepDraws, number: int, sums: MicroBatchSums, observe: bool
    ) -> None:
        self._micros, self._step = list(micros), (draws, sums, observe)
        for micro in self._micros:
            self._check(micro)
        rows = {micro.tokens_BT.shape[0] for micro in self._micros}
        if len(rows) > 1:
            raise SpecError(
                "batch.size", "does not divide into micro-batches of one size", "choose a multiple of micro_batch_size"
            )
        self._width = max(micro.tokens_BT.shape[1] for micro in self._micros)
        try:
            self._pipeline.run(len(self._micros), rows.pop(), self._width)
        except ValueError as error:  # of a schedule that needs more
            raise SpecError("parallel.schedule", str(error), "choose smaller micro-batches, or 1f1b") from error
        except RuntimeError as error:
            if isinstance(error.__cause__, FathomError | MemoryError):
                raise error.__cause__ from None
            raise
        finally:
            self._micros = []
        self._share_sums(sums)

    def _stage(self, stage: Stage, number: int, x_BTD: Tensor | None) -> Tensor:
        """Run a stage's part of a micro-batch; returns what the next stage takes, or the loss."""
        (draws, sums, observe), micro, part = self._step, self._micros[number], stage.part
        routing = draws.of(micro, replay=self._replay)
        tokens = micro.tokens_BT.shape[1]
        with self.autocast():
            if x_BTD is None:
                x_BTD = self.model.embed(micro.tokens_BT, self._features(micro.images))
            x_BTD, routed = self.model.run_layers(
                x_BTD[:, :tokens],
                layers=part.layers,
                tokens_BT=micro.tokens_BT,
                packed=micro.packed,
                routing=routing,
                checkpoint_activations=self.spec.activation_checkpointing,
                cache=self.group.attention_cache(self.model, len(part.layers)),
                form="expanded",
            )
            first = self._mixtures_before(part)
            if part.last:
                mtp = self._with_mtp and micro.packed is None
                output = self.model.finish(x_BTD, routed, micro.tokens_BT, routing=routing, mtp=mtp)
                loss = self._loss(output, micro, sums, observe, first)
                check_trainable(loss)
                return loss
            balance = self._balance(routed, micro)
            self._count(routed, micro, sums, observe, first)
            sums.losses_3[1] += balance.detach()
        if balance.requires_grad:
            x_BTD = with_loss(x_BTD, balance)
        return F.pad(x_BTD, (0, 0, 0, self._width - tokens)).float()

    def _mixtures_before(self, part: Part) -> int:
        return sum(self.model.spec.is_moe_layer(index) for index in range(part.layers.start))

    def _share_sums(self, sums: MicroBatchSums) -> None:
        """Give all stages the names of what the last one logs, so that all add up the same."""
        names = self.group.names_of_all(list(sums.objective_sums))
        zero = sums.losses_3.new_zeros(())
        sums.objective_sums = {name: sums.objective_sums.get(name, zero) for name in names}
