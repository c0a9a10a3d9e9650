"""The collectives that training asks for, over the processes of a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.model.moe import Routing
from fathom.parallel.collectives import part_of_value
from fathom.parallel.context import ContextCache, gather_routing
from fathom.parallel.mesh import Mesh
from fathom.parallel.parameters import local
from fathom.parallel.pipeline import Pipeline
from fathom.parallel.shard import begin_micro_batch

_Value = TypeVar("_Value")


class MeshGroup:
    """The processes that train a model sharded on ``mesh``; ``fathom.train.group.Group`` says what each method does."""

    def __init__(self, mesh: Mesh, pipeline: Pipeline | None = None) -> None:
        self._mesh, self.pipeline = mesh, pipeline
        self.processes = dist.new_group(backend="gloo")
        self.rank = mesh.data_rank
        self.size = mesh.plan.data
        self.context_rank = mesh.context.get_local_rank()
        self.leads = mesh.leads
        self._processes = mesh.data.get_group()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over the processes that have different parts of a batch."""
        summed = tensor.to(self._mesh.device, copy=True)
        dist.all_reduce(summed, group=self._processes)
        return summed.to(tensor.device)

    def sum_parts(self, tensor: Tensor) -> Tensor:
        """Return the sum over those processes and the stages of the pipeline."""
        summed = self.sum(tensor)
        if self._mesh.plan.pipeline > 1:
            moved = summed.to(self._mesh.device)
            dist.all_reduce(moved, group=self._mesh.pipeline.get_group())
            summed = moved.to(tensor.device)
        return summed

    def max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum over all processes; NaN where any has it."""
        largest = tensor.to(self._mesh.device, copy=True)
        bad = largest.isnan() if largest.is_floating_point() else torch.zeros_like(largest, dtype=torch.bool)
        flags = bad.to(torch.int32)
        largest = largest.masked_fill(bad, 0)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if largest.is_floating_point():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            largest = largest.masked_fill(flags > 0, float("nan"))
        return largest.to(tensor.device)

    def broadcast(self, value: _Value) -> _Value:
        """Return rank 0's value."""
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0, device=self._mesh.device)
        first: _Value = held[0]
        return first

    def names_of_all(self, names: Sequence[str]) -> list[str]:
        """Return the names that any stage of the pipeline has."""
        gathered: list[Any] = [None] * self._mesh.plan.pipeline
        dist.all_gather_object(gathered, list(names), group=self._mesh.pipeline.get_group())
        return list(dict.fromkeys(name for each in gathered for name in each))

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        dist.barrier()

    def own_tokens(self, length: int) -> slice:
        """Return consecutive tokens of each sequence.

        Raises:
            SpecError: the length does not divide among the context axis.
        """
        processes = self._mesh.plan.context
        if length % processes:
            problem = f"{length} tokens do not divide among {processes} processes (parallel.context)"
            raise SpecError("sequence_length", problem, f"choose a multiple of {processes}")
        each = length // processes
        return slice(self.context_rank * each, (self.context_rank + 1) * each)

    def attention_cache(self, model: Decoder, layers: int) -> ContextCache | None:
        """Return what gathers the keys and values of a sequence's tokens; None where each process has whole ones."""
        return ContextCache(self._mesh.context, layers, model.window) if self._mesh.plan.context > 1 else None

    def whole_sequences(self, routing: Sequence[Routing]) -> Sequence[Routing]:
        """Return the routing of whole sequences."""
        if self._mesh.plan.context == 1:
            return routing
        return [gather_routing(routed, self._mesh.context.get_group()) for routed in routing]

    def shared_loss(self, loss: Tensor) -> Tensor:
        """Return a loss that the context axis computes alike as this process's part of it."""
        return part_of_value(loss, self._mesh.plan.context)

    def begin_micro_batch(self, model: nn.Module, *, last: bool) -> None:
        """Prepare a micro-batch."""
        begin_micro_batch(model, self._mesh, last=last)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum those that FSDP's backward pass has not: of whole parameters, and of those at both ends of a pipeline."""
        for parameter in parameters:
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                dist.all_reduce(parameter.grad, group=self._processes)
        pipeline, group = self.pipeline, self._mesh.pipeline.get_group()
        for parameter in pipeline.shared_parameters() if pipeline is not None else []:
            assert pipeline is not None
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            own = local(parameter.grad)
            other, (first, last) = torch.empty_like(own), pipeline.ends
            peer = last if self._mesh.pipeline.get_local_rank() == first else first
            kinds = ((dist.isend, own), (dist.irecv, other))
            for work in dist.batch_isend_irecv([dist.P2POp(k, t, group=group, group_peer=peer) for k, t in kinds]):
                work.wait()
            own += other

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the 2-norm of all gradients of the model, of which each process holds parts."""
        squares: dict[tuple[Any, tuple[int, ...]], list[Tensor]] = {}
        twice = self._counted_elsewhere()
        for parameter in parameters:
            grad = parameter.grad
            if grad is None or id(parameter) in twice:
                continue
            axes: tuple[int, ...] = ()
            if isinstance(grad, DTensor):
                axes = tuple(i for i, placement in enumerate(grad.placements) if not placement.is_replicate())
            mesh = grad.device_mesh if isinstance(grad, DTensor) else None
            squares.setdefault((mesh, axes), []).append(local(grad))
        total = torch.zeros((), dtype=torch.float64 if self._mesh.device.type == "cpu" else torch.float32)
        total = total.to(self._mesh.device)
        for (mesh, axes), grads in squares.items():
            norms = torch.stack(torch._foreach_norm(grads))
            square = norms.to(total.dtype).square().sum()
            for axis in axes:
                dist.all_reduce(square, group=mesh.get_group(axis))
            total += square
        if self._mesh.plan.pipeline > 1:
            dist.all_reduce(total, group=self._mesh.pipeline.get_group())
        return total.sqrt().float()

    def _counted_elsewhere(self) -> set[int]:
        """The parameters that the first stage of a pipeline counts."""
        if self.pipeline is None or self._mesh.pipeline.get_local_rank() == self.pipeline.ends[0]:
            return set()
        return {id(parameter) for parameter in self.pipeline.shared_parameters()}
