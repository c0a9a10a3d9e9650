"""Forced experts against the gate's formulas and a whole model written out token by token."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.errors import DataError, SpecError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.forward_options import PackedSequences, RoutingOptions
from fathom.model.moe import MoELayer, Router, Routing, RoutingContext, chosen_experts, routing_agreement_sums
from fathom.model.moe.balance import expert_balance_loss, expert_counts
from fathom.spec import ModelSpec
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, Capacity, GroupLimited, MixtureOfExperts

HIDDEN, EXPERTS, CHOSEN = 12, 8, 2
ROUTERS: dict[str, dict[str, Any]] = {
    "top k": {},
    "top k, normalised": {"normalize": True, "scale": 3.0},
    "noisy": {"score": "noisy", "normalize": True},
    "group-limited": {"select": GroupLimited(n_group=4, topk_group=2), "scale": 16.0},
    "capacity": {"select": Capacity(capacity_factor=1.0, eval_capacity_factor=1.0), "normalize": True},
    "budget": {"balance": BalanceSpec(capacity_factor=0.5, devices=2)},
    "v3": {
        "score": "sigmoid",
        "select": GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
        "selection_bias": True,
        "normalize": True,
        "scale": 2.5,
    },
}


def make(name: str) -> Router:
    moe = MixtureOfExperts(
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=8,
        router=spec.RouterSpec(**ROUTERS[name]),
    )
    gate, generator = Router(HIDDEN, moe), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if gate.e_score_correction_bias is not None:
            gate.e_score_correction_bias.copy_(torch.randn(EXPERTS, generator=generator) - 2)
    return gate


def inputs() -> Tensor:
    return torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(1))


def others(*shape: int) -> Tensor:
    """Draw different experts for each token."""
    drawn = torch.rand(*shape, EXPERTS, generator=torch.Generator().manual_seed(2))
    return drawn.argsort(-1)[..., :CHOSEN]


def loss(routing: Routing) -> Tensor:
    return (routing.weights_BTK * torch.arange(1, CHOSEN + 1)).square().sum()


def context(forced_BTK: Tensor | None = None) -> RoutingContext:
    return RoutingContext(exempt_B=torch.tensor([True, False]), forced_BTK=forced_BTK)


@pytest.mark.parametrize("name", ROUTERS)
def test_forcing_a_routers_own_choice_changes_no_bit(name: str) -> None:
    left, right = make(name), make(name)
    own = left(inputs(), context())
    forced = right(inputs(), context(own.indices_BTK))
    assert torch.equal(own.indices_BTK, forced.indices_BTK)
    assert torch.equal(own.weights_BTK, forced.weights_BTK)
    assert (own.kept_BTK is None) == (name not in ("capacity", "budget"))
    if own.kept_BTK is not None:
        assert not own.kept_BTK.all()
        assert torch.equal(own.kept_BTK, forced.kept_BTK)
    for gate, routing in ((left, own), (right, forced)):
        loss(routing).backward()
        assert gate.weight.grad.any()
    assert torch.equal(left.weight.grad, right.weight.grad)
    with torch.no_grad():
        assert torch.equal(
            left.eval()(inputs()).weights_BTK, right.eval()(inputs(), context(own.indices_BTK)).weights_BTK
        )


@pytest.mark.parametrize("name", ROUTERS)
def test_forced_experts_are_weighed_by_the_scores_they_have_now(name: str) -> None:
    gate, forced_BTK = make(name), others(2, 9)
    routing = gate(inputs(), context(forced_BTK))
    assert torch.equal(routing.indices_BTK, forced_BTK)
    loss(routing).backward()

    weight = gate.weight.detach().clone().requires_grad_()
    logits = inputs() @ weight.T
    scores = logits.sigmoid() if gate.spec.score == "sigmoid" else logits.exp() / logits.exp().sum(-1, keepdim=True)
    picked = (F.one_hot(forced_BTK, EXPERTS) * scores[..., None, :]).sum(-1)
    expected = gate.spec.scale * (picked / picked.sum(-1, keepdim=True) if gate.spec.normalize else picked)
    torch.testing.assert_close(routing.weights_BTK, expected)
    with torch.no_grad():
        torch.testing.assert_close(gate(inputs(), context(forced_BTK)).weights_BTK, expected)
    (expected * torch.arange(1, CHOSEN + 1)).square().sum().backward()
    torch.testing.assert_close(gate.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_token_with_an_unknown_expert_is_the_routers_own(name: str) -> None:
    gate, forced_BTK = make(name), others(2, 9)
    own = gate(inputs()).indices_BTK
    forced_BTK[0, :4] = -1
    forced_BTK[1, 2, 1] = -1
    mine = torch.zeros(2, 9, 1, dtype=torch.bool)
    mine[0, :4] = mine[1, 2] = True
    assert torch.equal(gate(inputs(), context(forced_BTK)).indices_BTK, torch.where(mine, own, forced_BTK))


def test_counts_losses_and_capacity_are_those_of_the_experts_used() -> None:
    forced_BTK = torch.tensor([3, 5]).expand(2, 9, CHOSEN)
    routing = make("capacity")(inputs(), context(forced_BTK))
    assert expert_counts(routing, EXPERTS).tolist() == [0, 0, 0, 18, 0, 18, 0, 0]
    mean_E = routing.scores_BTE.mean(1)
    expected = (EXPERTS / CHOSEN * (mean_E[:, 3] + mean_E[:, 5])).mean()
    torch.testing.assert_close(expert_balance_loss(routing), expected)
    assert routing.kept_BTK is not None
    assert routing.kept_BTK.all(-1).tolist() == [[True] + [False] * 8] * 2  # one place each


def written_out(layer: MoELayer, chosen_NK: Tensor, x_BTD: Tensor, _: object = None) -> tuple[Tensor, Routing]:
    """Run a mixture of experts token by token with a choice that is given (V2 eq 20, V3 eqs 12-16)."""
    gate, rows, weights = layer.gate, [], []
    for x, chosen in zip(x_BTD.flatten(0, 1), chosen_NK.tolist(), strict=True):
        logits = gate.weight @ x.float()
        scores = logits.sigmoid() if gate.spec.score == "sigmoid" else logits.softmax(-1)
        picked = torch.stack([scores[expert] for expert in chosen])
        picked = gate.spec.scale * (picked / picked.sum() if gate.spec.normalize else picked)
        y = layer.shared_experts(x)
        for value, expert in zip(picked, chosen, strict=True):
            a, b = layer.experts.gate_up_proj[expert] @ x
            y = y + value * (layer.experts.down_proj[expert] @ (F.silu(a) * b))
        rows.append(y)
        weights.append(scores)
    scores_BTE = torch.stack(weights).view(*x_BTD.shape[:2], -1)
    return torch.stack(rows).view_as(x_BTD), Routing(scores_BTE, chosen_NK[None], scores_BTE)


def every_other(make_spec: Callable[..., ModelSpec], name: str = "v3", **fields: Any) -> ModelSpec:
    """A model of which layers 2 and 4 of 6 are mixtures, so that places and indices differ."""
    moe = MixtureOfExperts(
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=8,
        n_shared_experts=1,
        router=spec.RouterSpec(**ROUTERS[name]),
    )
    return make_spec(num_hidden_layers=6, moe_layer_freq=2, moe=moe, **fields)


def perturbed(model: Decoder) -> Decoder:
    other, generator = deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


def replaying(experts_BTLK: Tensor) -> RoutingOptions:
    return RoutingOptions(replayed_experts_BTLK=experts_BTLK)


TOKENS = torch.randint(0, 100, (1, 14), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["v3", "group-limited", "top k, normalised"])
def test_a_recording_replayed_by_another_model_equals_that_model_written_out(
    latent_spec: Callable[..., ModelSpec], name: str, recompute: bool
) -> None:
    model = build(every_other(latent_spec, name), seed=0)
    routed_experts_BTLK = chosen_experts(model(TOKENS).routing)
    assert routed_experts_BTLK.shape == (1, 14, 2, CHOSEN)
    later = perturbed(model)
    assert not torch.equal(chosen_experts(later(TOKENS).routing), routed_experts_BTLK)
    oracle = deepcopy(later)
    for place, index in enumerate((2, 4)):
        mixture = oracle.layers[index].mlp
        mixture.forward = partial(written_out, mixture, routed_experts_BTLK[0, :, place])
    for packed in (None, PackedSequences((9, 5))):
        found = later(
            TOKENS, routing=replaying(routed_experts_BTLK.short()), packed=packed, checkpoint_activations=recompute
        )
        expected = oracle(TOKENS, packed=packed)
        assert torch.equal(chosen_experts(found.routing), routed_experts_BTLK)
        torch.testing.assert_close(found.hidden_BTD, expected.hidden_BTD, rtol=1e-4, atol=1e-5)
        for decoder, output in ((later, found), (oracle, expected)):
            decoder.zero_grad()
            (output.hidden_BTD * torch.linspace(-1, 1, 32)).sum().backward()
        for (key, left), right in zip(later.named_parameters(), oracle.parameters(), strict=True):
            if left.grad is not None or right.grad is not None:
                torch.testing.assert_close(left.grad, right.grad, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_that_replays_itself_is_the_same_to_the_bit(
    latent_spec: Callable[..., ModelSpec], recompute: bool
) -> None:
    left = build(every_other(latent_spec, num_nextn_predict_layers=1), seed=0)
    right = deepcopy(left)
    one = left(TOKENS, mtp=True)
    routes = chosen_experts(one.routing[:2])
    routes[0, 3:6] = -1
    two = right(TOKENS, mtp=True, routing=replaying(routes), checkpoint_activations=recompute)
    assert torch.equal(one.hidden_BTD, two.hidden_BTD)
    for output in (one, two):
        (output.hidden_BTD.square().sum() + output.mtp_hidden[0].square().sum()).backward()
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name


def test_mtp_modules_choose_for_themselves(latent_spec: Callable[..., ModelSpec]) -> None:
    model = build(every_other(latent_spec, num_nextn_predict_layers=1), seed=0)
    forced = others(1, 14, 2)
    output = model(TOKENS, mtp=True, routing=replaying(forced))
    assert torch.equal(chosen_experts(output.routing[:2]), forced)
    gate, last = model.mtp[0].block.mlp.gate, output.routing[2]
    assert torch.equal(last.indices_BTK, gate._choice(last.scores_BTE).topk(CHOSEN, dim=-1).indices)


def test_routes_that_are_not_this_models_are_refused(latent_spec: Callable[..., ModelSpec]) -> None:
    model = build(every_other(latent_spec), seed=0)
    with pytest.raises(SpecError, match=r"of shape \(1, 14, 1, 2\) instead of integers of shape \(1, 14, 2, 2\)"):
        model(TOKENS, routing=replaying(others(1, 14, 1)))
    with pytest.raises(SpecError, match=r"torch.float32 of shape"):
        model(TOKENS, routing=replaying(others(1, 14, 2).float()))
    with pytest.raises(SpecError, match="names expert 8 of 8"):
        model(TOKENS, routing=replaying(others(1, 14, 2) + 1))
    dense = build(replace(every_other(latent_spec), moe=None, moe_layer_freq=1, first_k_dense_replace=0), seed=0)
    with pytest.raises(SpecError, match="has no mixture of experts"):
        dense(TOKENS, routing=replaying(others(1, 14, 2)))


def test_agreement_counts_sets_and_leaves_the_unknown_out() -> None:
    recorded = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[-1, -1], [-1, -1]], [[1, 2], [0, 7]]])
    used = torch.tensor([[[1, 0], [2, 4]], [[4, 5], [7, 6]], [[-1, -1], [2, 3]], [[3, 4], [-1, -1]]])
    sums = routing_agreement_sums(recorded.short(), used)
    assert {name: float(value) for name, value in sums.items()} == {
        "routing_tokens": 2.5,  # the last is known in one layer of two
        "routing_equal": 1.5,
        "routing_shared": 1.75,
    }
    with pytest.raises(DataError, match=r"\(4, 2, 2\) recorded and \(4, 1, 2\) used"):
        routing_agreement_sums(recorded, used[:, :1])
