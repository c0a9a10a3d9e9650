"""Training through the expanded form of latent attention: what the backward pass can rebuild is not kept.

X = P + U columns of each head: its key without the rotary part, then its value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.native import library, training_attention
from fathom.kernels.native.matrix import shared_pool
from fathom.kernels.tensors import needs_grad

_DTYPES = (torch.float32, torch.bfloat16)


def trains_latent_attention(q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor) -> bool:
    """Whether ``latent_attention`` computes this: on a CPU, in one of its dtypes, where a gradient is needed."""
    if q_BTHW.device.type != "cpu" or torch.compiler.is_compiling() or q_BTHW.dtype not in _DTYPES:
        return False
    value_width = kv_BTHX.shape[-1] + rope_key_BTR.shape[-1] - q_BTHW.shape[-1]
    same = q_BTHW.dtype == kv_BTHX.dtype == rope_key_BTR.dtype
    return same and value_width <= q_BTHW.shape[-1] and needs_grad(q_BTHW, kv_BTHX, rope_key_BTR)


def latent_attention(q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor, scale: float) -> Tensor:
    """Causal self-attention of every head, whose rotary key is that of all heads; returns (B, T, H, U).

    A head's key is the first P columns of ``kv`` and then ``rope_key``; W = P + R. Saved are the inputs and the output
    as the output projection saves it. float32 is computed by the native library where it is there; PyTorch's kernel
    takes copies of keys and values, padded to one width.
    """
    plain = all(type(x) is Tensor for x in (q_BTHW, kv_BTHX, rope_key_BTR))  # not a subclass without an address
    native = plain and q_BTHW.dtype == torch.float32 and library.available()
    function = _NativeLatentAttention if native else _LatentAttention
    out_BTHU: Tensor = function.apply(q_BTHW, kv_BTHX, rope_key_BTR, scale)  # type: ignore[no-untyped-call]
    return out_BTHU


class _NativeLatentAttention(torch.autograd.Function):
    """Saves queries, latents' projections, output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor, scale: float) -> Tensor:
        q_BTHW, kv_BTHX, rope_key_BTR = (x.contiguous() for x in (q_BTHW, kv_BTHX, rope_key_BTR))
        out_BTHU, lse_BHT = training_attention.attend(_pool(), q_BTHW, kv_BTHX, rope_key_BTR, scale)
        ctx.save_for_backward(q_BTHW, kv_BTHX, rope_key_BTR, out_BTHU, lse_BHT)
        ctx.scale = scale
        return out_BTHU

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHU: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BTHW, kv_BTHX, rope_key_BTR, out_BTHU, lse_BHT = ctx.saved_tensors
        grads = training_attention.attend_backward(
            _pool(), grad_BTHU.contiguous(), q_BTHW, kv_BTHX, rope_key_BTR, out_BTHU, lse_BHT, ctx.scale
        )
        return *grads, None


def _pool() -> library.ThreadPool:
    return shared_pool(torch.get_num_threads())


class _LatentAttention(torch.autograd.Function):
    """Saves queries, latents' projections, output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor, scale: float) -> Tensor:
        k_BHTW, v_BHTW = _keys_values(kv_BTHX, rope_key_BTR, q_BTHW.shape[-1])
        out_BHTW, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BTHW.transpose(1, 2), k_BHTW, v_BHTW, 0.0, True, scale=scale
        )
        width = kv_BTHX.shape[-1] + rope_key_BTR.shape[-1] - q_BTHW.shape[-1]
        out_BTHU: Tensor = out_BHTW.transpose(1, 2)[..., :width].contiguous()
        ctx.save_for_backward(q_BTHW, kv_BTHX, rope_key_BTR.contiguous(), out_BTHU, lse)
        ctx.scale = scale
        return out_BTHU

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHU: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BTHW, kv_BTHX, rope_key_BTR, out_BTHU, lse = ctx.saved_tensors
        width, rope = out_BTHU.shape[-1], rope_key_BTR.shape[-1]
        missing = q_BTHW.shape[-1] - width
        k_BHTW, v_BHTW = _keys_values(kv_BTHX, rope_key_BTR, q_BTHW.shape[-1])
        grad_BHTW, out_BHTW = (F.pad(x, (0, missing)).transpose(1, 2) for x in (grad_BTHU, out_BTHU))
        slopes = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_BHTW, q_BTHW.transpose(1, 2), k_BHTW, v_BHTW, out_BHTW, lse, 0.0, True, scale=ctx.scale
        )
        del grad_BHTW, out_BHTW, k_BHTW, v_BHTW
        grad_q_BTHW, grad_k_BTHW, grad_v_BTHW = (slope.transpose(1, 2) for slope in slopes)
        grad_kv_BTHX = torch.cat((grad_k_BTHW[..., :-rope], grad_v_BTHW[..., :width]), -1)
        return grad_q_BTHW, grad_kv_BTHX, grad_k_BTHW[..., -rope:].sum(2), None


def _keys_values(kv_BTHX: Tensor, rope_key_BTR: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Keys, and values padded to their width, both (B, H, T, W)."""
    nope = width - rope_key_BTR.shape[-1]
    rope_key_BTHR = rope_key_BTR[:, :, None].expand(-1, -1, kv_BTHX.shape[2], -1)
    k_BTHW = torch.cat((kv_BTHX[..., :nope], rope_key_BTHR), -1)
    v_BTHW = F.pad(kv_BTHX[..., nope:], (0, width - kv_BTHX.shape[-1] + nope))
    return k_BTHW.transpose(1, 2), v_BTHW.transpose(1, 2)
