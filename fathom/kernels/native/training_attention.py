"""Causal self-attention of latent attention in training by the native library: its struct, filled from tensors.

X = P + U columns of each head: its key without the rotary part, then its value.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_void_p
from typing import Any

import torch
from torch import Tensor

from fathom.kernels.native import library
from fathom.kernels.native.memory import aligned_bytes


class TrainAttention(Structure):
    """``fathom_train_attention``: sizes, and where the tensors are."""

    _fields_ = (
        *((name, c_int32) for name in ("batch", "tokens", "heads", "nope", "rope", "value")),
        ("scale", c_float),
        *((name, c_void_p) for name in ("q", "kv", "rope_key", "out", "lse")),
        *((name, c_void_p) for name in ("grad", "grad_q", "grad_kv", "grad_rope_key")),
    )


def attend(
    pool: library.ThreadPool, q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output (B, T, H, U) and each query's log-sum-exp (B, H, T), for float32 tensors without gaps."""
    batch, tokens, heads, width = q_BTHW.shape
    value_width = kv_BTHX.shape[-1] - width + rope_key_BTR.shape[-1]
    out_BTHU, lse_BHT = q_BTHW.new_empty(batch, tokens, heads, value_width), q_BTHW.new_empty(batch, heads, tokens)
    _run(pool, scale, q=q_BTHW, kv=kv_BTHX, rope_key=rope_key_BTR, out=out_BTHU, lse=lse_BHT)
    return out_BTHU, lse_BHT


def attend_backward(
    pool: library.ThreadPool,
    grad_BTHU: Tensor,
    q_BTHW: Tensor,
    kv_BTHX: Tensor,
    rope_key_BTR: Tensor,
    out_BTHU: Tensor,
    lse_BHT: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the queries, of keys and values and of the rotary key."""
    inputs = {"q": q_BTHW, "kv": kv_BTHX, "rope_key": rope_key_BTR}
    grads = {f"grad_{name}": torch.empty_like(x) for name, x in inputs.items()}
    _run(pool, scale, **inputs, out=out_BTHU, lse=lse_BHT, grad=grad_BTHU, **grads)
    return grads["grad_q"], grads["grad_kv"], grads["grad_rope_key"]


def _run(pool: library.ThreadPool, scale: float, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        assert x.dtype == torch.float32, name
        assert x.is_contiguous(), name
    batch, tokens, heads, width = tensors["q"].shape
    rope, value_width = tensors["rope_key"].shape[-1], tensors["out"].shape[-1]
    addresses: dict[str, Any] = {name: x.data_ptr() for name, x in tensors.items()}
    work = TrainAttention(batch, tokens, heads, width - rope, rope, value_width, scale, **addresses)
    backward = "grad" in tensors
    functions = library.library()
    size = functions.fathom_train_attention_bytes(ctypes.addressof(work), pool.threads, int(backward))
    workspace = aligned_bytes(size)
    run = functions.fathom_train_attention_backward if backward else functions.fathom_train_attention_forward
    library.check(run(pool.pointer, ctypes.addressof(work), workspace.data_ptr()))
