"""Balance losses and load statistics against loops over tokens, and what must hold for any routing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.model.forward_options import PackedSequences
from fathom.model.moe import Routing
from fathom.model.moe.balance import (
    SequenceIndex,
    balance_loss,
    communication_loss,
    device_loss,
    expert_balance_loss,
    expert_counts,
    load_entropy,
    max_load,
    num_dropped_pairs,
    sequence_loss,
    updated_bias,
)
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, MixtureOfExperts


def routed(scores: Tensor, chosen: int, bias: Tensor | None = None) -> Routing:
    indices = (scores if bias is None else scores + bias).topk(chosen, dim=-1).indices
    return Routing(scores, indices, scores.gather(-1, indices))


def sample(seed: int = 0, batch: int = 2, tokens: int = 9, experts: int = 8, chosen: int = 3) -> Routing:
    logits = torch.randn(batch, tokens, experts, generator=torch.Generator().manual_seed(seed))
    return routed(logits.softmax(-1), chosen)


def uniform() -> Routing:
    """Eight tokens, eight experts: each token takes experts t and t + 4, every expert is taken twice, scores are even.

    With four devices each token reaches exactly two, and each device is reached by four tokens.
    """
    tokens = torch.arange(8)
    indices = torch.stack((tokens, (tokens + 4) % 8), -1)[None]
    return Routing(torch.full((1, 8, 8), 1 / 8), indices, torch.full((1, 8, 2), 1 / 8))


def frequencies(indices: list[list[int]], experts: int) -> list[float]:
    return [experts / (len(indices[0]) * len(indices)) * sum(e in token for token in indices) for e in range(experts)]


def shares(scores: list[list[float]]) -> list[float]:
    return [sum(token[e] for token in scores) / len(scores) for e in range(len(scores[0]))]


def oracle(routing: Routing, devices: int, per_token: int) -> tuple[float, float, float]:
    """V2 eqs 23-31 for the first sequence, with Python floats."""
    indices, scores = routing.indices_BTK[0].tolist(), routing.scores_BTE[0].tolist()
    experts, tokens = len(scores[0]), len(scores)
    size = experts // devices
    f, p = frequencies(indices, experts), shares(scores)
    f_device = [sum(f[d * size : (d + 1) * size]) / size for d in range(devices)]
    p_device = [sum(p[d * size : (d + 1) * size]) for d in range(devices)]
    sent = [sum(any(e // size == d for e in token) for token in indices) for d in range(devices)]
    f_sent = [devices / (per_token * tokens) * count for count in sent]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return dot(f, p), dot(f_device, p_device), dot(f_sent, p_device)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_formulas(seed: int) -> None:
    routing = sample(seed, batch=1)
    expert, device, communication = oracle(routing, devices=4, per_token=2)
    assert float(expert_balance_loss(routing)) == pytest.approx(expert, rel=1e-5)
    assert float(device_loss(routing, devices=4)) == pytest.approx(device, rel=1e-5)
    assert float(communication_loss(routing, devices=4, devices_per_token=2)) == pytest.approx(communication, rel=1e-5)


def loss_of(name: str, routing: Routing, **options: Any) -> Tensor:
    match name:
        case "expert":
            return expert_balance_loss(routing, **options)
        case "device":
            return device_loss(routing, devices=4, **options)
        case _:
            return communication_loss(routing, devices=4, devices_per_token=2, **options)


@pytest.mark.parametrize("name", ["expert", "device", "communication"])
def test_sequence_scope_averages_sequences_and_batch_scope_joins_them(name: str) -> None:
    routing = sample(batch=3)
    parts = [
        Routing(routing.scores_BTE[b : b + 1], routing.indices_BTK[b : b + 1], routing.weights_BTK[b : b + 1])
        for b in range(3)
    ]
    each = torch.stack([loss_of(name, part) for part in parts]).mean()
    torch.testing.assert_close(loss_of(name, routing, scope="sequence"), each)
    joined = Routing(*(t.flatten(0, 1)[None] for t in (routing.scores_BTE, routing.indices_BTK, routing.weights_BTK)))
    whole = loss_of(name, joined)
    torch.testing.assert_close(loss_of(name, routing, scope="batch"), whole)
    assert abs(float(whole - each)) > 1e-4


def pick(routing: Routing, rows: list[int]) -> Routing:
    """Some tokens of a single row as a row of their own."""
    return Routing(routing.scores_BTE[:, rows], routing.indices_BTK[:, rows], routing.weights_BTK[:, rows])


@st.composite
def packings(draw: st.DrawFn) -> PackedSequences:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    prefixes, complete = [], 0
    for length in lengths:
        prefix = draw(st.integers(0, complete))
        complete = complete if prefix else length
        prefixes.append(prefix)
    return PackedSequences(tuple(lengths), draw(st.sampled_from([None, tuple(prefixes)])))


@given(packings(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packed_sequences_cost_what_each_costs_alone(packed: PackedSequences, seed: int) -> None:
    """V2 eqs 23-31 and V3 eqs 17-20 of every sequence, its shared prefix included, averaged over sequences."""
    routing = sample(seed, batch=1, tokens=packed.num_tokens)
    sequences = SequenceIndex.of(packed, torch.device("cpu"))
    whole: list[list[int]] = []
    start, complete = 0, [0]
    for length, prefix in zip(packed.lengths, packed.shared_prefix_lengths or [0] * 99, strict=False):
        own = list(range(start, start + length))
        complete = complete if prefix else own
        whole.append(complete[:prefix] + own)
        start += length
    each = [pick(routing, rows) for rows in whole]
    expected = torch.tensor([oracle(one, devices=4, per_token=2) for one in each]).mean(0)
    for name, value in zip(("expert", "device", "communication"), expected, strict=True):
        assert float(loss_of(name, routing, sequences=sequences)) == pytest.approx(float(value), rel=1e-4)
        batch = loss_of(name, routing, sequences=sequences, scope="batch")
        torch.testing.assert_close(batch, loss_of(name, routing, scope="batch"))
    printed = torch.stack([sequence_loss(one) for one in each]).mean()
    torch.testing.assert_close(sequence_loss(routing, sequences=sequences), printed)
    first = torch.stack([expert_balance_loss(one, counted="first") for one in each]).mean()
    torch.testing.assert_close(expert_balance_loss(routing, counted="first", sequences=sequences), first)


@pytest.mark.parametrize("name", ["expert", "device", "communication"])
def test_gradients_of_packed_sequences_are_those_of_rows(name: str) -> None:
    logits = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(6), requires_grad=True)
    packed = SequenceIndex.of(PackedSequences((6, 6, 6)), torch.device("cpu"))
    rows = loss_of(name, routed(logits.softmax(-1), 2))
    one = loss_of(name, routed(logits.flatten(0, 1)[None].softmax(-1), 2), sequences=packed)
    torch.testing.assert_close(one, rows)
    torch.testing.assert_close(torch.autograd.grad(one, logits), torch.autograd.grad(rows, logits))


def mixture(**balance: Any) -> MixtureOfExperts:
    router = spec.RouterSpec(balance=BalanceSpec(**balance))
    return MixtureOfExperts(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=4, router=router)


WEIGHTS = {"expert_loss": 0.003, "device_loss": 0.05, "communication_loss": 0.02, "sequence_loss": 1e-4}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_uniform_routing_costs_exactly_the_weight(name: str, scope: spec.BalanceScope) -> None:
    routing = uniform()
    moe = mixture(**{name: WEIGHTS[name]}, scope=scope, devices=4, devices_per_token=2)
    if name == "sequence_loss":
        # This loss looks at the scores alone: let each token's own two be the best.
        scores = torch.full((1, 8, 8), 0.1).scatter(2, routing.indices_BTK, 0.4)
        routing = Routing(scores, routing.indices_BTK, routing.weights_BTK)
    assert float(balance_loss(routing, moe)) == pytest.approx(WEIGHTS[name], rel=1e-6)


def test_balance_loss_adds_what_the_spec_weighs() -> None:
    routing = sample(chosen=2)
    moe = mixture(**WEIGHTS, devices=4, devices_per_token=2)
    expected = (
        0.003 * expert_balance_loss(routing)
        + 0.05 * device_loss(routing, devices=4)
        + 0.02 * communication_loss(routing, devices=4, devices_per_token=2)
        + 1e-4 * sequence_loss(routing)
    )
    torch.testing.assert_close(balance_loss(routing, moe), expected)
    nothing = balance_loss(routing, mixture())
    assert float(nothing) == 0
    assert nothing.dtype == torch.float32


def test_sequence_loss_counts_scores_without_the_bias_and_normalises_them() -> None:
    scores = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(4))
    biased = routed(scores, 2, bias=torch.linspace(5, -5, 8))
    each = []
    for b in range(2):
        chosen = [sorted(range(8), key=lambda e, row=row: -row[e])[:2] for row in scores[b].tolist()]
        p = shares([[value / sum(row) for value in row] for row in scores[b].tolist()])
        each.append(sum(f * q for f, q in zip(frequencies(chosen, 8), p, strict=True)))
    assert float(sequence_loss(biased)) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert float(expert_balance_loss(biased)) != pytest.approx(sum(each) / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["expert", "device", "communication"])
def test_gradient_flows_through_the_mean_scores_only(name: str) -> None:
    logits = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    scores = logits.softmax(-1)
    routing = routed(scores, 2)
    (actual,) = torch.autograd.grad(loss_of(name, routing), logits)
    mean = logits.softmax(-1).mean(1)[0]
    slopes = [float(loss_of(name, Routing(e.expand(1, 9, 8), routing.indices_BTK, scores))) for e in torch.eye(8)]
    (expected,) = torch.autograd.grad((mean * torch.tensor(slopes)).sum(), logits)
    torch.testing.assert_close(actual, expected)
    assert actual.any()


def test_descending_the_expert_loss_evens_the_load() -> None:
    logits = (
        torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(2)) + torch.linspace(2, -2, 8)
    ).requires_grad_()
    before = load_entropy(expert_counts(routed(logits.softmax(-1), 2), 8))
    for _ in range(50):
        (slope,) = torch.autograd.grad(expert_balance_loss(routed(logits.softmax(-1), 2)), logits)
        logits = (logits - 20 * slope).detach().requires_grad_()
    assert load_entropy(expert_counts(routed(logits.softmax(-1), 2), 8)) > before + 0.02


def test_counts_are_demand_and_dropped_pairs_are_counted_apart() -> None:
    indices = torch.tensor([[[0, 3], [3, 1]]])
    scores = torch.zeros(1, 2, 5)
    kept = torch.tensor([[[True, False], [False, True]]])
    routing = Routing(scores, indices, torch.zeros(1, 2, 2), kept)
    counts = expert_counts(routing, 5)
    assert counts.tolist() == [1, 1, 0, 2, 0]
    assert counts.dtype == torch.int64
    assert int(num_dropped_pairs(routing)) == 2
    assert int(num_dropped_pairs(Routing(scores, indices, torch.zeros(1, 2, 2)))) == 0


def test_load_entropy_and_max_load_at_their_ends() -> None:
    even, alone, none = torch.tensor([5, 5, 5, 5]), torch.tensor([0, 20, 0, 0]), torch.tensor([0, 0, 0, 0])
    assert float(load_entropy(even)) == pytest.approx(1)
    assert float(load_entropy(alone)) == 0
    assert float(load_entropy(none)) == 1
    assert float(load_entropy(torch.tensor([7]))) == 1
    assert float(load_entropy(torch.tensor([3, 1]))) == pytest.approx(
        -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)), rel=1e-6
    )
    assert [float(max_load(counts)) for counts in (even, alone, none)] == [1, 4, 1]


def test_bias_falls_where_overloaded_and_rises_where_idle() -> None:
    bias, counts = torch.tensor([0.5, 0.0, -0.25, 0.0]), torch.tensor([10, 4, 0, 2])
    updated = updated_bias(bias, counts, 0.001)
    assert updated.tolist() == pytest.approx([0.499, 0.0, -0.249, 0.001])
    assert bias.tolist() == [0.5, 0.0, -0.25, 0.0]
    assert updated.dtype == torch.float32


def test_repeated_bias_updates_even_the_load() -> None:
    scores = (torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(6)) + torch.linspace(1, -1, 8)).sigmoid()
    bias = torch.zeros(8)
    before = max_load(expert_counts(routed(scores, 2), 8))
    for _ in range(200):
        bias = updated_bias(bias, expert_counts(routed(scores, 2, bias), 8), 0.005)
    after = max_load(expert_counts(routed(scores, 2, bias), 8))
    assert before > 1.6
    assert after < 1.15


counts_lists = st.lists(st.integers(0, 10**6), min_size=2, max_size=32)


@given(counts_lists, st.randoms())
@settings(max_examples=60, deadline=None)
def test_load_statistics_are_bounded_and_forget_order(values: list[int], random: Any) -> None:
    counts = torch.tensor(values)
    entropy, busiest = float(load_entropy(counts)), float(max_load(counts))
    assert 0 <= entropy <= 1 + 1e-6
    assert 1 - 1e-6 <= busiest <= len(values) * (1 + 1e-6)
    shuffled = list(values)
    random.shuffle(shuffled)
    assert float(load_entropy(torch.tensor(shuffled))) == pytest.approx(entropy, abs=1e-6)


@given(counts_lists, st.floats(1e-5, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_bias_update_moves_each_expert_by_the_rate_or_not_at_all(values: list[int], rate: float) -> None:
    moved = updated_bias(torch.zeros(len(values)), torch.tensor(values), rate).tolist()
    mean = sum(values) / len(values)
    for load, change in zip(values, moved, strict=True):
        if abs(load - mean) > 1e-6:
            assert change == pytest.approx(math.copysign(rate, mean - load), rel=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_losses_of_any_routing(seed: int, chosen: int, devices: int, tokens: int) -> None:
    routing = sample(seed, batch=2, tokens=tokens, experts=8, chosen=chosen)
    assert int(expert_counts(routing, 8).sum()) == routing.indices_BTK.numel()
    loss = float(expert_balance_loss(routing))
    assert 0 < loss <= 8 / chosen * (1 + 1e-5)
    # One expert a device makes the device loss the expert loss; one device makes it 1, whatever the routing.
    assert float(device_loss(routing, devices=8)) == pytest.approx(loss, rel=1e-5)
    assert float(device_loss(routing, devices=1)) == pytest.approx(1, rel=1e-5)
    assert float(communication_loss(routing, devices=1, devices_per_token=1)) == pytest.approx(1, rel=1e-5)
    assert 0 < float(communication_loss(routing, devices=devices, devices_per_token=1)) <= devices * (1 + 1e-5)
