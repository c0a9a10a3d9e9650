"""Multi-head latent attention (V2 §2.1, eqs 9-19 and 37-47) in its two forms.

The cache holds C + R numbers per token: the normalised latent, then the rotated key, which are the one head of the
absorbed form. X rows of one head of ``kv_b_proj``, or columns of all heads; Y rows of a product of each head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom import kernels
from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.cache import AttentionGroup, LayerCache
from fathom.model.linear import Linear
from fathom.model.norm import RMSNorm
from fathom.model.quantized import QuantizedUpProjection
from fathom.spec import LatentAttention, ModelSpec, YarnScaling

EXPANDED_COST_FACTOR = 1.4
"""Weight of a multiply-add of the expanded form: it also copies its products (measured, benchmarks/mla_forms.py)."""

TILED_COST_FACTOR = 1.2
"""The same where keys and values are rebuilt in tiles, which stay in the processor's caches (measured there too)."""

TILE_ROWS = 16_384
"""Heads times cached tokens of which keys and values exist at once (measured: flat from 8,192 to 32,768)."""

_LEAST_TILE = 256


def tile_size(heads: int) -> int:
    """Return the cached tokens whose keys and values are rebuilt at once."""
    return max(_LEAST_TILE, TILE_ROWS // heads)


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

    Expanded, it rebuilds keys and values of every head and runs as MHA: cheapest for many queries (training, prefill).
    Absorbed, the up-projections move to the query and the output, and it runs as MQA over the latents themselves:
    cheapest for few queries over a long cache (decoding). Both agree to rounding.

    A prompt is read in chunks. Where a chunk follows more than two tiles of cached tokens, the expanded form rebuilds
    their keys and values tile by tile and merges the attention over the tiles by log-sum-exp, so that memory does not
    grow with the context: a layer of V2-Lite allocates at most 96 MiB in float32 for a chunk of 512 tokens, at 128K
    tokens of context as at 8K. (Pages that lie apart are gathered first, into a buffer that all layers share: 288 MiB
    at 128K.) The cost rule chooses the absorbed form, which rebuilds nothing, for chunks below about 220 tokens of
    V2-Lite; a prompt of n tokens in larger chunks of T rebuilds n^2 / 2T latents.

    Head counts come from the shapes of the weights: a module whose projections hold some of the heads only (rows of
    ``q_proj`` or ``q_b_proj`` and ``kv_b_proj``, columns of ``o_proj``) computes their share of the output.
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
        self.kv_b_proj: Linear | QuantizedUpProjection = Linear(attention.kv_lora_rank, up, bias=False)
        self.o_proj = Linear(heads * attention.v_head_dim, hidden, bias=bias)

    def forward(self, x_BTD: Tensor, context: AttentionContext, layer_cache: LayerCache | None) -> Tensor:
        """Attend from the new tokens to themselves and to the cache; returns (B, T, D)."""
        shape = self.shape
        batch, tokens, _ = x_BTD.shape
        cos, sin = context.rope
        q_BTHW = self._queries(x_BTD).view(batch, tokens, -1, shape.qk_head_dim)
        q_nope_BTHP, q_rope_BTHR = q_BTHW.split_with_sizes([shape.qk_nope_head_dim, shape.qk_rope_head_dim], -1)
        latent_BTC, rope_key_BTR = self.kv_a_proj_with_mqa(x_BTD).split_with_sizes(
            [shape.kv_lora_rank, shape.qk_rope_head_dim], -1
        )
        latent_BTC = self.kv_a_layernorm(latent_BTC)
        rotated = kernels.rotate(torch.cat((q_rope_BTHR, rope_key_BTR[:, :, None]), 2), cos, sin, context.layout)
        q_rope_BTHR, rope_key_BT1R = rotated.split_with_sizes([q_BTHW.shape[2], 1], 2)
        rope_key_BTR = rope_key_BT1R[:, :, 0]
        if layer_cache is None:
            q_BTHW = torch.cat((q_nope_BTHP, q_rope_BTHR), dim=-1)
            out_BTX = self._self_attention(q_BTHW, latent_BTC, rope_key_BTR, context)
        else:
            new_BT1W = torch.cat((latent_BTC, rope_key_BTR), dim=-1)[:, :, None]
            out_BTX = context.concatenate(
                [
                    self._attend(group, group.select(q_nope_BTHP), group.select(q_rope_BTHR), seen_B1SW, context.form)
                    for group, (seen_B1SW,) in layer_cache.append(context.metadata, new_BT1W)
                ]
            )
        return self.o_proj(out_BTX)  # type: ignore[no-any-return]

    def _self_attention(
        self, q_BTHW: Tensor, latent_BTC: Tensor, rope_key_BTR: Tensor, context: AttentionContext
    ) -> Tensor:
        """Attend without a cache, in the expanded form; returns (B, T, H U)."""
        kv_BTHX = self._projected(latent_BTC)
        if context.is_plain and kernels.trains_latent_attention(q_BTHW, kv_BTHX, rope_key_BTR):
            return kernels.latent_attention(q_BTHW, kv_BTHX, rope_key_BTR, self.scale).flatten(2)
        return context.attend(q_BTHW, *self._split(kv_BTHX, rope_key_BTR), self.scale)

    def _attend(
        self, group: AttentionGroup, q_nope_BTHP: Tensor, q_rope_BTHR: Tensor, seen_B1SW: Tensor, form: LatentForm
    ) -> Tensor:
        """Attend to cached latents in the cheaper form; returns (B, T, H U)."""
        heads, tokens, keys = q_nope_BTHP.shape[2], group.tokens, seen_B1SW.shape[2]
        tile = tile_size(heads)
        tiled = keys - tokens > 2 * tile
        if self._absorbs(tokens, keys, tiled, form):
            return self._absorbed(group, q_nope_BTHP, q_rope_BTHR, seen_B1SW)
        latent_BSC, rope_key_BSR = seen_B1SW[:, 0].split_with_sizes(
            [self.shape.kv_lora_rank, self.shape.qk_rope_head_dim], -1
        )
        q_BTHW = torch.cat((q_nope_BTHP, q_rope_BTHR), dim=-1)
        if tiled:
            return self._tiled(group, q_BTHW, latent_BSC, rope_key_BSR, tile)
        return self._expanded(group, q_BTHW, latent_BSC, rope_key_BSR)

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if self.shape.q_lora_rank is None:
            return self.q_proj(x_BTD)  # type: ignore[no-any-return]
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))  # type: ignore[no-any-return]

    def _absorbs(self, tokens: int, keys: int, tiled: bool, form: LatentForm) -> bool:
        """Choose the form that costs less."""
        if form != "auto":
            return form == "absorbed"
        expanded, absorbed = costs(self.shape, tokens, keys)
        return absorbed < (TILED_COST_FACTOR if tiled else EXPANDED_COST_FACTOR) * expanded

    def _keys_values(self, latent_BSC: Tensor, rope_key_BSR: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuild keys (B, S, H, W) and values (B, S, H, U) of every head."""
        return self._split(self._projected(latent_BSC), rope_key_BSR)

    def _projected(self, latent_BSC: Tensor) -> Tensor:
        """Return each head's key without the rotary part, then its value: (B, S, H, P + U)."""
        kv_BSX: Tensor = self.kv_b_proj(latent_BSC)
        return kv_BSX.view(*latent_BSC.shape[:2], -1, self.shape.qk_nope_head_dim + self.shape.v_head_dim)

    def _split(self, kv_BSHX: Tensor, rope_key_BSR: Tensor) -> tuple[Tensor, Tensor]:
        k_nope_BSHP, v_BSHU = kv_BSHX.split_with_sizes([self.shape.qk_nope_head_dim, self.shape.v_head_dim], -1)
        rope_key_BSHR = rope_key_BSR[:, :, None].expand(-1, -1, kv_BSHX.shape[2], -1)
        return torch.cat((k_nope_BSHP, rope_key_BSHR), dim=-1), v_BSHU

    def _absorb_keys(self, q_HYP: Tensor) -> Tensor:
        """Return each head's queries times the rows of ``kv_b_proj`` that make its keys, (H, Y, C)."""
        up, lora = self.kv_b_proj, self.kv_b_proj.lora
        if isinstance(up, QuantizedUpProjection):
            q_HYC = up.absorb_keys(q_HYP)
        else:
            q_HYC = torch.bmm(q_HYP, self._by_head(up.weight)[0])
        if lora is None:
            return q_HYC
        return q_HYC + torch.bmm(q_HYP, self._by_head(lora.B * lora.scaling)[0]) @ lora.A

    def _project_values(self, mixed_HYC: Tensor) -> Tensor:
        """Return each head's mixed latents times the rows of ``kv_b_proj`` that make its values, (H, Y, U)."""
        up, lora = self.kv_b_proj, self.kv_b_proj.lora
        if isinstance(up, QuantizedUpProjection):
            out_HYU = up.project_values(mixed_HYC)
        else:
            out_HYU = torch.bmm(mixed_HYC, self._by_head(up.weight)[1].transpose(1, 2))
        if lora is None:
            return out_HYU
        values_b = self._by_head(lora.B * lora.scaling)[1]
        return out_HYU + torch.bmm(F.linear(mixed_HYC, lora.A), values_b.transpose(1, 2))

    def _by_head(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cut rows of ``kv_b_proj`` into those of keys (H, P, ...) and of values (H, U, ...)."""
        sizes = [self.shape.qk_nope_head_dim, self.shape.v_head_dim]
        keys, values = rows.view(-1, sum(sizes), rows.shape[-1]).split_with_sizes(sizes, 1)
        return keys, values

    def _expanded(self, group: AttentionGroup, q_BTHW: Tensor, latent_BSC: Tensor, rope_key_BSR: Tensor) -> Tensor:
        """Rebuild keys and values of all tokens at once and run as MHA; returns (B, T, H U)."""
        k_BSHW, v_BSHU = self._keys_values(latent_BSC, rope_key_BSR)
        out_BHTU = kernels.attention(
            q_BTHW.transpose(1, 2),
            k_BSHW.transpose(1, 2),
            v_BSHU.transpose(1, 2),
            mask_B1TS=group.mask_B1TS,
            causal=group.causal,
            scale=self.scale,
        )
        return out_BHTU.transpose(1, 2).flatten(2)

    def _tiled(
        self, group: AttentionGroup, q_BTHW: Tensor, latent_BSC: Tensor, rope_key_BSR: Tensor, tile: int
    ) -> Tensor:
        """Run as MHA over one tile of rebuilt keys and values after another, merged by log-sum-exp."""
        q_BHTW, merged = q_BTHW.transpose(1, 2), None
        for keys, mask_B1TS, causal in _tiles(group, latent_BSC.shape[1], tile):
            k_BSHW, v_BSHU = self._keys_values(latent_BSC[:, keys], rope_key_BSR[:, keys])
            k_BHSW, v_BHSU = k_BSHW.transpose(1, 2), v_BSHU.transpose(1, 2)
            found = kernels.attention_with_lse(
                q_BHTW, k_BHSW, v_BHSU, mask_B1TS=mask_B1TS, causal=causal, scale=self.scale
            )
            merged = found if merged is None else kernels.merge_attention(*merged, *found)
        assert merged is not None
        return merged[0].to(q_BTHW.dtype).transpose(1, 2).flatten(2)

    def _absorbed(self, group: AttentionGroup, q_nope_BTHP: Tensor, q_rope_BTHR: Tensor, seen_B1SW: Tensor) -> Tensor:
        """Run as MQA over the latents: they are keys (with the rotary part) and values (without) of one head."""
        shape = self.shape
        batch, tokens, heads, _ = q_nope_BTHP.shape
        rows = batch * tokens
        q_latent_HYC = self._absorb_keys(q_nope_BTHP.reshape(rows, heads, -1).transpose(0, 1))
        q_latent_BTHC = q_latent_HYC.transpose(0, 1).view(batch, tokens, heads, -1)
        q_BTHW = torch.cat((q_latent_BTHC, q_rope_BTHR), dim=-1)
        # One token's heads become queries of the single head, so that each latent is read once for all of them.
        q = q_BTHW if tokens == 1 else q_BTHW.transpose(1, 2)
        mixed = kernels.attention(
            q,
            seen_B1SW,
            seen_B1SW,
            mask_B1TS=group.mask_B1TS,
            causal=group.causal,
            scale=self.scale,
        )
        mixed_BTHW = mixed if tokens == 1 else mixed.transpose(1, 2)
        mixed_HYC = mixed_BTHW[..., : shape.kv_lora_rank].reshape(rows, heads, -1).transpose(0, 1)
        out_HYU = self._project_values(mixed_HYC)
        return out_HYU.transpose(0, 1).reshape(batch, tokens, -1)


def _tiles(group: AttentionGroup, keys: int, tile: int) -> Iterator[tuple[slice, Tensor | None, bool]]:
    """Cut the keys of a group into tiles: which keys, their mask, and whether they are causal.

    Every query sees a key of the first tile: itself where there is no mask, else key 0.
    """
    past = keys
    if group.mask_BTS is None:
        past = keys - group.tokens if group.causal else keys
        if group.causal:
            yield slice(past, keys), None, True
    for start in range(0, past, tile):
        piece = slice(start, min(start + tile, past))
        yield piece, None if group.mask_BTS is None else group.mask_BTS[:, None, :, piece], False
