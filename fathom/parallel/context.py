"""Context parallelism: the tokens of each sequence over processes, which all read each other's latents.

Keys and values (of latent attention the latent and the rotary key: C + R numbers a token and layer) are gathered where
a cache would hold them; queries stay. Each process has consecutive tokens, so that its queries are the last of the keys
they see. X anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from fathom.model.cache import AttentionGroup, AttentionMetadata
from fathom.model.cache.attention_metadata import attention_mask
from fathom.model.moe import Routing

_Record = TypeVar("_Record")


class _Gather(torch.autograd.Function):
    """The tokens of all processes; the gradients that all give to a process's own are summed, or are the same."""

    @staticmethod
    def forward(ctx: Any, x_BTX: Tensor, group: dist.ProcessGroup, summed: bool) -> Tensor:
        ctx.group, ctx.summed = group, summed
        parts = [torch.empty_like(x_BTX, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, x_BTX.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSX: Tensor) -> tuple[Tensor, None, None]:
        processes = ctx.group.size()
        if not ctx.summed:
            return grad_BSX.chunk(processes, dim=1)[ctx.group.rank()], None, None
        parts = torch.cat(grad_BSX.chunk(processes, dim=1))
        own = torch.empty_like(parts[: grad_BSX.shape[0]])
        dist.reduce_scatter_tensor(own, parts, group=ctx.group)
        return own, None, None


def gather_tokens(x_BTX: Tensor, group: dist.ProcessGroup, *, summed: bool = True) -> Tensor:
    """Return the tokens of all processes, (B, S, ...).

    The gradients of what processes then compute are ``summed``, unless they all compute the same.
    """
    result: Tensor = _Gather.apply(x_BTX, group, summed)  # type: ignore[no-untyped-call]
    return result


class ContextLayer:
    """One layer's keys and values: this process's new ones, then those of all processes up to its own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def append(
        self, metadata: AttentionMetadata, *new_BTGW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Gather, and yield the one group there is with its keys and values, (B, G, S, W)."""
        (seen,) = metadata.groups
        gathered = (gather_tokens(new, self._group)[:, : seen.end] for new in new_BTGW)
        yield seen, tuple(x_BSGW.transpose(1, 2) for x_BSGW in gathered)


class ContextCache:
    """What stands in the place of a KV cache in training: the keys and values of all processes, kept nowhere."""

    def __init__(self, mesh: DeviceMesh, layers: int, window: int | None) -> None:
        self._mesh, self._window = mesh, window
        self.layers = [ContextLayer(mesh.get_group())] * layers

    def max_length_after(self, tokens: int) -> int:
        """Return the length of the whole sequences, of which each process has ``tokens``."""
        return tokens * self._mesh.size()

    def advance(self, tokens: int) -> AttentionMetadata:
        """Return positions and keys of this process's tokens."""
        device = torch.device(self._mesh.device_type)
        start = self._mesh.get_local_rank() * tokens
        end = start + tokens
        positions_1T = torch.arange(start, end, device=device)[None]
        mask_BTS = None
        if self._window is not None and self._window < end:
            mask_BTS = attention_mask(positions_1T, torch.arange(end, device=device)[None], self._window)
        causal = mask_BTS is None and end > 1
        return AttentionMetadata(positions_1T, (AttentionGroup(tokens, end, mask_BTS, causal),))


def gather_routing(routing: Routing, group: dist.ProcessGroup) -> Routing:
    """Return the routing of whole sequences, from which all processes compute the same losses."""

    def gathered(record: _Record) -> _Record:
        found = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        return replace(  # type: ignore[type-var]
            record, **{name: gather_tokens(value, group, summed=False) for name, value in tensors.items()}
        )

    whole = gathered(routing)
    return whole if whole.noise is None else replace(whole, noise=gathered(whole.noise))
