"""Noisy top-k gating against formulas written out, redrawn noise, and the routers of the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.errors import SpecError
from fathom.model.moe import balance
from fathom.model.moe.router import Noise, Routing
from fathom.study.shazeer.gating import (
    cv_squared,
    hierarchical_gating,
    importance,
    kth_excluding,
    load_probability,
    noisy_top_k,
)
from fathom.study.shazeer.layer import Gate, Layout, SparseMoE, grouped_relu


def drawn(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Clean logits, positive scales and noise."""
    generator = torch.Generator().manual_seed(seed)
    clean, raw, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return clean, F.softplus(raw), noise


def test_gates_are_a_softmax_over_the_k_best_noisy_logits() -> None:
    clean, scale, noise = drawn(50, 9)
    gates = noisy_top_k(clean, scale, noise, 3)
    noisy = (clean + scale * noise).numpy()
    for n in range(50):
        best = np.argsort(-noisy[n])[:3]
        assert gates.indices_NK[n].tolist() == best.tolist()
        weights = np.exp(noisy[n, best]) / np.exp(noisy[n, best]).sum()
        assert gates.weights_NK[n].numpy() == pytest.approx(weights, rel=1e-5)
    assert gates.weights_NK.sum(-1).numpy() == pytest.approx(np.ones(50), rel=1e-6)
    assert (gates.weights_NK > 0).all()


def test_without_noise_the_clean_logits_choose() -> None:
    clean, scale, _ = drawn(20, 6)
    gates = noisy_top_k(clean, scale, None, 2)
    assert torch.equal(gates.indices_NK, clean.topk(2).indices)


def test_kth_excluding_leaves_the_entry_itself_out() -> None:
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(3))
    for k in (1, 2, 6):
        found = kth_excluding(values, k)
        for n in range(30):
            for i in range(7):
                others = sorted((v for j, v in enumerate(values[n].tolist()) if j != i), reverse=True)
                assert found[n, i].item() == others[k - 1]


def test_the_load_estimator_is_how_often_an_expert_is_chosen_when_its_noise_alone_is_redrawn() -> None:
    clean, scale, noise = drawn(6, 5, seed=2)
    noisy, k, draws = clean + scale * noise, 2, 20_000
    chances = load_probability(clean, scale, noisy, k)
    generator = torch.Generator().manual_seed(7)
    for i in range(5):
        again = noisy.expand(draws, 6, 5).clone()
        again[..., i] = clean[:, i] + scale[:, i] * torch.randn(draws, 6, generator=generator)
        chosen = (again.topk(k, dim=-1).indices == i).any(-1).float().mean(0)
        assert chances[:, i].numpy() == pytest.approx(chosen.numpy(), abs=0.015)
    assert chances.min() < 0.2 < 0.8 < chances.max()


def test_load_has_a_gradient_where_counts_have_none() -> None:
    clean, scale, noise = drawn(40, 8)
    clean.requires_grad_()
    cv_squared(noisy_top_k(clean, scale, noise, 2).load_E).backward()
    assert clean.grad is not None
    assert clean.grad.abs().min() >= 0
    assert clean.grad.abs().sum() > 0


def test_losses_are_the_squared_coefficient_of_variation() -> None:
    clean, scale, noise = drawn(64, 8)
    gates = noisy_top_k(clean, scale, noise, 3)
    dense = np.zeros((64, 8))
    np.put_along_axis(dense, gates.indices_NK.numpy(), gates.weights_NK.numpy(), axis=1)
    totals = dense.sum(0)
    assert gates.importance_E.numpy() == pytest.approx(totals, rel=1e-5)
    assert cv_squared(gates.importance_E).item() == pytest.approx((totals.std() / totals.mean()) ** 2, rel=1e-4)
    load = load_probability(clean, scale, clean + scale * noise, 3).sum(0).numpy()
    assert cv_squared(gates.load_E).item() == pytest.approx((load.std() / load.mean()) ** 2, rel=1e-4)
    assert cv_squared(torch.full((5,), 3.0)).item() == 0


def test_zero_weights_begin_with_a_balanced_load() -> None:
    for layout in (Layout(16, 4), Layout(16, 2, groups=4)):
        gate = Gate(12, layout)
        assert all(not parameter.any() for parameter in gate.parameters())
        gates = gate(torch.randn(4000, 12), torch.Generator().manual_seed(0))
        assert cv_squared(gates.load_E).sqrt() < 0.05
        counts = torch.bincount(gates.indices_NK.flatten(), minlength=16)
        assert counts.max() < 1.2 * counts.float().mean()


def test_all_experts_without_noise_are_a_dense_mixture() -> None:
    layer = SparseMoE(10, 14, Layout(5, 5))
    torch.nn.init.normal_(layer.gate.weight)
    x = torch.randn(20, 10)
    y, gates = layer(x)
    weights = (x @ layer.gate.weight[0].T).softmax(-1)
    dense = sum(weights[:, e, None] * ((x @ layer.up[e]).relu() @ layer.down[e]) for e in range(5))
    torch.testing.assert_close(y, dense, rtol=1e-4, atol=1e-5)
    assert gates.load_E.tolist() == [20.0] * 5
    (y.square().sum() + cv_squared(gates.load_E)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_grouped_experts_equal_one_token_at_a_time_also_in_their_slopes() -> None:
    generator = torch.Generator().manual_seed(4)
    x, up, down, raw = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((9, 4), (6, 4, 5), (6, 5, 4), (9, 2))
    )
    indices = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])  # experts 4 and 5 stay idle
    weights = raw.softmax(-1)
    y = grouped_relu(x, indices, weights, up, down)
    loop = torch.stack(
        [
            sum(weights[n, s] * ((x[n] @ up[e]).relu() @ down[e]) for s, e in enumerate(indices[n].tolist()))
            for n in range(9)
        ]
    )
    torch.testing.assert_close(y, loop, rtol=1e-10, atol=1e-12)
    outer = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    inputs = (x, up, down, raw)
    ours, theirs = (torch.autograd.grad((v * outer).sum(), inputs, retain_graph=True) for v in (y, loop))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert not ours[1][4:].any()


def test_two_levels_are_the_formulas_written_out() -> None:
    groups, members, tokens = 4, 3, 30
    primary, secondary = drawn(tokens, groups, seed=5), drawn(tokens, groups, members, seed=6)
    gates = hierarchical_gating(primary, secondary, (2, 2))
    outer = noisy_top_k(*primary, 2)
    dense, load = np.zeros((tokens, groups, members)), np.zeros((groups, members))
    for i in range(groups):
        inner = noisy_top_k(*(values[:, i] for values in secondary), 2)
        taken = (outer.indices_NK == i).any(-1)
        for n in torch.where(taken)[0].tolist():
            first = outer.weights_NK[n][outer.indices_NK[n] == i].item()
            for j, weight in zip(inner.indices_NK[n].tolist(), inner.weights_NK[n].tolist(), strict=True):
                dense[n, i, j] = first * weight
        subset = noisy_top_k(*(values[taken, i] for values in secondary), 2)
        load[i] = outer.load_E[i].item() * subset.load_E.numpy() / int(taken.sum())
    found = np.zeros((tokens, groups * members))
    np.put_along_axis(found, gates.indices_NK.numpy(), gates.weights_NK.detach().numpy(), axis=1)
    assert found == pytest.approx(dense.reshape(tokens, -1), abs=1e-6)
    assert (found > 0).sum(1).tolist() == [4] * tokens
    assert found.sum(1) == pytest.approx(np.ones(tokens), rel=1e-5)
    assert gates.importance_E.numpy() == pytest.approx(dense.sum(0).reshape(-1), rel=1e-4, abs=1e-6)
    assert gates.load_E.numpy() == pytest.approx(load.reshape(-1), rel=1e-4)


def test_a_two_level_layer_is_the_sum_over_groups_and_members() -> None:
    layer = SparseMoE(8, 6, Layout(12, 2, groups=4))
    for parameter in layer.gate.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(15, 8)
    y, _ = layer(x)

    def kept(logits: Tensor, k: int) -> Tensor:
        best, indices = logits.topk(k, dim=-1)
        return torch.full_like(logits, float("-inf")).scatter(-1, indices, best).softmax(-1)

    first = kept(x @ layer.gate.primary_weight[0].T, 2)
    expected = torch.zeros_like(x)
    for i in range(4):
        second = kept(x @ layer.gate.weight[0, 3 * i : 3 * i + 3].T, 2)
        for j in range(3):
            expert = (x @ layer.up[3 * i + j]).relu() @ layer.down[3 * i + j]
            expected = expected + first[:, i, None] * second[:, j, None] * expert
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_a_group_that_no_token_takes_has_no_load_and_no_nan() -> None:
    primary, secondary = drawn(5, 3), drawn(5, 3, 2, seed=1)
    primary[0][:, 2] = -1e4
    primary[0].requires_grad_()
    gates = hierarchical_gating(primary, secondary, (1, 1))
    assert gates.load_E[4:].tolist() == [0, 0]
    cv_squared(gates.load_E).backward()
    assert primary[0].grad is not None
    assert primary[0].grad.isfinite().all()


def test_the_losses_agree_with_those_of_the_models_routers() -> None:
    clean, scale, noise = drawn(24, 8)
    gates = noisy_top_k(clean, scale, noise, 3)
    noisy = clean + scale * noise
    routing = Routing(
        noisy.softmax(-1)[None],
        gates.indices_NK[None],
        gates.weights_NK[None],
        noise=Noise(clean[None], noisy[None], scale[None]),
    )
    ours = [cv_squared(values).item() for values in (gates.importance_E, gates.load_E)]
    theirs = [loss(routing).item() for loss in (balance.importance_loss, balance.load_loss)]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_importance_counts_a_repeated_expert_once_per_token() -> None:
    weights, indices = torch.tensor([[0.7, 0.3], [0.6, 0.4]]), torch.tensor([[0, 2], [2, 1]])
    assert importance(weights, indices, 4).tolist() == pytest.approx([0.7, 0.4, 0.9, 0.0])


@pytest.mark.parametrize("arguments", [(8, 9), (8, 0), (10, 2, 4), (16, 5, 4), (8, 3, 4)])
def test_layouts_that_cannot_be_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(SpecError):
        Layout(*arguments)


def test_names_and_experts_per_token() -> None:
    assert (Layout(32, 4).name, Layout(32, 4).per_token) == ("MoE-32", 4)
    assert (Layout(256, 2, 16).name, Layout(256, 2, 16).per_token) == ("MoE-256-h", 4)
