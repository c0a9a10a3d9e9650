"""Pipeline parallelism: consecutive layers on different processes, run by torch's schedules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules

from fathom.model.decoder import Decoder
from fathom.parallel.mesh import Mesh
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import PipelineSchedule, plan_stages

StageFunction = Callable[["Stage", int, Tensor | None], Tensor]
"""What a stage does for the micro-batch of a number: from what the stage before made to its own result, or the loss."""

_SCHEDULES: dict[PipelineSchedule, Any] = {
    "gpipe": schedules.ScheduleGPipe,
    "1f1b": schedules.Schedule1F1B,
    "interleaved-1f1b": schedules.ScheduleInterleaved1F1B,
    "zero-bubble": schedules.ScheduleInterleavedZeroBubble,
    "dualpipe-v": schedules.ScheduleDualPipeV,
}


@dataclass(frozen=True, slots=True)
class Part:
    """The layers of a stage, and its place."""

    index: int
    stages: int
    layers: range

    @property
    def first(self) -> bool:
        """Whether it embeds the tokens."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether it computes the losses."""
        return self.index == self.stages - 1


class _Absent(nn.Module):
    """What another stage holds."""


class Stage(nn.Module):
    """The modules of one stage; ``function`` is set by whoever trains."""

    function: StageFunction

    def __init__(self, model: Decoder, part: Part, *, embeds: bool) -> None:
        super().__init__()
        self.part = part
        self.layers = nn.ModuleList(model.layers[index] for index in part.layers)
        if embeds:
            self.embed_tokens = model.embed_tokens
        if part.last:
            self.norm, self.lm_head, self.mtp = model.norm, model.lm_head, model.mtp

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the embedding, where it is here."""
        return (parameter for name, parameter in self.named_parameters() if name.startswith("embed_tokens."))

    def forward(self, x: Tensor, *, micro: Tensor) -> Tensor:
        """Run one micro-batch; ``x`` is what the stage before made, or anything for the first."""
        return self.function(self, int(micro[0]), None if self.part.first else x)


def shares_embedding(spec: ModelSpec) -> bool:
    """Whether the last stage needs the embedding too: for a tied head or MTP modules."""
    return spec.tie_word_embeddings or spec.num_nextn_predict_layers > 0


def split_layers(layers: int, stages: int) -> list[range]:
    """Divide layers evenly; earlier stages take what is left, as the last one computes the head."""
    each, more = divmod(layers, stages)
    starts = [index * each + min(index, more) for index in range(stages + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


def own_parts(model: Decoder, mesh: Mesh) -> list[Part]:
    """Return the stages of this process: every n-th, or the two arms of a V for DualPipeV."""
    plan, rank = mesh.plan, mesh.pipeline.get_local_rank()
    each = plan_stages(plan)
    stages = each * plan.pipeline
    folded = plan.schedule == "dualpipe-v"
    indices = [rank] if each == 1 else [rank, stages - 1 - rank if folded else rank + plan.pipeline]
    ranges = split_layers(len(model.layers), stages)
    return [Part(index, stages, ranges[index]) for index in indices]


def cut(model: Decoder, parts: Sequence[Part]) -> list[Stage]:
    """Leave a process the modules of its own stages."""
    shared = shares_embedding(model.spec)
    stages = [Stage(model, part, embeds=part.first or (part.last and shared)) for part in parts]
    own = {index for part in parts for index in part.layers}
    for index in range(len(model.layers)):
        if index not in own:
            model.layers[index] = _Absent()
    if not any(part.first or (part.last and shared) for part in parts):
        model.embed_tokens = _Absent()  # type: ignore[assignment]
    if not any(part.last for part in parts):
        model.norm, model.lm_head = _Absent(), _Absent()  # type: ignore[assignment]
        model.mtp = nn.ModuleList()
    return stages


def doubled_parameters(stages: Sequence[Stage]) -> set[nn.Parameter]:
    """Return the parameters of two stages of one process, which FSDP could reduce with one of them only."""
    seen: set[nn.Parameter] = set()
    doubled: set[nn.Parameter] = set()
    for stage in stages:
        own = set(stage.parameters())
        doubled |= own & seen
        seen |= own
    return doubled


class Pipeline:
    """This process's stages, and the schedules that run them."""

    def __init__(self, stages: Sequence[Stage], mesh: Mesh, spec: ModelSpec) -> None:
        self.stages = list(stages)
        self._mesh, self._spec = mesh, spec
        self._made: dict[tuple[int, int, int], Any] = {}

    @property
    def parts(self) -> list[Part]:
        """The stages of this process."""
        return [stage.part for stage in self.stages]

    @property
    def ends(self) -> tuple[int, int]:
        """The processes of the pipeline that hold its first and its last stage."""
        plan = self._mesh.plan
        return 0, 0 if plan.schedule == "dualpipe-v" else plan.pipeline - 1

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what both ends of the pipeline hold, where this process is one of two."""
        first, last = self.ends
        if first == last or not shares_embedding(self._spec) or self._mesh.pipeline.get_local_rank() not in self.ends:
            return []
        return [parameter for stage in self.stages for parameter in stage.embedding_parameters()]

    def run(self, micro_batches: int, batch: int, tokens: int) -> None:
        """Run forward and backward over micro-batches of (B, T) tokens, numbered from 0.

        Raises:
            ValueError: the schedule cannot run so few micro-batches.
        """
        key = (micro_batches, batch, tokens)
        if key not in self._made:
            self._made.clear()
            self._made[key] = self._schedule(*key)
        numbers = torch.arange(micro_batches)
        given = (numbers,) if any(part.first for part in self.parts) else ()
        target = numbers if any(part.last for part in self.parts) else None
        self._made[key].step(*given, micro=numbers, target=target, losses=[], return_outputs=False)

    def _schedule(self, micro_batches: int, batch: int, tokens: int) -> Any:
        plan, device = self._mesh.plan, self._mesh.device
        x_BTD = torch.empty(batch, tokens, self._spec.hidden_size, device=device, requires_grad=True)
        loss, number = torch.empty((), device=device, requires_grad=True), torch.zeros(1, dtype=torch.int64)
        made = [
            pipelining.PipelineStage(
                stage,
                stage.part.index,
                stage.part.stages,
                device,
                input_args=(number if stage.part.first else x_BTD,),
                output_args=(loss if stage.part.last else x_BTD,),
                group=self._mesh.pipeline.get_group(),
            )
            for stage in self.stages
        ]
        kind = _SCHEDULES[plan.schedule]
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        return kind(
            made[0] if single else made,
            n_microbatches=micro_batches,
            loss_fn=lambda output, target: output,
            scale_grads=False,
        )


class _WithLoss(torch.autograd.Function):
    """The identity, whose backward pass also begins at a loss: a stage in the middle has losses of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones((), dtype=torch.float32, device=grad.device)


def with_loss(x: Tensor, loss: Tensor) -> Tensor:
    """Return ``x``, so that the gradients that come to it meet those of ``loss``."""
    result: Tensor = _WithLoss.apply(x, loss)  # type: ignore[no-untyped-call]
    return result
