"""Latent attention, YaRN and gating against their formulas, written out in float64 and independent of any library.

Sources: V2 eqs 9-22 and 37-47, V3 eqs 1-16, and DeepSeek's released modelling code for how YaRN ramps (in the index of
the rotated pair) and where its temperature goes: cos and sin by m(s, mscale) / m(s, mscale_all_dim), the softmax
scale by m(s, mscale_all_dim) squared, m(s, c) = 0.1 c ln s + 1. The official inference code of V3 applies both only
where the configured context exceeds the original one; here it always does. Where mscale is given and mscale_all_dim
is not, the released code multiplies cos and sin by m(s, mscale), transformers by m(s, 1): no release does so.
"""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from fathom.model import build
from fathom.spec import (
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    TopK,
    YarnScaling,
)

HEADS, NOPE, ROPE, VALUE, RANK = 3, 6, 16, 5, 10
ATTENTION = LatentAttention(
    num_heads=HEADS, kv_lora_rank=RANK, q_lora_rank=14, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE
)
THETA, CONTEXT = 100.0, 32
SCALES = [(None, None), (0.707, 0.707), (1.0, 1.0), (1.0, 0.5), (0.4, 1.2)]


def make(mscales: tuple[float | None, float | None] | None, moe: MixtureOfExperts | None = None) -> ModelSpec:
    scaling = None
    if mscales is not None:
        scaling = YarnScaling(
            factor=4.0,
            original_max_position_embeddings=CONTEXT,
            beta_fast=2.0,
            beta_slow=1.0,
            mscale=mscales[0],
            mscale_all_dim=mscales[1],
        )
    return ModelSpec(
        name="formula",
        family="deepseek_v3",
        vocab_size=31,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=1,
        attention=ATTENTION,
        moe=moe,
        max_position_embeddings=128,
        rope=RopeSpec(theta=THETA, layout="interleaved", scaling=scaling),
        initializer_range=0.2,
    )


def m(scale: float, c: float) -> float:
    return 0.1 * c * math.log(scale) + 1


def frequencies(stretched: bool) -> list[float]:
    """theta_i, kept where a pair turns often within the trained context, divided by s = 4 where it hardly turns."""
    plain = [THETA ** (-2 * i / ROPE) for i in range(ROPE // 2)]
    if not stretched:
        return plain

    def index(turns: float) -> float:
        return ROPE * math.log(CONTEXT / (2 * math.pi * turns)) / (2 * math.log(THETA))

    low, high = math.floor(index(2.0)), math.ceil(index(1.0))
    assert (low, high) == (1, 3)
    ramp = [min(max((i - low) / (high - low), 0), 1) for i in range(ROPE // 2)]
    assert {0.0, 0.5, 1.0} == set(ramp)
    return [f / 4 * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]


def rotated(x_TR: Tensor, stretched: bool, size: float) -> Tensor:
    """Turn pairs (2i, 2i + 1) as complex numbers by position times frequency."""
    turns = [[size * cmath.exp(1j * t * f) for f in frequencies(stretched)] for t in range(x_TR.shape[0])]
    pairs_TP = torch.view_as_complex(x_TR.contiguous().view(x_TR.shape[0], -1, 2))
    return torch.view_as_real(pairs_TP * torch.tensor(turns, dtype=torch.complex128)).flatten(-2)


def normed(x_TC: Tensor, weight_C: Tensor) -> Tensor:
    return x_TC / (x_TC.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight_C


def attention_output(x_TD: Tensor, w: dict[str, Tensor], mscales: tuple[float | None, float | None] | None) -> Tensor:
    """V2 eqs 9-19 with queries compressed (37-38); one loop per head and position."""
    stretched = mscales is not None
    size, squeeze = 1.0, 1.0
    if mscales is not None and mscales[0] and mscales[1]:
        size, squeeze = m(4, mscales[0]) / m(4, mscales[1]), m(4, mscales[1]) ** 2
    elif mscales is not None:
        size = m(4, 1.0)
    scale = (NOPE + ROPE) ** -0.5 * squeeze
    q_THK = (normed(x_TD @ w["q_a_proj"].T, w["q_a_layernorm"]) @ w["q_b_proj"].T).view(-1, HEADS, NOPE + ROPE)
    latent_TC, key_TR = (x_TD @ w["kv_a_proj_with_mqa"].T).split((RANK, ROPE), -1)
    kv_THX = (normed(latent_TC, w["kv_a_layernorm"]) @ w["kv_b_proj"].T).view(-1, HEADS, NOPE + VALUE)
    key_TR = rotated(key_TR, stretched, size)
    heads = []
    for h in range(HEADS):
        q_TK = torch.cat((q_THK[:, h, :NOPE], rotated(q_THK[:, h, NOPE:], stretched, size)), -1)
        k_TK = torch.cat((kv_THX[:, h, :NOPE], key_TR), -1)
        rows = []
        for t in range(x_TD.shape[0]):
            weights = ((k_TK[: t + 1] @ q_TK[t]) * scale).exp()
            rows.append(weights / weights.sum() @ kv_THX[: t + 1, h, NOPE:])
        heads.append(torch.stack(rows))
    return torch.cat(heads, -1) @ w["o_proj"].T


@pytest.mark.parametrize("mscales", [None, *SCALES])
def test_latent_attention_is_the_papers_formula(mscales: tuple[float | None, float | None] | None) -> None:
    model = build(make(mscales), seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data = 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
    tokens_1T = torch.randint(0, 31, (1, 70), generator=generator)
    caught: list[tuple[Tensor, Tensor]] = []
    attention = model.layers[0].self_attn
    attention.register_forward_hook(lambda _, given, result: caught.append((given[0], result)))
    with torch.no_grad():
        model(tokens_1T)
    x_1TD, found_1TD = caught[0]
    weights = {name.removesuffix(".weight"): tensor.double() for name, tensor in attention.state_dict().items()}
    expected_TD = attention_output(x_1TD[0].double(), weights, mscales)
    assert expected_TD.std() > 0.05
    torch.testing.assert_close(found_1TD[0].double(), expected_TD, rtol=0, atol=2e-6)


ROUTERS = {
    "V2-Lite": RouterSpec(),
    "V2": RouterSpec(select=GroupLimited(n_group=4, topk_group=2), scale=16.0),
    "V3": RouterSpec(
        score="sigmoid",
        select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
        selection_bias=True,
        normalize=True,
        scale=2.5,
    ),
    "V3 in one group": RouterSpec(score="sigmoid", select=TopK(), selection_bias=True, normalize=True),
    "Mixtral": RouterSpec(normalize=True),
}


def chosen_and_weights(logits: list[float], bias: list[float], router: RouterSpec, k: int) -> dict[int, float]:
    """V2 eqs 20-22, V3 eqs 12-16 with node limit, for one token: plain Python."""
    if router.score == "softmax":
        whole = sum(math.exp(x) for x in logits)
        scores = [math.exp(x) / whole for x in logits]
    else:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    ranked = [s + b for s, b in zip(scores, bias, strict=True)]
    allowed = list(range(len(logits)))
    select = router.select
    if isinstance(select, GroupLimited):
        size = len(logits) // select.n_group
        best = 1 if select.group_score == "max" else 2
        worth = {g: sum(sorted(ranked[g * size : (g + 1) * size])[-best:]) for g in range(select.n_group)}
        groups = sorted(worth, key=worth.__getitem__)[-select.topk_group :]
        allowed = [e for e in allowed if e // size in groups]
    chosen = sorted(allowed, key=ranked.__getitem__)[-k:]
    total = sum(scores[e] for e in chosen) if router.normalize else 1.0
    return {e: router.scale * scores[e] / total for e in chosen}


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_gates_are_the_papers_formula(router: RouterSpec) -> None:
    moe = MixtureOfExperts(n_routed_experts=12, num_experts_per_tok=4, moe_intermediate_size=8, router=router)
    model = build(make(None, moe), seed=5).eval()
    gate = model.layers[0].mlp.gate
    generator = torch.Generator().manual_seed(2)
    gate.weight.data = torch.randn(12, 24, generator=generator)
    bias_E = torch.zeros(12)
    if gate.e_score_correction_bias is not None:
        bias_E = torch.randn(12, generator=generator) - 1.5
        assert (torch.sigmoid(torch.tensor(5.0)) + bias_E < 0).any(), (
            "some expert must stay below zero whatever its score"
        )
        gate.e_score_correction_bias.copy_(bias_E)
    x_BTD = torch.randn(3, 20, 24, generator=generator)
    routing = gate(x_BTD)
    logits_BTE = x_BTD.double() @ gate.weight.double().T
    for b in range(3):
        for t in range(20):
            expected = chosen_and_weights(logits_BTE[b, t].tolist(), bias_E.tolist(), router, 4)
            found = dict(zip(routing.indices_BTK[b, t].tolist(), routing.weights_BTK[b, t].tolist(), strict=True))
            assert found == pytest.approx(expected, rel=1e-4)
