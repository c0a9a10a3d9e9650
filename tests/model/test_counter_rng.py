"""Noise, jitter, hashing and the draws behind them: distributions, formulas, and the same draws when recomputed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.errors import SpecError
from fathom.model import counter_rng as draws
from fathom.model.build import build
from fathom.model.cache import StaticCache
from fathom.model.forward_options import RoutingOptions
from fathom.model.moe import Router, RoutingContext
from fathom.model.moe.balance import importance_loss, load_loss, z_loss
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, Capacity, MixtureOfExperts

EXPERTS, HIDDEN, BATCH, TOKENS = 5, 6, 2, 7
SEEDS = torch.tensor([11, 2**61 + 5])


def gate(chosen: int = 2, **router: object) -> Router:
    made = Router(
        HIDDEN,
        MixtureOfExperts(
            n_routed_experts=EXPERTS,
            num_experts_per_tok=chosen,
            moe_intermediate_size=4,
            router=spec.RouterSpec(**router),  # type: ignore[arg-type]
        ),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def inputs() -> Tensor:
    return torch.randn(BATCH, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))


def splitmix64(state: int) -> int:
    """The published generator's next output, on Python's own integers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64() -> None:
    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    mixed = [value % (1 << 64) for value in draws.splitmix64(torch.tensor(values)).tolist()]
    assert mixed == [splitmix64(value) for value in values]
    first = draws.uniform(torch.tensor([42]), 3)[0].tolist()
    assert first == [(splitmix64(42 + i * 0x9E3779B97F4A7C15) >> 40) / 2**24 for i in range(3)]


def test_draws_have_their_distributions_and_are_independent_between_streams() -> None:
    seeds = torch.arange(200)
    drawn = draws.uniform(seeds, 1000)
    assert 0 <= float(drawn.min()) < float(drawn.max()) < 1
    histogram = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (histogram - 0.05).abs().max() < 0.002
    noise = draws.normal(seeds, 1000)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.005
    streams = torch.stack([draws.normal(draws.fold_in(seeds, n), 1000).flatten() for n in range(3)])
    assert (torch.corrcoef(streams) - torch.eye(3)).abs().max() < 0.01


def test_noisy_scores_equal_the_formula_while_training_only() -> None:
    router, x = gate(score="noisy", normalize=True), inputs()
    routing = router(x, RoutingContext(seeds_B=SEEDS))
    assert router.weight is not None
    assert router.noise_weight is not None
    noise = routing.noise
    assert noise is not None
    standard = ((noise.noisy_BTE - noise.clean_BTE) / noise.scale_BTE).detach()
    torch.testing.assert_close(noise.clean_BTE, x @ router.weight.T)
    torch.testing.assert_close(noise.scale_BTE, torch.log1p(torch.exp(x @ router.noise_weight.T)))
    assert 0.5 < float(standard.std()) < 1.5
    torch.testing.assert_close(routing.scores_BTE, noise.noisy_BTE.softmax(-1))
    kept = torch.full_like(noise.noisy_BTE, -math.inf).scatter(
        -1, routing.indices_BTK, noise.noisy_BTE.gather(-1, routing.indices_BTK)
    )
    torch.testing.assert_close(routing.weights_BTK, kept.softmax(-1).gather(-1, routing.indices_BTK))
    for quiet in (router(x), router.eval()(x, RoutingContext(seeds_B=SEEDS))):
        torch.testing.assert_close(quiet.scores_BTE, (x @ router.weight.T).softmax(-1))


def test_noise_differs_between_seeds_sequences_and_layers_but_not_between_calls() -> None:
    router = gate(score="noisy", normalize=True)
    x = inputs()[:1].expand(2, -1, -1)
    context = RoutingContext(seeds_B=SEEDS)
    scores = router(x, context).scores_BTE
    assert torch.equal(scores, router(x, context).scores_BTE)
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores, router(x, context.at(1)).scores_BTE)
    torch.testing.assert_close(scores[1:], router(x[1:], RoutingContext(seeds_B=SEEDS[1:])).scores_BTE)


def test_jitter_multiplies_the_routers_input_while_training_only() -> None:
    router, x = gate(chosen=1, jitter=0.1), inputs()
    assert router.weight is not None
    context = RoutingContext(seeds_B=SEEDS)
    with torch.no_grad():
        router.weight.copy_(torch.eye(HIDDEN)[:EXPERTS])
        jittered, plain = router(x, context).scores_BTE.log(), router(x).scores_BTE.log()
        ratio = (jittered - jittered[..., :1]) - (plain - plain[..., :1])
        bound = 0.1 * (x[..., :EXPERTS].abs() + x[..., :1].abs())
        assert (ratio.abs() <= bound + 1e-5).all()
        assert ratio.abs().max() > 0.01
        assert torch.equal(router.eval()(x, context).scores_BTE, router(x).scores_BTE)


def test_importance_and_load_losses_equal_shazeers_formulas() -> None:
    router = gate(score="noisy", normalize=True)
    routing = router(inputs(), RoutingContext(seeds_B=SEEDS))
    noise = routing.noise
    assert noise is not None
    weights, clean, noise_scale = (x.detach() for x in (routing.weights_BTK, noise.clean_BTE, noise.scale_BTE))
    importance, load = [0.0] * EXPERTS, [0.0] * EXPERTS
    for b in range(BATCH):
        for t in range(TOKENS):
            for k in range(2):
                importance[int(routing.indices_BTK[b, t, k])] += float(weights[b, t, k])
            noisy = noise.noisy_BTE[b, t].tolist()
            for e in range(EXPERTS):
                others = sorted((h for i, h in enumerate(noisy) if i != e), reverse=True)
                z = (float(clean[b, t, e]) - others[1]) / float(noise_scale[b, t, e])
                load[e] += 0.5 * (1 + math.erf(z / math.sqrt(2)))

    def variation(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return sum((v - mean) ** 2 for v in values) / len(values) / mean**2

    assert importance_loss(routing).item() == pytest.approx(variation(importance), rel=1e-4)
    assert load_loss(routing).item() == pytest.approx(variation(load), rel=1e-4)
    load_loss(routing).backward()
    for parameter in (router.weight, router.noise_weight):
        assert parameter is not None
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_z_loss_is_the_squared_log_sum_of_exponentials() -> None:
    router = gate(balance=BalanceSpec(z_loss=0.1))
    x = inputs()
    assert router.weight is not None
    expected = torch.log(torch.exp(x @ router.weight.T).sum(-1)).square().mean()
    torch.testing.assert_close(z_loss(router(x)), expected)
    assert gate()(x).logits_BTE is None
    with pytest.raises(SpecError, match="z_loss"):
        z_loss(gate()(x))
    with pytest.raises(SpecError, match="noisy"):
        load_loss(gate()(x))


def test_hashing_sends_a_token_id_to_one_expert_with_weight_one() -> None:
    router = gate(chosen=1, score="hash")
    assert list(router.parameters()) == []
    tokens = torch.arange(1000).view(10, 100)
    routing = router(torch.zeros(10, 100, HIDDEN), RoutingContext(tokens_BT=tokens))
    expected = [(splitmix64(t) - (1 << 64) if splitmix64(t) >> 63 else splitmix64(t)) % EXPERTS for t in range(1000)]
    assert routing.indices_BTK.flatten().tolist() == expected
    assert torch.equal(routing.weights_BTK, torch.ones(10, 100, 1))
    assert torch.bincount(routing.indices_BTK.flatten(), minlength=EXPERTS).min() > 150
    with pytest.raises(SpecError, match="token ids"):
        router(torch.zeros(1, 1, HIDDEN))


def model(**router: object) -> ModelSpec:
    chosen = 1 if router.get("score") == "hash" else 2
    return ModelSpec(
        name="tiny",
        family="deepseek",
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
        max_position_embeddings=32,
        initializer_range=0.2,
        moe=MixtureOfExperts(
            n_routed_experts=EXPERTS,
            num_experts_per_tok=chosen,
            moe_intermediate_size=8,
            router=spec.RouterSpec(**router),  # type: ignore[arg-type]
        ),
    )


SPECS = {
    "noisy": model(
        score="noisy", normalize=True, jitter=0.1, balance=BalanceSpec(importance_loss=0.1, load_loss=0.1, z_loss=0.01)
    ),
    "gshard": model(select=Capacity(capacity_factor=2.0, second="random"), normalize=True),
    "hash": model(score="hash", select=Capacity(capacity_factor=1.0)),
}


@pytest.mark.parametrize("name", list(SPECS))
def test_recomputed_layers_route_as_they_did_at_first(name: str) -> None:
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(2))
    gradients = []
    for recompute in (False, True):
        decoder = build(SPECS[name]).train()
        output = decoder(tokens, routing=RoutingOptions(seeds_B=SEEDS), checkpoint_activations=recompute)
        decoder.logits(output.hidden_BTD).square().mean().backward()
        gradients.append({n: p.grad for n, p in decoder.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][key]), key


@pytest.mark.parametrize("name", list(SPECS))
def test_decoding_token_by_token_equals_the_whole_where_evaluation_drops_nothing(name: str) -> None:
    decoder = build(SPECS[name]).eval()
    tokens = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = decoder(tokens).hidden_BTD
        cache = StaticCache.allocate(SPECS[name], batch_size=2, max_length=8)
        steps = [decoder(tokens[:, t : t + 1], cache=cache).hidden_BTD for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_mtp_modules_hash_the_tokens_they_embed() -> None:
    decoder = build(replace(SPECS["hash"], num_nextn_predict_layers=1)).train()
    tokens = torch.randint(40, (1, 8), generator=torch.Generator().manual_seed(4))
    routing = decoder(tokens, mtp=True).routing
    assert torch.equal(routing[-1].indices_BTK, routing[0].indices_BTK[:, 1:])
    assert F.one_hot(routing[0].indices_BTK, EXPERTS).sum() == 8
