"""Collectives with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Processes = dist.ProcessGroup


class _SumGradients(torch.autograd.Function):
    """Megatron's f: the identity, whose gradient is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Processes) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    """Megatron's g: the sum over the processes, whose gradient each of them has already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Processes) -> Tensor:
        summed = x.contiguous().clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Exchange(torch.autograd.Function):
    """All-to-all of rows; the gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: Processes) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return exchange(x, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(grad.contiguous(), ctx.received, ctx.sent, ctx.group), None, None, None


def sum_gradients(x: Tensor, group: Processes) -> Tensor:
    """Return ``x``, of which the processes compute parts of the gradient: these are summed."""
    result: Tensor = _SumGradients.apply(x, group)  # type: ignore[no-untyped-call]
    return result


def part_of_value(x: Tensor, processes: int) -> Tensor:
    """Return ``x`` over the number of processes that each add it to a sum; its gradient on each is that of the sum."""
    return x - x.detach() * ((processes - 1) / processes)


def all_sum(x: Tensor, group: Processes) -> Tensor:
    """Return the sum over processes that then all compute the same."""
    result: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return result


def exchange(x: Tensor, sent: list[int], received: list[int], group: Processes) -> Tensor:
    """Send the first ``sent[0]`` rows to process 0 and so on; return the rows received, in the order of processes."""
    found = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(found, x.contiguous(), received, sent, group=group)
    return found


def exchange_with_gradient(x: Tensor, sent: list[int], received: list[int], group: Processes) -> Tensor:
    """``exchange``, whose gradient goes back the same way."""
    result: Tensor = _Exchange.apply(x, sent, received, group)  # type: ignore[no-untyped-call]
    return result
