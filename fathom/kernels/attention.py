"""Softmax attention through PyTorch's fused kernels, in the shapes they are fast in.

Dimensions: B batch, T queries, S keys, H heads, G key-value heads, K query and key width, V value width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q k^T) v, each key-value head serving H / G query heads; returns (B, H, T, V).

    ``mask_B1TS`` is True where a query may look; ``causal`` lets query t see keys 0 to t. On a CPU the fused kernel
    wants keys and values of one width, so narrower values are padded with zeros: the scores never exist as a whole.
    One query per head reads every key once for its whole group instead of a copy for every head.
    """
    heads, kv_heads = q_BHTK.shape[1], k_BGSK.shape[1]
    width, missing = v_BGSV.shape[-1], k_BGSK.shape[-1] - v_BGSV.shape[-1]
    if q_BHTK.device.type == "cpu" and missing > 0:
        v_BGSV = F.pad(v_BGSV, (0, missing))
    if q_BHTK.shape[2] == 1 and heads != kv_heads:
        q_BGJK = q_BHTK.reshape(q_BHTK.shape[0], kv_heads, heads // kv_heads, -1)
        out_BGJV = F.scaled_dot_product_attention(q_BGJK, k_BGSK, v_BGSV, attn_mask=mask_B1TS, scale=scale)
        return out_BGJV.reshape(q_BHTK.shape[0], heads, 1, -1)[..., :width]
    if kv_heads == 1:
        k_BGSK, v_BGSV = (x.expand(-1, heads, -1, -1) for x in (k_BGSK, v_BGSV))
    out_BHTV = F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSV,
        attn_mask=mask_B1TS,
        is_causal=causal,
        scale=scale,
        enable_gqa=kv_heads not in (1, heads),
    )
    return out_BHTV[..., :width]
