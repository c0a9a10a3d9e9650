"""Token dropping: budgets, who is spared, and who goes first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.model.moe import Router, RoutingContext, exempt_sequences
from fathom.model.moe.drop import keep_within_budget
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, MixtureOfExperts


def by_hand(
    affinity: Tensor, indices: Tensor, exempt: Tensor, experts_per_device: int, devices: int, factor: float
) -> Tensor:
    """Remove the weakest pair of every overfull device until it fits or only exempt pairs are left."""
    batch, tokens, chosen = affinity.shape
    kept = torch.ones_like(indices, dtype=torch.bool)
    places = [(b, t, k) for b in range(batch) for t in range(tokens) for k in range(chosen)]
    for device in range(devices):
        own = [place for place in places if int(indices[place]) // experts_per_device == device]
        weakest_first = sorted((p for p in own if not exempt[p[0]]), key=lambda p: float(affinity[p]))
        excess = len(own) - int(factor * len(places) / devices)
        for place in weakest_first[: max(excess, 0)]:
            kept[place] = False
    return kept


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.sampled_from([0.25, 0.5, 1.0, 1.25, 9.0]))
@settings(max_examples=50, deadline=None)
def test_dropping_equals_removing_the_weakest_one_by_one(seed: int, devices: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(4, 5, 8, generator=generator) * torch.linspace(1.5, 0.5, 8)
    affinity, indices = scores.topk(3, dim=-1)
    exempt = torch.rand(4, generator=generator) < 0.3
    expected = by_hand(affinity, indices, exempt, 8 // devices, devices, factor)
    actual = keep_within_budget(
        affinity, indices, exempt, experts_per_device=8 // devices, devices=devices, capacity_factor=factor
    )
    assert torch.equal(actual, expected)
    assert actual[exempt].all()


def test_exempt_pairs_count_against_the_budget() -> None:
    affinity, indices = torch.tensor([[[0.1], [0.2]], [[0.9], [0.8]]]), torch.zeros(2, 2, 1, dtype=torch.int64)

    def keep(first_exempt: bool) -> list[bool]:
        exempt = torch.tensor([first_exempt, False])
        kept = keep_within_budget(affinity, indices, exempt, experts_per_device=1, devices=1, capacity_factor=0.75)
        return kept.flatten().tolist()

    assert keep(False) == [False, True, True, True]
    assert keep(True) == [True, True, True, False]


def test_share_of_exempt_sequences() -> None:
    draws = exempt_sequences(20_000, 0.1, torch.Generator().manual_seed(0))
    assert draws.dtype == torch.bool
    assert 0.09 < float(draws.float().mean()) < 0.11
    assert torch.equal(draws, exempt_sequences(20_000, 0.1, torch.Generator().manual_seed(0)))
    assert not exempt_sequences(100, 0.0, torch.Generator()).any()
    assert exempt_sequences(100, 1.0, torch.Generator()).all()


def gate(factor: float | None) -> Router:
    moe = MixtureOfExperts(
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=4,
        router=spec.RouterSpec(balance=BalanceSpec(capacity_factor=factor, devices=4)),
    )
    router = Router(6, moe)
    with torch.no_grad():
        router.weight.copy_(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))
    return router


X = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(1))
EXEMPT = torch.tensor([True, False, False])


def test_training_drops_within_each_devices_budget() -> None:
    routing = gate(1.0)(X, RoutingContext(EXEMPT))
    kept = routing.kept_BTK
    assert kept is not None
    assert not kept.all()
    assert kept[0].all()
    devices = routing.indices_BTK // 2
    for device in range(4):
        here = devices == device
        assert int((here & kept).sum()) <= max(15, int(here[0].sum()))
        lost, stayed = here & ~kept, here & kept
        lost[0] = stayed[0] = False
        if lost.any() and stayed.any():
            assert routing.weights_BTK[lost].max() <= routing.weights_BTK[stayed].min()


@pytest.mark.parametrize("why", ["evaluation", "no capacity factor", "no exemption given"])
def test_otherwise_nothing_is_dropped(why: str) -> None:
    router = gate(None if why == "no capacity factor" else 1.0).train(why != "evaluation")
    assert router(X, None if why == "no exemption given" else RoutingContext(EXEMPT)).kept_BTK is None
