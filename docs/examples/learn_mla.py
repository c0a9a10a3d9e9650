"""Multi-head latent attention by hand, with the weights of a layer of ours: expanded, then absorbed, then compared.

B batch, T queries, S keys (here S = T: a whole text, no cache), D hidden size, H heads, C kv_lora_rank,
R qk_rope_head_dim, P qk_nope_head_dim, U v_head_dim, W = P + R expanded and C + R absorbed.
"""

from __future__ import annotations

import torch
from learn_shapes import KINDS, one_layer, show
from torch.testing import assert_close

from fathom import kernels
from fathom.model import build
from fathom.model.attention import AttentionContext
from fathom.model.cache import StaticCache
from fathom.model.rope import Rope

torch.manual_seed(0)
spec, shape = one_layer("MLA"), KINDS["MLA"]
C, P, R, U = shape.kv_lora_rank, shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim
model = build(spec).eval().requires_grad_(False)
mla = model.layers[0].self_attn
x_BTD = torch.randn(1, 6, 256)
cos, sin = model.rope.table(torch.arange(6)[None])

print("1. down: what is cached")
latent_BSC, rope_key_BSR = mla.kv_a_proj_with_mqa(x_BTD).split([C, R], dim=-1)
latent_BSC = mla.kv_a_layernorm(latent_BSC)
rope_key_BSR = kernels.rotate(rope_key_BSR[:, :, None], cos, sin, "interleaved")[:, :, 0]
show("x_BTD", x_BTD)
show("latent_BSC", latent_BSC, "kv_a_layernorm of the first C columns of kv_a_proj_with_mqa(x)")
show("rope_key_BSR", rope_key_BSR, "its last R columns, rotated by their positions")

print("\n2. queries")
q_BTHW = mla.q_proj(x_BTD).view(1, 6, 8, P + R)
q_nope_BTHP, q_rope_BTHR = q_BTHW.split([P, R], dim=-1)
q_rope_BTHR = kernels.rotate(q_rope_BTHR, cos, sin, "interleaved")
show("q_nope_BTHP", q_nope_BTHP, "the part without position")
show("q_rope_BTHR", q_rope_BTHR, "the part with position, rotated")

print("\n3. expanded: rebuild every head's keys and values")
up_HXC = mla.kv_b_proj.weight.view(8, P + U, C)  # X = P + U
key_up_HPC, value_up_HUC = up_HXC.split([P, U], dim=1)
k_nope_BSHP = torch.einsum("hpc,bsc->bshp", key_up_HPC, latent_BSC)
v_BSHU = torch.einsum("huc,bsc->bshu", value_up_HUC, latent_BSC)
content_BHTS = torch.einsum("bthp,bshp->bhts", q_nope_BTHP, k_nope_BSHP)
position_BHTS = torch.einsum("bthr,bsr->bhts", q_rope_BTHR, rope_key_BSR)
future_TS = torch.ones(6, 6, dtype=torch.bool).triu(1)


def probabilities(scores_BHTS: torch.Tensor) -> torch.Tensor:
    return (scores_BHTS / (P + R) ** 0.5).masked_fill(future_TS, float("-inf")).softmax(-1)


weights_BHTS = probabilities(content_BHTS + position_BHTS)
out_BTHU = torch.einsum("bhts,bshu->bthu", weights_BHTS, v_BSHU)
expanded_BTD = mla.o_proj(out_BTHU.flatten(2))
show("key_up_HPC", key_up_HPC, "rows of kv_b_proj that make keys")
show("value_up_HUC", value_up_HUC, "rows of kv_b_proj that make values")
show("k_nope_BSHP", k_nope_BSHP, "key_up latent")
show("v_BSHU", v_BSHU, "value_up latent")
show("weights_BHTS", weights_BHTS, "softmax((q_nope . k_nope + q_rope . rope_key) / sqrt(P + R))")
show("out_BTHU", out_BTHU, "sum over S of weights times v")

print("\n4. absorbed: take the query to the latents instead")
q_latent_BTHC = torch.einsum("bthp,hpc->bthc", q_nope_BTHP, key_up_HPC)
absorbed_BHTS = torch.einsum("bthc,bsc->bhts", q_latent_BTHC, latent_BSC)
mixed_BTHC = torch.einsum("bhts,bsc->bthc", probabilities(absorbed_BHTS + position_BHTS), latent_BSC)
late_BTHU = torch.einsum("huc,bthc->bthu", value_up_HUC, mixed_BTHC)
absorbed_BTD = mla.o_proj(late_BTHU.flatten(2))
show("q_latent_BTHC", q_latent_BTHC, "key_up^T q_nope")
show("mixed_BTHC", mixed_BTHC, "sum over S of weights times latent: one head's key and value for all")
show("late_BTHU", late_BTHU, "value_up mixed, once per query instead of once per key")

assert_close(absorbed_BHTS, content_BHTS, rtol=1e-4, atol=1e-4)
assert_close(late_BTHU, out_BTHU, rtol=1e-4, atol=1e-4)
for form, mine_BTD in (("expanded", expanded_BTD), ("absorbed", absorbed_BTD)):
    cache = StaticCache.allocate(spec, batch_size=1, max_length=6)
    context = AttentionContext(cache.advance(6), (cos, sin), "interleaved", form)
    assert_close(mla(x_BTD, context, cache.layers[0]), mine_BTD, rtol=1e-4, atol=1e-4)
print("\nboth agree with each other and with fathom.model.attention.MLA, to 1e-4")

print("\n5. why the rotary key is apart: were rebuilt keys rotated, what is absorbed would depend on the distance")
whole = Rope(spec.rope, P)
for distance in (0, 1, 5):
    at = whole.table(torch.tensor([[distance]]))
    turned_HPC = kernels.rotate(key_up_HPC.movedim(1, 2)[0][None, None], *at, "interleaved")[0, 0].T[None]
    change = (turned_HPC[0] - key_up_HPC[0]).norm() / key_up_HPC[0].norm()
    print(f"head 0, key {distance} tokens away: the matrix differs from key_up by {change:.0%}")
later = model.rope.table(torch.arange(100, 106)[None])
q_later_BTHR = kernels.rotate(q_BTHW[..., P:], *later, "interleaved")
k_later_BSR = kernels.rotate(mla.kv_a_proj_with_mqa(x_BTD)[:, :, None, C:], *later, "interleaved")[:, :, 0]
assert_close(torch.einsum("bthr,bsr->bhts", q_later_BTHR, k_later_BSR), position_BHTS, rtol=1e-3, atol=1e-3)
print("the same text 100 tokens later has the same rotary scores: they know distances alone")
