"""Softmax attention of sequences with a shared prefix, whose keys and values exist once for all of them.

X tokens of the prefix, Y = B T.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.attention import attention, merge_attention


def shared_prefix_attention(
    q_BHTW: Tensor,
    k_BGTW: Tensor,
    v_BGTU: Tensor,
    prefix_k_1GXW: Tensor,
    prefix_v_1GXU: Tensor,
    *,
    mask_1TS: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(scale q k^T) v over the shared keys and those of each sequence itself; returns (B, H, T, U).

    Query t of every sequence sees the X shared keys and keys 0 to t of its own sequence, or what ``mask_1TS`` allows of
    these S = P + T keys. Without a mask, a CPU computes the prefix part once with the queries of all sequences and
    merges both parts by their log-sum-exp (cascade attention): nothing is copied per sequence, forward or backward.
    Otherwise the prefix's keys are copied.
    """
    if mask_1TS is None and q_BHTW.device.type == "cpu":
        return _cascade_attention(q_BHTW, k_BGTW, v_BGTU, prefix_k_1GXW, prefix_v_1GXU, scale)
    return _concat_attention(q_BHTW, k_BGTW, v_BGTU, prefix_k_1GXW, prefix_v_1GXU, mask_1TS, scale)


def _concat_attention(
    q_BHTW: Tensor,
    k_BGTW: Tensor,
    v_BGTU: Tensor,
    prefix_k_1GXW: Tensor,
    prefix_v_1GXU: Tensor,
    mask_1TS: Tensor | None,
    scale: float,
) -> Tensor:
    """Concatenate the prefix's keys and values to those of every sequence, with a causal mask over both."""
    batch, first = q_BHTW.shape[0], prefix_k_1GXW.shape[2]
    k_BGSW = torch.cat((prefix_k_1GXW.expand(batch, -1, -1, -1), k_BGTW), dim=2)
    v_BGSU = torch.cat((prefix_v_1GXU.expand(batch, -1, -1, -1), v_BGTU), dim=2)
    if mask_1TS is None:
        tokens = q_BHTW.shape[2]
        mask_1TS = torch.ones(1, tokens, first + tokens, dtype=torch.bool, device=q_BHTW.device).tril(first)
    return attention(q_BHTW, k_BGSW, v_BGSU, mask_B1TS=mask_1TS[:, None], causal=False, scale=scale)


def _cascade_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, scale: float) -> Tensor:
    """Bring inputs into the shapes of the fused kernel: one key per query head, values as wide as keys."""
    group, width, missing = q.shape[1] // k.shape[1], v.shape[-1], k.shape[-1] - v.shape[-1]
    if missing > 0:
        v, prefix_v = F.pad(v, (0, missing)), F.pad(prefix_v, (0, missing))
    if group > 1:
        k, v, prefix_k, prefix_v = (x.repeat_interleave(group, dim=1) for x in (k, v, prefix_k, prefix_v))
    out: Tensor = _CascadeAttention.apply(q, k, v, prefix_k, prefix_v, scale)  # type: ignore[no-untyped-call]
    return out[..., :width]


def _as_one(x_BHTW: Tensor) -> Tensor:
    """Pack the sequences of (B, H, T, W) into one: (1, H, Y, W)."""
    return x_BHTW.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def _as_each(x_1HYW: Tensor, batch: int) -> Tensor:
    """Undo ``_as_one``: (B, H, T, W)."""
    _, heads, rows, width = x_1HYW.shape
    return x_1HYW[0].transpose(0, 1).reshape(batch, rows // batch, heads, width).transpose(1, 2)


class _CascadeAttention(torch.autograd.Function):
    """Saves the inputs, the output and each query's log-sum-exp over all its keys.

    The kernel's backward pass depends on the other set of keys only through the output and the log-sum-exp, so it runs
    over each set alone.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, scale: float) -> Tensor:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        own, own_lse = fused(q, k, v, 0.0, True, scale=scale)
        first, prefix_lse = fused(_as_one(q), prefix_k, prefix_v, 0.0, False, scale=scale)
        first, prefix_lse = _as_each(first, len(q)), _as_each(prefix_lse[..., None], len(q))[..., 0]
        merged, lse = merge_attention(own, own_lse, first, prefix_lse)
        out = merged.to(q.dtype)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, grad_k, grad_v = fused(grad, q, k, v, out, lse, 0.0, True, scale=ctx.scale)
        all_q, all_out, all_lse = _as_one(q), _as_one(out), _as_one(lse[..., None])[..., 0]
        further_q, grad_prefix_k, grad_prefix_v = fused(
            _as_one(grad), all_q, prefix_k, prefix_v, all_out, all_lse, 0.0, False, scale=ctx.scale
        )
        return grad_q + _as_each(further_q, len(q)), grad_k, grad_v, grad_prefix_k, grad_prefix_v, None
