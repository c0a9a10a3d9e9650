"""T5's attention: unscaled scores plus a learned bias for the distance between query and key.

B batch, T queries, S keys, D d_model, H heads, K head width, X = H x K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fathom.study.switch_t5.spec import EncoderDecoderSpec


class KVCache:
    """Keys and values (B, H, S, K) of one attention layer; new ones are appended."""

    def __init__(self) -> None:
        self.keys_BHSK: Tensor | None = None
        self.values_BHSK: Tensor | None = None

    def append(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values, and return all."""
        if self.keys_BHSK is not None and self.values_BHSK is not None:
            k_BHTK, v_BHTK = torch.cat((self.keys_BHSK, k_BHTK), 2), torch.cat((self.values_BHSK, v_BHTK), 2)
        self.keys_BHSK, self.values_BHSK = k_BHTK, v_BHTK
        return k_BHTK, v_BHTK


class Attention(nn.Module):
    """softmax(q k^T + bias) v, without the usual 1 / sqrt(K): T5 keeps the scale in its initial weights."""

    def __init__(self, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        inner = spec.num_heads * spec.d_kv
        self.q, self.k, self.v = (nn.Linear(spec.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, spec.d_model, bias=False)

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to: keys and values (B, H, S, K)."""
        return self._split(self.k(x_BSD)), self._split(self.v(x_BSD))

    def forward(self, x_BTD: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None) -> Tensor:
        """Attend; ``bias`` (B or 1, H or 1, T or 1, S) holds position bias and mask together."""
        scores_BHTS = self._split(self.q(x_BTD)) @ k_BHSK.transpose(-1, -2)
        if bias is not None:
            scores_BHTS = scores_BHTS + bias.to(scores_BHTS.dtype)
        weights_BHTS = scores_BHTS.float().softmax(-1).to(v_BHSK.dtype)
        out_BTX = (weights_BHTS @ v_BHSK).transpose(1, 2).flatten(2)
        return self.o(out_BTX)  # type: ignore[no-any-return]

    def _split(self, x_BSX: Tensor) -> Tensor:
        batch, tokens, _ = x_BSX.shape
        return x_BSX.view(batch, tokens, self.heads, -1).transpose(1, 2)


class RelativeBias(nn.Module):
    """One learned number per head and bucket of distances (T5 §2.1); all layers of a stack share it."""

    def __init__(self, spec: EncoderDecoderSpec, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.relative_attention_num_buckets, spec.num_heads))
        self.max_distance = spec.relative_attention_max_distance
        self.causal = causal

    def forward(self, queries: int, keys: int) -> Tensor:
        """The bias (1, H, T, S) of the last ``queries`` of ``keys`` positions; later keys are masked if causal."""
        device = self.weight.device
        key_S = torch.arange(keys, device=device)
        query_T = torch.arange(keys - queries, keys, device=device)
        ahead_TS = key_S[None, :] - query_T[:, None]
        bucket_TS = bucket(ahead_TS, self.weight.shape[0], self.max_distance, both_ways=not self.causal)
        bias_HTS = self.weight[bucket_TS].permute(2, 0, 1)
        if self.causal:
            bias_HTS = bias_HTS.masked_fill(ahead_TS > 0, lowest(bias_HTS.dtype))
        return bias_HTS[None]


def bucket(ahead: Tensor, buckets: int, max_distance: int, *, both_ways: bool) -> Tensor:
    """The bucket of each distance, key position minus query position.

    Looking both ways, keys ahead use the upper half of the buckets; looking back only, distances ahead count as 0.
    Within a direction the first half of the buckets are one distance each; the others grow by a common ratio up to
    ``max_distance``, and the last takes all beyond.
    """
    first = torch.zeros_like(ahead)
    if both_ways:
        buckets //= 2
        first = (ahead > 0).long() * buckets
    distance = ahead.abs() if both_ways else (-ahead).clamp(min=0)
    exact = buckets // 2
    # In float32, as published: at a bucket's edge another precision would choose the neighbour.
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    coarse = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < exact, distance, coarse)


def padding_bias(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is true and the lowest number elsewhere: (B, 1, 1, S)."""
    hidden = torch.zeros(mask_BS.shape, dtype=dtype, device=mask_BS.device)
    return hidden.masked_fill(~mask_BS.bool(), lowest(dtype))[:, None, None]


def lowest(dtype: torch.dtype) -> float:
    """Half the lowest finite number: two of them still add up to a finite one."""
    return torch.finfo(dtype).min / 2
