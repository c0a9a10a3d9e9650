"""Reference implementations of the hot operations in plain PyTorch, against which every faster version is tested.

X keys of a shared prefix, Z = R / 2 rotated pairs. In blocks of FP8: X outputs, Y inputs, A and Q blocks down and
across. Of packed codes: X codes and Y bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels.weight_formats import ExpertStack, WeightMatrix, dequantize
from fathom.spec.rope import RopeLayout
from fathom.spec.targets import IGNORE_INDEX


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square of the last dimension, then multiply by ``weight``; like ``x`` in dtype.

    Half-precision inputs are normalised in float32 and rounded before the product, as Llama does.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)


def rotate(x_BTHR: Tensor, cos_BTZ: Tensor, sin_BTZ: Tensor, layout: RopeLayout) -> Tensor:
    """Rotate each pair of columns by the angle of its position; like ``x`` in dtype.

    ``cos`` and ``sin`` are float32 tables of (B or 1, T, Z = R / 2), one column a pair. ``half`` pairs columns
    (p, p + R/2), ``interleaved`` pairs (2p, 2p + 1).
    """
    wide = x_BTHR.to(torch.promote_types(x_BTHR.dtype, torch.float32))
    cos, sin = cos_BTZ.unsqueeze(2), sin_BTZ.unsqueeze(2)
    if layout == "half":
        first, second = wide.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHR.dtype)
    first, second = wide[..., 0::2], wide[..., 1::2]
    pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return pairs.flatten(-2).to(x_BTHR.dtype)


def attention(
    q_BHTW: Tensor, k_BGSW: Tensor, v_BGSU: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q k^T) v, each of G key-value heads serving H / G query heads; returns (B, H, T, U).

    ``mask_B1TS`` is True where a query may attend; ``causal`` lets query t attend to keys 0 to S - T + t: the queries
    are the last of the keys. All scores exist at once.
    """
    group = q_BHTW.shape[1] // k_BGSW.shape[1]
    k_BHSW, v_BHSU = (x.repeat_interleave(group, dim=1) for x in (k_BGSW, v_BGSU))
    return _scores(q_BHTW, k_BHSW, mask_B1TS, causal, scale).softmax(-1).to(v_BHSU.dtype) @ v_BHSU


def attention_with_lse(
    q_BHTW: Tensor, k_BHSW: Tensor, v_BHSU: Tensor, *, mask_B1TS: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention, (B, H, T, U), and each query's log-sum-exp of its scaled scores, (B, H, T), float32 or wider.

    A query that the mask lets see no key has output 0 and log-sum-exp -inf. All scores exist at once.
    """
    scores_BHTS = _scores(q_BHTW, k_BHSW, mask_B1TS, causal, scale)
    lse_BHT = scores_BHTS.logsumexp(-1)
    weights_BHTS = (scores_BHTS - lse_BHT[..., None].nan_to_num(neginf=0.0)).exp()
    return weights_BHTS.to(v_BHSU.dtype) @ v_BHSU, lse_BHT


def _scores(q_BHTW: Tensor, k_BHSW: Tensor, mask_B1TS: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Scaled scores (B, H, T, S) in float32 or wider, -inf where a query may not look."""
    scores_BHTS = (q_BHTW @ k_BHSW.transpose(-1, -2) * scale).to(torch.promote_types(q_BHTW.dtype, torch.float32))
    if causal:
        tokens, keys = scores_BHTS.shape[-2:]
        later_TS = torch.ones(tokens, keys, dtype=torch.bool, device=q_BHTW.device).triu(keys - tokens + 1)
        scores_BHTS = scores_BHTS.masked_fill(later_TS, float("-inf"))
    if mask_B1TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, float("-inf"))
    return scores_BHTS


def latent_attention(q_BTHW: Tensor, kv_BTHX: Tensor, rope_key_BTR: Tensor, scale: float) -> Tensor:
    """Causal self-attention of every head, whose rotary key is that of all heads; returns (B, T, H, U).

    A head's key is the first P columns of ``kv`` (X = P + U) and then ``rope_key``; W = P + R.
    """
    nope = q_BTHW.shape[-1] - rope_key_BTR.shape[-1]
    rope_key_BTHR = rope_key_BTR[:, :, None].expand(-1, -1, q_BTHW.shape[2], -1)
    k_BTHW, v_BTHU = torch.cat((kv_BTHX[..., :nope], rope_key_BTHR), -1), kv_BTHX[..., nope:]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHW, k_BTHW, v_BTHU))
    return attention(q, k, v, mask_B1TS=None, causal=True, scale=scale).transpose(1, 2)


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
    """softmax(scale q k^T) v over keys that all sequences share and then those of each itself; returns (B, H, T, U).

    Query t of every sequence sees the X shared keys and its own sequence's 0 to t, or what ``mask_1TS`` allows of these
    S = P + T keys. All scores exist at once.
    """
    batch, tokens, first = q_BHTW.shape[0], q_BHTW.shape[2], prefix_k_1GXW.shape[2]
    k_BGSW = torch.cat((prefix_k_1GXW.expand(batch, -1, -1, -1), k_BGTW), dim=2)
    v_BGSU = torch.cat((prefix_v_1GXU.expand(batch, -1, -1, -1), v_BGTU), dim=2)
    if mask_1TS is None:
        mask_1TS = torch.ones(1, tokens, first + tokens, dtype=torch.bool, device=q_BHTW.device).tril(first)
    return attention(q_BHTW, k_BGSW, v_BGSU, mask_B1TS=mask_1TS[:, None], causal=False, scale=scale)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last dimension (2F) and up the second; returns (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_linear(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
    """Return ``swiglu`` of (..., 2F) times the transposed weight, (..., D)."""
    return F.linear(swiglu(gate_up), weight_DF)


def grouped_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    kept_NK: Tensor | None = None,
) -> Tensor:
    """Sum over each token's K experts of weight times expert(token): a loop over experts.

    ``gate_up_EFD`` is (E, 2F, D). Pairs where ``kept_NK`` is False contribute nothing. Returns (N, D) in ``x``'s dtype.
    """
    y_ND = torch.zeros_like(x_ND, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    for expert in range(gate_up_EFD.shape[0]):
        chosen_NK = indices_NK == expert
        if kept_NK is not None:
            chosen_NK = chosen_NK & kept_NK
        tokens, slots = torch.where(chosen_NK)
        if tokens.numel() == 0:
            continue
        hidden = swiglu(F.linear(x_ND[tokens], gate_up_EFD[expert]))
        output = F.linear(hidden, down_EDF[expert]) * weights_NK[tokens, slots, None]
        y_ND = y_ND.index_add(0, tokens, output.to(y_ND.dtype))
    return y_ND.to(x_ND.dtype)


def quantized_linear(x: Tensor, qweight: WeightMatrix) -> Tensor:
    """Return x w^T with the weights dequantized as a whole, in ``x``'s dtype."""
    return F.linear(x, dequantize(qweight, x.dtype))


def round_activations(x: Tensor, group: int = 32) -> Tensor:
    """Round each group of columns to 8 bits, as products with packed weights do: a step is the largest over 127."""
    grouped = x.reshape(*x.shape[:-1], -1, group)
    step = grouped.abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, (grouped / step).round() * step, grouped).flatten(-2)


def quantized_grouped_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up: ExpertStack,
    down: ExpertStack,
    kept_NK: Tensor | None = None,
) -> Tensor:
    """Return ``grouped_swiglu`` of the dequantized weights of all experts."""
    gate_up_EFD, down_EDF = (
        torch.stack([dequantize(weights[expert], x_ND.dtype) for expert in range(len(weights))])
        for weights in (gate_up, down)
    )
    return grouped_swiglu(x_ND, indices_NK, weights_NK, gate_up_EFD, down_EDF, kept_NK)


def fp8_block_linear(x_NY: Tensor, values_XY: Tensor, scale_AQ: Tensor) -> Tensor:
    """Return x w^T for weights of E4M3 in blocks of 128 by 128 with a float32 multiplier each; like ``x`` in dtype."""
    rows, columns = values_XY.shape
    scale_XY = scale_AQ.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return F.linear(x_NY, (values_XY.float() * scale_XY).to(x_NY.dtype))


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Cross-entropy of each token under the logits ``hidden @ weight.T``, float32; ignored tokens are 0.

    All logits exist at once, so ``chunk_tokens`` changes nothing here.
    """
    logits_NV = F.linear(hidden_ND, weight_VD)
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(wide_NV, targets_N, ignore_index=ignore_index, reduction="none")


def mean_linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Mean of ``linear_cross_entropy`` over the tokens not ignored (0 if all are), and each token's loss, detached."""
    loss_N = linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens=chunk_tokens, ignore_index=ignore_index)
    count = (targets_N != ignore_index).sum().clamp(min=1)
    return loss_N.sum() / count, loss_N.detach()


def linear_token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    loss: Callable[[Tensor, slice], Tensor],
    *,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of the targets' log-probabilities, these themselves and the distributions' entropies, both detached.

    ``loss`` is called once, for all tokens: float32, all logits exist at once, whatever ``chunk_tokens``.
    """
    logits_NV = F.linear(hidden_ND, weight_VD)
    every_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)
    logprobs_N = every_NV.gather(1, targets_N[:, None])[:, 0]
    entropy_N = -(every_NV.exp() * every_NV).sum(-1)
    return loss(logprobs_N, slice(0, len(targets_N))), logprobs_N.detach(), entropy_N.detach()


def linear_entropy(hidden_ND: Tensor, weight_VD: Tensor, *, chunk_tokens: int) -> Tensor:
    """Entropy in nats of each token's distribution, float32; all logits exist at once, whatever ``chunk_tokens``."""
    logits_NV = F.linear(hidden_ND, weight_VD)
    logprobs_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def pack_11(codes_NX: Tensor) -> Tensor:
    """Pack the low 11 bits of each code in the layout of ``bits.pack_11``, one bit at a time; uint8 (N, Y)."""
    blocks = -(-codes_NX.shape[1] // 16)
    packed_NY = torch.zeros(codes_NX.shape[0], 22 * blocks, dtype=torch.uint8)
    for row, codes in zip(packed_NY, codes_NX.tolist(), strict=True):
        for index, code in enumerate(codes):
            for bit in range(11):
                word, place = _bit_position(index // blocks, bit)
                byte, offset = divmod(place, 8)
                row[2 * (word * blocks + index % blocks) + byte] += (code >> bit & 1) << offset
    return packed_NY


def unpack_11(packed_NY: Tensor) -> Tensor:
    """Return the codes that ``pack_11`` packed, one bit at a time; int32 (N, X)."""
    blocks = packed_NY.shape[1] // 22
    codes_NX = torch.zeros(packed_NY.shape[0], 16 * blocks, dtype=torch.int32)
    for codes, row in zip(codes_NX, packed_NY.tolist(), strict=True):
        for index in range(16 * blocks):
            for bit in range(11):
                word, place = _bit_position(index // blocks, bit)
                byte, offset = divmod(place, 8)
                codes[index] += (row[2 * (word * blocks + index % blocks) + byte] >> offset & 1) << bit
    return codes_NX


def _bit_position(plane: int, bit: int) -> tuple[int, int]:
    """Which plane of words, and which of a word's 16 bits, holds a bit of a plane of codes."""
    if plane < 11:
        return plane, bit
    if bit == 10:
        return 10, plane
    return (plane - 11 if bit < 5 else plane - 6), 11 + bit % 5
