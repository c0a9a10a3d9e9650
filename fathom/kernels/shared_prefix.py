"""Softmax attention of sequences that share their beginning, whose keys and values exist once for all of them.

Dimensions: B sequences, P tokens of the beginning, T tokens behind it, H heads, G key-value heads, K query and key
width, V value width, Y = B * T.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.attention import attention, merge_attention


def shared_prefix_attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    prefix_k_1GPK: Tensor,
    prefix_v_1GPV: Tensor,
    *,
    mask_1TS: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(scale q k^T) v over the shared keys and those of each sequence itself; returns (B, H, T, V).

    Query t of every sequence sees the P shared keys and its own sequence's 0 to t, or what ``mask_1TS`` says of these
    S = P + T keys. Without a mask, a CPU attends to the beginning once, all sequences being one, and joins the two
    halves by their log-sum-exp: nothing is copied for each sequence, forward or backward. Otherwise the keys are.
    """
    if mask_1TS is None and q_BHTK.device.type == "cpu":
        return _joined(q_BHTK, k_BGTK, v_BGTV, prefix_k_1GPK, prefix_v_1GPV, scale)
    return _copied(q_BHTK, k_BGTK, v_BGTV, prefix_k_1GPK, prefix_v_1GPV, mask_1TS, scale)


def _copied(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    prefix_k_1GPK: Tensor,
    prefix_v_1GPV: Tensor,
    mask_1TS: Tensor | None,
    scale: float,
) -> Tensor:
    """Give every sequence the beginning's keys and values, and a mask that says what stands behind what."""
    batch, first = q_BHTK.shape[0], prefix_k_1GPK.shape[2]
    k_BGSK = torch.cat((prefix_k_1GPK.expand(batch, -1, -1, -1), k_BGTK), dim=2)
    v_BGSV = torch.cat((prefix_v_1GPV.expand(batch, -1, -1, -1), v_BGTV), dim=2)
    if mask_1TS is None:
        tokens = q_BHTK.shape[2]
        mask_1TS = torch.ones(1, tokens, first + tokens, dtype=torch.bool, device=q_BHTK.device).tril(first)
    return attention(q_BHTK, k_BGSK, v_BGSV, mask_B1TS=mask_1TS[:, None], causal=False, scale=scale)


def _joined(q: Tensor, k: Tensor, v: Tensor, first_k: Tensor, first_v: Tensor, scale: float) -> Tensor:
    """Give the fused kernel what it wants: a key for every head, and values as wide as keys."""
    group, width, missing = q.shape[1] // k.shape[1], v.shape[-1], k.shape[-1] - v.shape[-1]
    if missing > 0:
        v, first_v = F.pad(v, (0, missing)), F.pad(first_v, (0, missing))
    if group > 1:
        k, v, first_k, first_v = (x.repeat_interleave(group, dim=1) for x in (k, v, first_k, first_v))
    out: Tensor = _CascadeAttention.apply(q, k, v, first_k, first_v, scale)  # type: ignore[no-untyped-call]
    return out[..., :width]


def _as_one(x_BHTK: Tensor) -> Tensor:
    """Lay the sequences of (B, H, T, K) behind each other: (1, H, Y, K)."""
    return x_BHTK.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def _as_each(x_1HYK: Tensor, batch: int) -> Tensor:
    """Part them again: (B, H, T, K)."""
    _, heads, rows, width = x_1HYK.shape
    return x_1HYK[0].transpose(0, 1).reshape(batch, rows // batch, heads, width).transpose(1, 2)


class _CascadeAttention(torch.autograd.Function):
    """Keeps the inputs, the output and each query's log-sum-exp over all its keys.

    The kernel's backward pass needs of the other keys no more than what they add to output and
    log-sum-exp, so it runs over each set alone.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, first_k: Tensor, first_v: Tensor, scale: float) -> Tensor:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        own, own_lse = fused(q, k, v, 0.0, True, scale=scale)
        first, first_lse = fused(_as_one(q), first_k, first_v, 0.0, False, scale=scale)
        first, first_lse = _as_each(first, len(q)), _as_each(first_lse[..., None], len(q))[..., 0]
        merged, lse = merge_attention(own, own_lse, first, first_lse)
        out = merged.to(q.dtype)
        ctx.save_for_backward(q, k, v, first_k, first_v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, first_k, first_v, out, lse = ctx.saved_tensors
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, grad_k, grad_v = fused(grad, q, k, v, out, lse, 0.0, True, scale=ctx.scale)
        all_q, all_out, all_lse = _as_one(q), _as_one(out), _as_one(lse[..., None])[..., 0]
        further_q, grad_first_k, grad_first_v = fused(
            _as_one(grad), all_q, first_k, first_v, all_out, all_lse, 0.0, False, scale=ctx.scale
        )
        return grad_q + _as_each(further_q, len(q)), grad_k, grad_v, grad_first_k, grad_first_v, None
