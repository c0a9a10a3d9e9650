"""Softmax attention through PyTorch's fused kernels, in the shapes they are fast in.

J = H / G, Y = J T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference
from fathom.kernels.device_attention import device_attention
from fathom.kernels.tensors import needs_grad


def attention(
    q_BHTW: Tensor, k_BGSW: Tensor, v_BGSU: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q k^T) v, each key-value head serving H / G query heads; returns (B, H, T, U).

    ``mask_B1TS`` is True where a query may attend; ``causal`` lets query t attend to keys 0 to S - T + t: the queries
    are the last of the keys. On a CPU the fused kernel requires keys and values of one width, so narrower values are
    padded with zeros: the scores are never materialised. One query per head reads every key once for its whole group
    instead of a copy for every head. What a GPU computes differently is in ``device_attention``.
    """
    heads, kv_heads, tokens, keys = q_BHTW.shape[1], k_BGSW.shape[1], q_BHTW.shape[2], k_BGSW.shape[2]
    if causal and tokens < keys:
        if _fused_lse(q_BHTW, k_BGSW, v_BGSU):
            return _chunk_attention(q_BHTW, k_BGSW, v_BGSU, scale)
        mask_B1TS = torch.ones(1, 1, tokens, keys, dtype=torch.bool, device=q_BHTW.device).tril(keys - tokens)
        causal = False
    if q_BHTW.device.type not in ("cpu", "mps"):
        return device_attention(q_BHTW, k_BGSW, v_BGSU, mask_B1TS=mask_B1TS, causal=causal, scale=scale)
    width, v_BGSU = v_BGSU.shape[-1], _padded_values(k_BGSW, v_BGSU)
    if tokens == 1 and heads != kv_heads:
        q_BGJW = q_BHTW.reshape(q_BHTW.shape[0], kv_heads, heads // kv_heads, -1)
        out_BGJU = F.scaled_dot_product_attention(q_BGJW, k_BGSW, v_BGSU, attn_mask=mask_B1TS, scale=scale)
        return out_BGJU.reshape(q_BHTW.shape[0], heads, 1, -1)[..., :width]
    if kv_heads == 1:
        k_BGSW, v_BGSU = (x.expand(-1, heads, -1, -1) for x in (k_BGSW, v_BGSU))
    out_BHTU = F.scaled_dot_product_attention(
        q_BHTW,
        k_BGSW,
        v_BGSU,
        attn_mask=mask_B1TS,
        is_causal=causal,
        scale=scale,
        enable_gqa=kv_heads not in (1, heads),
    )
    return out_BHTU[..., :width]


def attention_with_lse(
    q_BHTW: Tensor, k_BHSW: Tensor, v_BHSU: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and the log-sum-exp of each query's scores, as ``merge_attention`` takes them.

    Returns (B, H, T, U) and float32 (B, H, T). ``causal`` is for as many keys as queries. A query that the mask lets
    see no key has output 0 and log-sum-exp -inf. Without a fused kernel that reports the log-sum-exp (on other devices
    than a CPU, or where a gradient is needed), all scores of these keys exist at once.
    """
    if not _fused_lse(q_BHTW, k_BHSW, v_BHSU):
        return reference.attention_with_lse(q_BHTW, k_BHSW, v_BHSU, mask_B1TS=mask_B1TS, causal=causal, scale=scale)
    bias_B1TS = None
    if mask_B1TS is not None:
        bias_B1TS = torch.zeros_like(mask_B1TS, dtype=q_BHTW.dtype).masked_fill_(~mask_B1TS, float("-inf"))
    out_BHTU, lse_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTW, k_BHSW, _padded_values(k_BHSW, v_BHSU), 0.0, causal, attn_mask=bias_B1TS, scale=scale
    )
    if mask_B1TS is not None:  # the kernel reports 0 for queries without a key
        lse_BHT = lse_BHT.masked_fill(~mask_B1TS.any(-1), float("-inf"))
    return out_BHTU[..., : v_BHSU.shape[-1]], lse_BHT


def merge_attention(
    out_BHTU: Tensor, lse_BHT: Tensor, other_BHTU: Tensor, other_lse_BHT: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge the attention of the same queries over two disjoint sets of keys; returns output and log-sum-exp.

    A softmax over two sets of keys is the mean of the softmaxes over each, weighed by the exponentials of their
    log-sum-exps. Each query must see a key of the first set. The output is in the wider dtype of both and float32.
    """
    both_BHT = torch.logaddexp(lse_BHT, other_lse_BHT)
    share_BHT1, other_share_BHT1 = (lse_BHT - both_BHT).exp_()[..., None], (other_lse_BHT - both_BHT).exp_()[..., None]
    return (out_BHTU * share_BHT1).addcmul_(other_BHTU, other_share_BHT1), both_BHT


def _chunk_attention(q_BHTW: Tensor, k_BGSW: Tensor, v_BGSU: Tensor, scale: float) -> Tensor:
    """Attend causally to the last T keys and without a mask to all before them, then merge: no (T, S) mask exists.

    The heads of a group are rows of one query matrix over the earlier keys, which are not copied for every head.
    """
    batch, heads, tokens, _ = q_BHTW.shape
    kv_heads, past = k_BGSW.shape[1], k_BGSW.shape[2] - tokens
    own = (x[:, :, past:].repeat_interleave(heads // kv_heads, dim=1) for x in (k_BGSW, v_BGSU))
    out_BHTU, lse_BHT = attention_with_lse(q_BHTW, *own, mask_B1TS=None, causal=True, scale=scale)
    q_BGYW = q_BHTW.reshape(batch, kv_heads, heads // kv_heads * tokens, -1)
    past_BGYU, past_lse_BGY = attention_with_lse(
        q_BGYW, k_BGSW[:, :, :past], v_BGSU[:, :, :past], mask_B1TS=None, causal=False, scale=scale
    )
    merged_BHTU, _ = merge_attention(
        out_BHTU, lse_BHT, past_BGYU.reshape(batch, heads, tokens, -1), past_lse_BGY.reshape(batch, heads, tokens)
    )
    return merged_BHTU.to(q_BHTW.dtype)


def _padded_values(k_BGSW: Tensor, v_BGSU: Tensor) -> Tensor:
    """Return values as wide as the keys, which the fused kernel for CPUs asks for."""
    missing = k_BGSW.shape[-1] - v_BGSU.shape[-1]
    return F.pad(v_BGSU, (0, missing)) if v_BGSU.device.type == "cpu" and missing > 0 else v_BGSU


def _fused_lse(*inputs: Tensor) -> bool:
    """Whether a fused kernel gives the log-sum-exp: on a CPU, where no gradient is needed."""
    return inputs[0].device.type == "cpu" and not needs_grad(*inputs) and not torch.compiler.is_compiling()
