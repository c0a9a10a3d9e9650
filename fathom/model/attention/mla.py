"""Multi-head latent attention (V2 §2.1, eqs 9-19 and 37-47) in its two forms.

B batch, T new tokens, S keys, D hidden size, H heads, C kv_lora_rank, R qk_rope_head_dim, N qk_nope_head_dim,
K = N + R, V v_head_dim. The cache holds C + R numbers per token: the normalised latent, then the rotated key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom import kernels
from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.cache import AttentionGroup, LayerCache
from fathom.model.linear import Linear
from fathom.model.norm import RMSNorm
from fathom.spec import LatentAttention, ModelSpec, YarnScaling

EXPANDED_COST_FACTOR = 1.4
"""What a multiply-add of the expanded form counts: it also copies what it makes (measured, benchmarks/mla_forms.py)."""


def costs(shape: LatentAttention, tokens: int, keys: int) -> tuple[int, int]:
    """Return the multiply-adds per head of the expanded and of the absorbed form, for new tokens that see keys."""
    latent, nope, rope, value = (
        shape.kv_lora_rank,
        shape.qk_nope_head_dim,
        shape.qk_rope_head_dim,
        shape.v_head_dim,
    )
    expanded = keys * latent * (nope + value) + tokens * keys * (nope + rope + value)
    absorbed = tokens * latent * (nope + value) + tokens * keys * (2 * latent + rope)
    return expanded, absorbed


class MLA(nn.Module):
    """Attention whose keys and values are up-projections of one latent per token, with a decoupled rotary key.

    Expanded, it rebuilds keys and values of every head and runs as MHA: cheapest where many queries meet (training,
    prefill). Absorbed, the up-projections move to the query and the output, and it runs as MQA over the latents
    themselves: cheapest where few queries meet a long cache (decoding). Both give the same numbers to rounding.
    """

    def __init__(self, spec: ModelSpec, attention: LatentAttention) -> None:
        super().__init__()
        self.shape = attention
        hidden, heads, bias = spec.hidden_size, attention.num_heads, attention.bias
        scaling = spec.rope.scaling
        stretch = scaling.softmax_multiplier if isinstance(scaling, YarnScaling) else 1.0
        self.scale = attention.qk_head_dim**-0.5 * stretch
        if attention.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * attention.qk_head_dim, bias=False)
        else:
            self.q_a_proj = Linear(hidden, attention.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(attention.q_lora_rank, spec.rms_norm_eps)
            self.q_b_proj = Linear(attention.q_lora_rank, heads * attention.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(hidden, attention.kv_lora_rank + attention.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(attention.kv_lora_rank, spec.rms_norm_eps)
        up = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
        self.kv_b_proj = Linear(attention.kv_lora_rank, up, bias=False)
        self.o_proj = Linear(heads * attention.v_head_dim, hidden, bias=bias)

    def forward(self, x_BTD: Tensor, context: AttentionContext, store: LayerCache | None) -> Tensor:
        """Attend from the new tokens to themselves and to what the store holds; returns (B, T, D)."""
        shape = self.shape
        batch, tokens, _ = x_BTD.shape
        cos, sin = context.rope
        q_BTHK = self._queries(x_BTD).view(batch, tokens, shape.num_heads, shape.qk_head_dim)
        q_nope_BTHN, q_rope_BTHR = q_BTHK.split_with_sizes([shape.qk_nope_head_dim, shape.qk_rope_head_dim], -1)
        latent_BTC, rope_key_BTR = self.kv_a_proj_with_mqa(x_BTD).split_with_sizes(
            [shape.kv_lora_rank, shape.qk_rope_head_dim], -1
        )
        latent_BTC = self.kv_a_layernorm(latent_BTC)
        rotated = kernels.rotate(torch.cat((q_rope_BTHR, rope_key_BTR[:, :, None]), 2), cos, sin, context.layout)
        q_rope_BTHR, rope_key_BT1R = rotated.split_with_sizes([shape.num_heads, 1], 2)
        rope_key_BTR = rope_key_BT1R[:, :, 0]
        if store is None:
            keys_values = self._keys_values(latent_BTC, rope_key_BTR)
            out_BTX = context.attend(torch.cat((q_nope_BTHN, q_rope_BTHR), dim=-1), *keys_values, self.scale)
        else:
            new_BT1W = torch.cat((latent_BTC, rope_key_BTR), dim=-1)[:, :, None]
            out_BTX = context.join(
                [
                    self._attend(part, part.select(q_nope_BTHN), part.select(q_rope_BTHR), seen_B1SW, context.form)
                    for part, (seen_B1SW,) in store.append(context.span, new_BT1W)
                ]
            )
        return self.o_proj(out_BTX)  # type: ignore[no-any-return]

    def _attend(
        self, part: AttentionGroup, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, seen_B1SW: Tensor, form: LatentForm
    ) -> Tensor:
        """Attend to cached latents in the cheaper form; returns (B, T, H V)."""
        if self._absorbs(part.tokens, seen_B1SW.shape[2], form):
            return self._absorbed(part, q_nope_BTHN, q_rope_BTHR, seen_B1SW)
        latent_BSC, rope_key_BSR = seen_B1SW[:, 0].split_with_sizes(
            [self.shape.kv_lora_rank, self.shape.qk_rope_head_dim], -1
        )
        return self._expanded(part, q_nope_BTHN, q_rope_BTHR, latent_BSC, rope_key_BSR)

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if self.shape.q_lora_rank is None:
            return self.q_proj(x_BTD)  # type: ignore[no-any-return]
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))  # type: ignore[no-any-return]

    def _absorbs(self, tokens: int, keys: int, form: LatentForm) -> bool:
        """Choose the form that costs less."""
        if form != "auto":
            return form == "absorbed"
        expanded, absorbed = costs(self.shape, tokens, keys)
        return absorbed < EXPANDED_COST_FACTOR * expanded

    def _keys_values(self, latent_BSC: Tensor, rope_key_BSR: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuild keys (B, S, H, K) and values (B, S, H, V) of every head."""
        shape = self.shape
        batch, keys, _ = latent_BSC.shape
        kv_BSHX = self.kv_b_proj(latent_BSC).view(batch, keys, shape.num_heads, -1)
        k_nope_BSHN, v_BSHV = kv_BSHX.split_with_sizes([shape.qk_nope_head_dim, shape.v_head_dim], -1)
        rope_key_BSHR = rope_key_BSR[:, :, None].expand(-1, -1, shape.num_heads, -1)
        return torch.cat((k_nope_BSHN, rope_key_BSHR), dim=-1), v_BSHV

    def _expanded(
        self, part: AttentionGroup, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, latent_BSC: Tensor, rope_key_BSR: Tensor
    ) -> Tensor:
        q_BTHK = torch.cat((q_nope_BTHN, q_rope_BTHR), dim=-1)
        k_BSHK, v_BSHV = self._keys_values(latent_BSC, rope_key_BSR)
        out_BHTV = kernels.attention(
            q_BTHK.transpose(1, 2),
            k_BSHK.transpose(1, 2),
            v_BSHV.transpose(1, 2),
            mask_B1TS=part.mask_B1TS,
            causal=part.causal,
            scale=self.scale,
        )
        return out_BHTV.transpose(1, 2).flatten(2)

    def _absorbed(self, part: AttentionGroup, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, seen_B1SW: Tensor) -> Tensor:
        """Run as MQA over the latents: they are keys (with the rotary part) and values (without) of one head."""
        shape = self.shape
        batch, tokens, heads, _ = q_nope_BTHN.shape
        rows = batch * tokens
        up_HXC = self.kv_b_proj.weight.view(heads, -1, shape.kv_lora_rank)
        key_up_HNC, value_up_HVC = up_HXC.split_with_sizes([shape.qk_nope_head_dim, shape.v_head_dim], 1)
        q_latent_HYC = torch.bmm(q_nope_BTHN.reshape(rows, heads, -1).transpose(0, 1), key_up_HNC)
        q_latent_BTHC = q_latent_HYC.transpose(0, 1).view(batch, tokens, heads, -1)
        q_BTHW = torch.cat((q_latent_BTHC, q_rope_BTHR), dim=-1)
        # One token's heads become queries of the single head, so that each latent is read once for all of them.
        q = q_BTHW if tokens == 1 else q_BTHW.transpose(1, 2)
        mixed = kernels.attention(
            q,
            seen_B1SW,
            seen_B1SW,
            mask_B1TS=part.mask_B1TS,
            causal=part.causal,
            scale=self.scale,
        )
        mixed_BTHW = mixed if tokens == 1 else mixed.transpose(1, 2)
        mixed_HYC = mixed_BTHW[..., : shape.kv_lora_rank].reshape(rows, heads, -1).transpose(0, 1)
        out_HYV = torch.bmm(mixed_HYC, value_up_HVC.transpose(1, 2))
        return out_HYV.transpose(0, 1).reshape(batch, tokens, -1)
