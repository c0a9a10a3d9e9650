"""Cut a layer's attention heads out of its weights, and run one attention layer with and without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.cache import StaticCache
from fathom.model.cache.attention_metadata import causal_metadata
from fathom.model.rope import Rope
from fathom.spec import ModelSpec


def keep_heads(linear: nn.Linear, dim: int, heads: Sequence[int], width: int) -> None:
    """Keep of a projection the rows (dim 0) or columns (dim 1) of some heads, ``width`` each."""
    index = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
    linear.weight = nn.Parameter(linear.weight.index_select(dim, index))
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.index_select(0, index))


def run_uncached(layer: nn.Module, x_BTD: Tensor, spec: ModelSpec, window: int | None = None) -> Tensor:
    """Run an attention layer on whole sequences; returns (B, T, D)."""
    span = causal_metadata(x_BTD.shape[1], window, x_BTD.device)
    table = Rope(spec.rope, spec.attention.rope_dim).table(span.positions_BT)
    out_BTD: Tensor = layer(x_BTD, AttentionContext(span, table, spec.rope.layout), None)
    return out_BTD


def run_cached(
    layer: nn.Module, x_BTD: Tensor, spec: ModelSpec, cache: StaticCache, form: LatentForm = "auto"
) -> Tensor:
    """Run an attention layer on sequences in chunks of 4 tokens; returns (B, T, D)."""
    rope, outputs = Rope(spec.rope, spec.attention.rope_dim), []
    for chunk_BTD in x_BTD.split(4, dim=1):
        span = cache.advance(chunk_BTD.shape[1])
        context = AttentionContext(span, rope.table(span.positions_BT), spec.rope.layout, form)
        outputs.append(layer(chunk_BTD, context, cache.layers[0]))
    return torch.cat(outputs, 1)
