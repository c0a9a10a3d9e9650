"""Grouped-query attention: MHA, GQA and MQA, with optional biases and window.

X = H U.
"""

from __future__ import annotations

from torch import Tensor, nn

from fathom import kernels
from fathom.model.attention.context import AttentionContext
from fathom.model.cache import AttentionGroup, LayerCache
from fathom.model.linear import Linear
from fathom.spec import GroupedQueryAttention, ModelSpec


class GQA(nn.Module):
    """Softmax attention in which H / G query heads share each key-value head.

    Head counts come from the shapes of the weights: a module whose projections hold some of the key-value heads and
    their query heads only (rows of ``q_proj``, ``k_proj`` and ``v_proj``, columns of ``o_proj``) computes their share
    of the output.
    """

    def __init__(self, spec: ModelSpec, attention: GroupedQueryAttention) -> None:
        super().__init__()
        self.width = attention.head_dim
        self.scale = self.width**-0.5
        hidden, bias = spec.hidden_size, attention.qkv_bias
        heads_width, kv_heads_width = attention.num_heads * self.width, attention.num_kv_heads * self.width
        self.q_proj = Linear(hidden, heads_width, bias=bias)
        self.k_proj = Linear(hidden, kv_heads_width, bias=bias)
        self.v_proj = Linear(hidden, kv_heads_width, bias=bias)
        self.o_proj = Linear(heads_width, hidden, bias=attention.out_bias)

    def forward(self, x_BTD: Tensor, context: AttentionContext, layer_cache: LayerCache | None) -> Tensor:
        """Attend from the new tokens to themselves and to the cache; returns (B, T, D)."""
        batch, tokens, _ = x_BTD.shape
        cos, sin = context.rope
        q_BTHW = self.q_proj(x_BTD).view(batch, tokens, -1, self.width)
        k_BTGW = self.k_proj(x_BTD).view(batch, tokens, -1, self.width)
        v_BTGU = self.v_proj(x_BTD).view(batch, tokens, -1, self.width)
        q_BTHW = kernels.rotate(q_BTHW, cos, sin, context.layout)
        k_BTGW = kernels.rotate(k_BTGW, cos, sin, context.layout)
        if layer_cache is None:
            out_BTX = context.attend(q_BTHW, k_BTGW, v_BTGU, self.scale)
        else:
            out_BTX = context.concatenate(
                [
                    self._attend(group, group.select(q_BTHW).transpose(1, 2), *seen)
                    for group, seen in layer_cache.append(context.metadata, k_BTGW, v_BTGU)
                ]
            )
        return self.o_proj(out_BTX)  # type: ignore[no-any-return]

    def _attend(self, group: AttentionGroup, q_BHTW: Tensor, k_BGSW: Tensor, v_BGSU: Tensor) -> Tensor:
        out_BHTU = kernels.attention(
            q_BHTW, k_BGSW, v_BGSU, mask_B1TS=group.mask_B1TS, causal=group.causal, scale=self.scale
        )
        return out_BHTU.transpose(1, 2).flatten(2)
