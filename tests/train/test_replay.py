"""A step on a batch that says where its tokens went when they were sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.errors import DataError
from fathom.model.build import build
from fathom.model.forward_options import PackedSequences, RoutingOptions
from fathom.model.moe import chosen_experts
from fathom.spec import BalanceSpec, ModelSpec
from fathom.spec.train import BatchSpec, TrainSpec
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.train.accumulate import take

LENGTHS = (9, 4, 4, 12)


@pytest.fixture
def spec(model_spec: ModelSpec) -> ModelSpec:
    """Three layers, of which two are mixtures that one micro-batch cannot unbalance, and an MTP module."""
    assert model_spec.moe is not None
    router = replace(model_spec.moe.router, balance=BalanceSpec(bias_update_rate=0.01))
    moe = replace(model_spec.moe, router=router)
    return replace(model_spec, moe=moe, num_hidden_layers=3, initializer_range=0.2)


def runner(spec: ModelSpec, train: TrainSpec, micro: int, *, replay: bool = False) -> StepRunner:
    model = build(spec).train()
    train = replace(train, batch=BatchSpec(size=16, micro_batch_size=micro), sequence_length=9)
    return StepRunner(model, make_optimizer(model, train.optimizer), train, replay_routing=replay)


def batch(routes_NLK: Tensor | None) -> PackedBatch:
    tokens_N = torch.randint(3, 64, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    columns = {} if routes_NLK is None else {"routes": routes_NLK.short()}
    return PackedBatch(tokens_N, tokens_N.roll(-1), LENGTHS, columns)


def drawn(layers: int = 2) -> Tensor:
    """Other experts than the router's, of which some are unknown."""
    routes = torch.rand(sum(LENGTHS), layers, 8, generator=torch.Generator().manual_seed(1)).argsort(-1)[..., :2]
    routes[5:9] = -1
    return routes


@torch.no_grad()
def own(runner: StepRunner) -> Tensor:
    return chosen_experts(runner.model(batch(None).tokens_N[None], packed=PackedSequences(LENGTHS)).routing)[0]


@pytest.mark.parametrize("micro", [1, 16])
def test_agreement_adds_up_over_micro_batches(spec: ModelSpec, train_spec: TrainSpec, micro: int) -> None:
    step = runner(spec, train_spec, micro)
    mine, given = own(step), drawn()
    given[20:] = mine[20:].flip(-1)  # the same sets in another order
    found = take(step, batch(given), 1, observe=False).sums
    known = [token for token in range(29) if not 5 <= token < 9]
    pairs = [
        (set(a), set(b)) for token in known for a, b in zip(given[token].tolist(), mine[token].tolist(), strict=True)
    ]
    assert found == {
        "routing_tokens": len(known),
        "routing_equal": pytest.approx(sum(a == b for a, b in pairs) / 2),
        "routing_shared": pytest.approx(sum(len(a & b) for a, b in pairs) / 4),
    }
    assert 9 <= found["routing_equal"] < 20
    assert take(step, batch(None), 2, observe=False).sums == {}


@pytest.mark.parametrize("micro", [1, 16])
def test_replay_learns_as_the_model_does_that_is_sent_there(spec: ModelSpec, train_spec: TrainSpec, micro: int) -> None:
    step, plain = (runner(spec, train_spec, micro, replay=replay) for replay in (True, False))
    given = drawn()
    found = take(step, batch(given), 1, observe=False)
    whole, model = batch(None), build(spec)
    output = model(
        whole.tokens_N[None], packed=PackedSequences(LENGTHS), routing=RoutingOptions(replayed_experts_BTLK=given[None])
    )
    loss = torch.nn.functional.cross_entropy(model.logits(output.hidden_BTD[0]), whole.targets_N)
    loss.backward()
    assert found.objective == pytest.approx(loss.item(), rel=1e-5)
    assert found.objective != pytest.approx(take(plain, batch(given), 1, observe=False).objective, rel=1e-4)
    for (name, left), right in zip(step.model.named_parameters(), model.parameters(), strict=True):
        if right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert found.sums["routing_equal"] == found.sums["routing_shared"] == found.sums["routing_tokens"] == 25
    used_NLK = torch.where(given < 0, chosen_experts(output.routing)[0], given)
    counts = [torch.bincount(used_NLK[:, layer].flatten(), minlength=8).tolist() for layer in range(2)]
    assert found.counts_LE is not None
    assert found.counts_LE.tolist() == counts


def test_replay_without_routes_or_with_another_models_is_refused(spec: ModelSpec, train_spec: TrainSpec) -> None:
    with pytest.raises(DataError, match='no routes to replay; give column "routes"'):
        take(runner(spec, train_spec, 1, replay=True), batch(None), 1, observe=False)
    with pytest.raises(DataError, match=r"\(29, 1, 2\) recorded and \(29, 2, 2\) used"):
        take(runner(spec, train_spec, 16), batch(drawn(1)), 1, observe=False)
