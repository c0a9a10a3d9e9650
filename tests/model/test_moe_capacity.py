"""Capacity in the order of the text: GShard's Algorithm 1 and Switch's overflow, written out as loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.model.moe import MoELayer, Router, Routing, RoutingContext
from fathom.model.moe.balance import balance_loss, expert_balance_loss, expert_counts, num_dropped_pairs
from fathom.model.moe.drop import keep_in_order
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, Capacity, MixtureOfExperts

EXPERTS, HIDDEN, BATCH, TOKENS = 4, 6, 3, 12
SEEDS = torch.tensor([3, 5, 8])


def mixture(chosen: int = 2, **router: object) -> MixtureOfExperts:
    fields = {"select": Capacity(capacity_factor=1.0), "normalize": chosen > 1} | router
    return MixtureOfExperts(
        n_routed_experts=EXPERTS,
        num_experts_per_tok=chosen,
        moe_intermediate_size=5,
        router=spec.RouterSpec(**fields),  # type: ignore[arg-type]
    )


def gate(chosen: int = 2, **router: object) -> Router:
    made = Router(HIDDEN, mixture(chosen, **router))
    assert made.weight is not None
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(0)))
    return made


def inputs() -> Tensor:
    return torch.randn(BATCH, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1)) + 0.5


def places_by_hand(indices: Tensor, slots: int) -> Tensor:
    """Serve every token's first choice in order, then every token's second choice in order."""
    groups, tokens, chosen = indices.shape
    kept = torch.zeros_like(indices, dtype=torch.bool)
    for g in range(groups):
        used = [0] * EXPERTS
        for k in range(chosen):
            for t in range(tokens):
                expert = int(indices[g, t, k])
                kept[g, t, k] = used[expert] < slots
                used[expert] += 1
    return kept


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_places_go_in_order_of_choice_and_text(seed: int, chosen: int, slots: int) -> None:
    scores = torch.rand(3, 7, EXPERTS, generator=torch.Generator().manual_seed(seed)) * torch.tensor([2.0, 1, 1, 1])
    indices = scores.topk(chosen, dim=-1).indices
    assert torch.equal(keep_in_order(indices, slots=slots, num_experts=EXPERTS), places_by_hand(indices, slots))


def algorithm_1(scores: Tensor, slots: int, drawn: Tensor | None) -> tuple[Tensor, float]:
    """GShard Alg. 1 of one group, line by line: combine weights (S, E) and l_aux."""
    tokens, experts = scores.shape
    combine, count = torch.zeros(tokens, experts), [0] * experts
    for s in range(tokens):
        (g1, g2), (e1, _) = (x.tolist() for x in scores[s].topk(2))
        if count[e1] < slots:
            combine[s, e1] = g1 / (g1 + g2)
        count[e1] += 1
    auxiliary = sum(count[e] / tokens * float(scores[:, e].mean()) for e in range(experts)) / experts
    for s in range(tokens):
        (g1, g2), (_, e2) = (x.tolist() for x in scores[s].topk(2))
        second = g2 / (g1 + g2)
        if count[e2] < slots and (drawn is None or 2 * second > float(drawn[s])):
            combine[s, e2] = second
        count[e2] += 1
    return combine, auxiliary


def combined(routing: Routing) -> Tensor:
    """Combine weights (B, T, E) of a routing."""
    assert routing.kept_BTK is not None
    kept_weights = routing.weights_BTK * routing.kept_BTK
    return torch.zeros_like(routing.scores_BTE).scatter_(-1, routing.indices_BTK, kept_weights)


@pytest.mark.parametrize("group", ["sequence", "batch"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_gshard_equals_algorithm_1(group: spec.BalanceScope, factor: float) -> None:
    routing = gate(select=Capacity(capacity_factor=factor, group=group))(inputs())
    scores = routing.scores_BTE if group == "sequence" else routing.scores_BTE.flatten(0, 1)[None]
    slots = int(factor * scores.shape[1] / EXPERTS)
    expected = [algorithm_1(group_scores, slots, None) for group_scores in scores.detach()]
    actual = combined(routing).view_as(scores)
    torch.testing.assert_close(actual, torch.stack([weights for weights, _ in expected]))
    auxiliary = torch.tensor([loss for _, loss in expected]).mean()
    torch.testing.assert_close(
        expert_balance_loss(routing, scope=group, counted="first") / EXPERTS**2, auxiliary, rtol=1e-5, atol=1e-7
    )
    assert (
        0
        < int(num_dropped_pairs(routing))
        == int((actual == 0).sum()) - scores.shape[0] * scores.shape[1] * (EXPERTS - 2)
    )


def test_second_experts_are_used_with_twice_their_weights_probability() -> None:
    router = gate(select=Capacity(capacity_factor=9.0, second="random"))
    x = inputs()
    seeds = torch.arange(4000)
    wanted = torch.stack([router(x, RoutingContext(seeds_B=seeds[i : i + 3])).wanted_BTK for i in range(2000)]).float()
    assert wanted[..., 0].all()
    probability = (2 * router(x).weights_BTK[..., 1]).clamp(max=1)
    assert (wanted[..., 1].mean(0) - probability).abs().max() < 0.05


def test_an_unwanted_second_expert_holds_its_place_and_counts_as_no_loss() -> None:
    routing = gate(select=Capacity(capacity_factor=1.0, second="random"))(inputs(), RoutingContext(seeds_B=SEEDS))
    assert routing.kept_BTK is not None
    assert routing.wanted_BTK is not None
    assert not routing.wanted_BTK.all()
    places = places_by_hand(routing.indices_BTK, TOKENS // EXPERTS)
    assert torch.equal(routing.kept_BTK, places & routing.wanted_BTK)
    assert int(num_dropped_pairs(routing)) == int((~places & routing.wanted_BTK).sum())
    assert int(expert_counts(routing, EXPERTS).sum()) == routing.indices_BTK.numel()


def test_evaluation_uses_its_own_factor_and_never_draws() -> None:
    x = inputs()
    free = gate(select=Capacity(capacity_factor=0.5, second="random")).eval()
    assert free(x, RoutingContext(seeds_B=SEEDS)).kept_BTK is None
    tight = gate(select=Capacity(capacity_factor=9.0, eval_capacity_factor=1.0, second="random")).eval()
    routing = tight(x, RoutingContext(seeds_B=SEEDS))
    assert routing.wanted_BTK is None
    assert torch.equal(routing.kept_BTK, places_by_hand(routing.indices_BTK, TOKENS // EXPERTS))


def test_one_token_alone_always_finds_a_place() -> None:
    assert gate(select=Capacity(capacity_factor=0.1))(inputs()[:, :1]).kept_BTK.all()


def test_switch_weighs_by_the_probability_and_overflow_contributes_nothing() -> None:
    layer = MoELayer(HIDDEN, mixture(chosen=1))
    x = inputs().requires_grad_()
    y, routing = layer(x)
    best = routing.scores_BTE.max(-1)
    torch.testing.assert_close(routing.weights_BTK[..., 0], best.values)
    assert torch.equal(routing.kept_BTK, places_by_hand(best.indices[..., None], TOKENS // EXPERTS))
    lost = ~routing.kept_BTK[..., 0]
    assert lost.any()
    assert torch.equal(y[lost], torch.zeros_like(y[lost]))
    assert (y[~lost] != 0).all(-1).all()
    y.sum().backward()
    assert layer.gate.weight.grad.abs().sum() > 0
    assert torch.equal(x.grad[lost], torch.zeros_like(x.grad[lost]))


def test_the_balance_losses_of_switch_and_gshard_are_expert_losses() -> None:
    switch = mixture(chosen=1, balance=BalanceSpec(expert_loss=0.01, scope="batch"))
    routing = gate(chosen=1)(inputs())
    chosen = routing.indices_BTK.flatten().tolist()
    fraction = torch.tensor([chosen.count(e) / len(chosen) for e in range(EXPERTS)])
    by_hand = 0.01 * EXPERTS * (fraction * routing.scores_BTE.flatten(0, 1).mean(0)).sum()
    torch.testing.assert_close(balance_loss(routing, switch), by_hand)
    weight = 0.1 / EXPERTS**2
    gshard = mixture(balance=BalanceSpec(expert_loss=weight, scope="sequence", counted="first"))
    routing = gate()(inputs())
    auxiliary = torch.tensor([algorithm_1(s, 99, None)[1] for s in routing.scores_BTE.detach()]).mean()
    torch.testing.assert_close(balance_loss(routing, gshard).detach(), 0.1 * auxiliary)


def test_routing_stays_float32_under_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(select=Capacity(capacity_factor=1.0, second="random"), jitter=0.1)(
            inputs().bfloat16(), RoutingContext(seeds_B=SEEDS)
        )
    assert routing.scores_BTE.dtype == routing.weights_BTK.dtype == torch.float32
