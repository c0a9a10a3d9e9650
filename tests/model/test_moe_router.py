"""Routers against formulas written out here and against the published models' gates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from fathom.model.moe import Router
from fathom.model.moe.router import limit_groups
from fathom.spec import moe as spec
from fathom.spec.moe import GroupLimited, MixtureOfExperts, TopK

HIDDEN, EXPERTS, CHOSEN = 12, 16, 4


def mixture(**router: Any) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=8, router=spec.RouterSpec(**router)
    )


def make(seed: int = 0, **router: Any) -> Router:
    gate = Router(HIDDEN, mixture(**router))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        gate.weight.copy_(torch.randn(EXPERTS, HIDDEN, generator=generator))
        if gate.e_score_correction_bias is not None:
            gate.e_score_correction_bias.copy_(torch.randn(EXPERTS, generator=generator) * 2 - 3)
    return gate


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(3, 7, HIDDEN, generator=torch.Generator().manual_seed(seed))


def by_hand(gate: Router, token: list[float]) -> tuple[list[int], list[float]]:
    """Route one token with Python floats: the papers' formulas, one line each."""
    router, weight = gate.spec, gate.weight.tolist()
    logits = [sum(w * t for w, t in zip(row, token, strict=True)) for row in weight]
    if router.score == "softmax":
        total = sum(math.exp(logit) for logit in logits)
        scores = [math.exp(logit) / total for logit in logits]
    else:
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    bias = [0.0] * EXPERTS if gate.e_score_correction_bias is None else gate.e_score_correction_bias.tolist()
    choice = {expert: scores[expert] + bias[expert] for expert in range(EXPERTS)}
    if isinstance(router.select, GroupLimited):
        size, best = EXPERTS // router.select.n_group, 1 if router.select.group_score == "max" else 2
        members = [range(group * size, (group + 1) * size) for group in range(router.select.n_group)]
        rank = [sum(sorted((choice[e] for e in group), reverse=True)[:best]) for group in members]
        groups = sorted(range(len(rank)), key=lambda g: -rank[g])[: router.select.topk_group]
        choice = {expert: choice[expert] for group in groups for expert in members[group]}
    chosen = sorted(choice, key=lambda e: -choice[e])[:CHOSEN]
    weights = [scores[expert] for expert in chosen]
    if router.normalize:
        weights = [value / sum(weights) for value in weights]
    return chosen, [value * router.scale for value in weights]


ROUTERS: dict[str, dict[str, Any]] = {
    "v2-lite": {},
    "v2": {"select": GroupLimited(n_group=8, topk_group=3), "scale": 16.0},
    "v3": {
        "score": "sigmoid",
        "select": GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
        "selection_bias": True,
        "normalize": True,
        "scale": 2.5,
    },
    "mixtral": {"normalize": True},
    "biased softmax, best of group": {"select": GroupLimited(n_group=4, topk_group=1), "selection_bias": True},
    "sigmoid, no groups": {"score": "sigmoid", "selection_bias": True},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_equals_the_formulas(name: str) -> None:
    gate, x = make(**ROUTERS[name]), inputs()
    routing = gate(x)
    assert routing.kept_BTK is None
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            chosen, weights = by_hand(gate, x[b, t].tolist())
            assert routing.indices_BTK[b, t].tolist() == chosen
            assert routing.weights_BTK[b, t].tolist() == pytest.approx(weights, rel=1e-5)


def same_as(gate: Router, theirs: torch.nn.Module, x: Tensor) -> None:
    theirs.weight.data.copy_(gate.weight)
    logits, weights, indices = theirs(x)
    routing = gate(x)

    def dense(weights: Tensor, indices: Tensor) -> Tensor:
        return torch.zeros(x.shape[0] * x.shape[1], EXPERTS).scatter(1, indices, weights)

    torch.testing.assert_close(
        dense(routing.weights_BTK.flatten(0, 1), routing.indices_BTK.flatten(0, 1)), dense(weights, indices)
    )
    score = logits.softmax(-1) if gate.spec.score == "softmax" else logits.sigmoid()
    torch.testing.assert_close(routing.scores_BTE.flatten(0, 1), score)


@pytest.mark.parametrize("grouped", [False, True])
def test_v2_routes_as_transformers_does(grouped: bool) -> None:
    config = DeepseekV2Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        topk_method="group_limited_greedy" if grouped else "greedy",
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
    )
    select = GroupLimited(n_group=8, topk_group=3) if grouped else TopK()
    same_as(make(select=select, scale=16.0), DeepseekV2TopkRouter(config), inputs())


def test_v3_routes_as_transformers_does_with_negative_biases() -> None:
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )
    gate, theirs = make(**ROUTERS["v3"]), DeepseekV3TopkRouter(config)
    theirs.e_score_correction_bias.copy_(gate.e_score_correction_bias)
    same_as(gate, theirs, inputs())


def test_mixtral_routes_as_transformers_does() -> None:
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN)
    same_as(make(normalize=True), MixtralTopKRouter(config), inputs())


def test_experts_outside_the_best_groups_are_never_chosen_however_negative_the_bias() -> None:
    gate = make(**(ROUTERS["v3"] | {"select": GroupLimited(n_group=8, topk_group=2, group_score="top2_sum")}))
    gate.e_score_correction_bias.copy_(torch.linspace(-9, -5, EXPERTS))
    groups = gate(inputs()).indices_BTK // 2
    assert all(len(set(token)) == 2 for token in groups.flatten(0, 1).tolist())


def test_excluded_experts_are_minus_infinity_and_others_unchanged() -> None:
    choice = torch.tensor([[-5.0, -1.0, -3.0, -2.0, -9.0, -0.5]])
    by_best = limit_groups(choice, GroupLimited(n_group=3, topk_group=2))
    assert by_best.tolist() == [[-5.0, -1.0, -math.inf, -math.inf, -9.0, -0.5]]
    by_sum = limit_groups(choice, GroupLimited(n_group=3, topk_group=2, group_score="top2_sum"))
    assert by_sum.tolist() == [[-5.0, -1.0, -3.0, -2.0, -math.inf, -math.inf]]


def test_the_bias_moves_the_selection_and_never_the_weights() -> None:
    plain, biased = make(score="sigmoid", normalize=True), make(score="sigmoid", normalize=True, selection_bias=True)
    x = inputs()
    biased.e_score_correction_bias.zero_()
    assert torch.equal(plain(x).weights_BTK, biased(x).weights_BTK)
    biased.e_score_correction_bias[5] = 100.0
    routing = biased(x)
    assert (routing.indices_BTK[..., 0] == 5).all()
    assert torch.equal(routing.scores_BTE, plain(x).scores_BTE)
    chosen = routing.scores_BTE.gather(-1, routing.indices_BTK)
    torch.testing.assert_close(routing.weights_BTK, chosen / chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_float32_for_a_bfloat16_stream(name: str, autocast: bool) -> None:
    gate, x = make(**ROUTERS[name]), inputs().bfloat16()
    expected = gate(x.float())
    if not autocast:
        gate.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        routing = gate(x)
    assert routing.scores_BTE.dtype == routing.weights_BTK.dtype == torch.float32
    assert torch.equal(routing.scores_BTE, expected.scores_BTE)
    assert torch.equal(routing.weights_BTK, expected.weights_BTK)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_in_bfloat16_is_multiplied_in_float32(name: str, autocast: bool) -> None:
    """What FSDP's mixed precision gathers, or a checkpoint rounded as a whole: the arithmetic is that of float32."""
    narrow, wide, x = make(**ROUTERS[name]), make(**ROUTERS[name]), inputs().bfloat16()
    with torch.no_grad():
        for rounded, exact in zip(narrow.parameters(), wide.parameters(), strict=True):
            rounded.data = rounded.data.bfloat16()
            exact.copy_(rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, expected = narrow(x), wide(x)
    assert narrow.weight is None or narrow.weight.dtype == torch.bfloat16
    assert torch.equal(found.scores_BTE, expected.scores_BTE)
    assert torch.equal(found.indices_BTK, expected.indices_BTK)
    assert torch.equal(found.weights_BTK, expected.weights_BTK)
    found.weights_BTK.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.bfloat16 for p in narrow.parameters())


def test_moving_the_model_keeps_gate_and_bias_in_float32() -> None:
    gate = make(**ROUTERS["v3"])
    before = gate.weight.clone()
    for moved in (gate.to(torch.bfloat16), gate.half(), gate.double(), gate.to("cpu", torch.bfloat16)):
        assert moved.weight.dtype == moved.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.weight, before)
    assert gate.weight.requires_grad


def test_meta_gate_becomes_real_in_float32() -> None:
    with torch.device("meta"):
        gate = Router(HIDDEN, mixture(**ROUTERS["v3"]))
    gate.to(torch.bfloat16).to_empty(device="cpu")
    assert gate.weight.device.type == gate.e_score_correction_bias.device.type == "cpu"
    assert gate.weight.dtype == gate.e_score_correction_bias.dtype == torch.float32


def test_gradient_reaches_the_gate_but_the_bias_is_no_parameter() -> None:
    gate = make(**ROUTERS["v3"])
    gate(inputs()).weights_BTK.square().sum().backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.any()
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert list(gate.state_dict()) == ["weight", "e_score_correction_bias"]
    assert list(make().state_dict()) == ["weight"]


def test_routing_twice_is_identical() -> None:
    gate, x = make(**ROUTERS["v3"]), inputs()
    first, second = gate(x), gate(x)
    assert torch.equal(first.indices_BTK, second.indices_BTK)
    assert torch.equal(first.weights_BTK, second.weights_BTK)


def test_vanishing_scores_normalise_to_zero_and_not_nan() -> None:
    gate = make(score="sigmoid", normalize=True)
    with torch.no_grad():
        gate.weight.fill_(-1.0)
    assert gate(torch.full((1, 2, HIDDEN), 100.0)).weights_BTK.isfinite().all()
