"""Softmax attention on a GPU, in the shapes that PyTorch's fused kernels for CUDA take.

What they ask for, by PyTorch's own checks (``can_use_flash_attention`` and its like): FlashAttention half precision, no
mask, and keys and values of one width of at most 256; the memory-efficient kernel any of these, but as many key-value
heads as query heads. What neither takes is computed with all scores in memory.

J = H / G, X tokens of all packed sequences, Y sequences and one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_HALVES = (torch.bfloat16, torch.float16)
_WIDEST = 256
_FLASH_CAPABILITY = (8, 0)


def device_attention(
    q_BHTW: Tensor, k_BGSW: Tensor, v_BGSU: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """``kernels.attention`` on a GPU; ``causal`` is for as many keys as queries.

    Narrower values are padded to the keys' width where FlashAttention then computes it (V2's 128 beside 192).
    Where it does not, the keys of a group are copied for every head.
    """
    heads, kv_heads, tokens, width = q_BHTW.shape[1], k_BGSW.shape[1], q_BHTW.shape[2], v_BGSU.shape[-1]
    flash = mask_B1TS is None and _takes_flash(q_BHTW)
    if flash:
        v_BGSU = _padded(v_BGSU, k_BGSW.shape[-1])
    if tokens == 1 and heads != kv_heads:
        q_BGJW = q_BHTW.reshape(q_BHTW.shape[0], kv_heads, heads // kv_heads, -1)
        out_BGJU = F.scaled_dot_product_attention(q_BGJW, k_BGSW, v_BGSU, attn_mask=mask_B1TS, scale=scale)
        return out_BGJU.reshape(q_BHTW.shape[0], heads, 1, -1)[..., :width]
    grouped = kv_heads not in (1, heads)
    if kv_heads == 1:
        k_BGSW, v_BGSU = (x.expand(-1, heads, -1, -1) for x in (k_BGSW, v_BGSU))
    elif grouped and not flash:
        k_BGSW, v_BGSU = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BGSW, v_BGSU))
    out_BHTU = F.scaled_dot_product_attention(
        q_BHTW, k_BGSW, v_BGSU, attn_mask=mask_B1TS, is_causal=causal, scale=scale, enable_gqa=grouped and flash
    )
    return out_BHTU[..., :width]


def takes_packed_attention(q_XHW: Tensor) -> bool:
    """Whether ``packed_attention`` computes these queries: FlashAttention's variable-length form is there for them."""
    if q_XHW.device.type not in ("cuda", "meta") or q_XHW.shape[-1] % 8:
        return False
    return _takes_flash(q_XHW) and _takes_groups()


def packed_attention(
    q_XHW: Tensor,
    k_XGW: Tensor,
    v_XGU: Tensor,
    *,
    ends_Y: Tensor,
    longest: int,
    window: int | None,
    scale: float,
) -> Tensor:
    """Causal attention of packed sequences, each to itself and within the sliding window: one call; (X, H, U).

    Sequence n has the tokens from ``ends_Y[n]`` (int32, the first is 0) up to ``ends_Y[n + 1]``; ``longest`` is the
    longest of them.
    """
    out_XHU = _variable_length()(
        q_XHW,
        k_XGW,
        _padded(v_XGU, k_XGW.shape[-1]),
        ends_Y,
        ends_Y,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q_XHW.shape[1] != k_XGW.shape[1],
    )
    return out_XHU[..., : v_XGU.shape[-1]]


def _takes_flash(q: Tensor) -> bool:
    """Whether FlashAttention computes queries of this dtype and width on their device."""
    if q.dtype not in _HALVES or q.shape[-1] > _WIDEST:
        return False
    return q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) >= _FLASH_CAPABILITY


def _variable_length() -> Callable[..., Tensor]:
    """Return PyTorch's variable-length attention; importing it takes seconds."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn  # type: ignore[return-value]  # a tensor where nothing else is asked for


@lru_cache(maxsize=1)
def _takes_groups() -> bool:
    """Whether it takes windows and groups of heads; it does from PyTorch 2.13 on."""
    return {"window_size", "enable_gqa"} <= set(inspect.signature(_variable_length()).parameters)


def _padded(v: Tensor, width: int) -> Tensor:
    return F.pad(v, (0, width - v.shape[-1])) if v.shape[-1] < width else v
