"""Rollouts' routing as the engine records it, against the update's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.engine.engine import Engine
from fathom.errors import DataError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.moe import chosen_experts
from fathom.posttrain.routing import RoutingAgreement, agreement
from fathom.spec import (
    EngineSpec,
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RouterSpec,
    SamplingParams,
)
from fathom.spec.train import AdamWSpec, BatchSpec, Constant, TrainSpec
from fathom.train.micro_batch import split
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner

PROMPTS = [tuple(range(1, 10))] * 3 + [(4, 5, 6)]
TRAIN = TrainSpec(
    sequence_length=32,
    total_tokens=1000,
    batch=BatchSpec(size=2, micro_batch_size=1),
    optimizer=AdamWSpec(lr=0.01),
    schedule=Constant(warmup_steps=1),
)


def model() -> Decoder:
    router = RouterSpec(
        score="sigmoid",
        select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
        selection_bias=True,
        normalize=True,
        scale=2.5,
    )
    spec = ModelSpec(
        name="tiny",
        family="deepseek_v3",
        vocab_size=48,
        hidden_size=16,
        num_hidden_layers=3,
        attention=LatentAttention(num_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
        max_position_embeddings=64,
        intermediate_size=24,
        moe=MixtureOfExperts(
            n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=8, n_shared_experts=1, router=router
        ),
        first_k_dense_replace=1,
        initializer_range=0.3,
    )
    return build(spec, seed=3)


def sampled(decoder: Decoder) -> PackedBatch:
    """Answers to shared and other prompts, with where their tokens went, as one batch to learn from."""
    engine = Engine(decoder, spec=EngineSpec(record_routing=True, page_size=4))
    completions = engine.sample(PROMPTS, [SamplingParams(max_tokens=20, seed=seed) for seed in range(4)])
    texts = [torch.tensor((*p, *c.token_ids)) for p, c in zip(PROMPTS, completions, strict=True)]
    routes = [c.routing for c in completions if isinstance(c.routing, Tensor)]
    return PackedBatch(
        torch.cat([text[:-1] for text in texts]),
        torch.cat([text[1:] for text in texts]),
        tuple(len(text) - 1 for text in texts),
        {"routes": torch.cat(routes)},
    )


def learn(decoder: Decoder, batch: PackedBatch, *, replay: bool) -> RoutingAgreement:
    runner = StepRunner(decoder.train(), make_optimizer(decoder, TRAIN.optimizer), TRAIN, replay_routing=replay)
    gradients = runner.accumulate(split(batch, 1, 32, runner.device), len(batch.lengths), 1, observe=False)
    runner.apply(gradients, 0.01)
    return RoutingAgreement.from_sums(gradients.sums)


def test_sampler_and_trainer_route_alike_until_the_weights_change() -> None:
    decoder = model()
    batch = sampled(decoder)
    known = int((batch.columns["routes"][:, 0, 0] >= 0).sum())
    assert known == 3 * 28 + 22 - 2 * 8  # two of three find two pages of their prompt
    assert learn(decoder, batch, replay=False) == RoutingAgreement(known, 1.0, 1.0)
    after = learn(decoder, batch, replay=False)
    assert after.tokens == known
    assert 0.2 < after.equal < after.shared < 1
    assert learn(decoder, batch, replay=True) == RoutingAgreement(known, 1.0, 1.0)


def test_agreement_of_two_records_is_that_of_their_sets() -> None:
    decoder = model()
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        one = chosen_experts(decoder(tokens).routing)[0]
        decoder.layers[1].self_attn.o_proj.weight.mul_(3)
        two = chosen_experts(decoder(tokens).routing)[0]
    one[7:12] = -1
    pairs = [
        (set(a), set(b))
        for token in range(30)
        if not 7 <= token < 12
        for a, b in zip(one[token].tolist(), two[token].tolist(), strict=True)
    ]
    found = agreement(one.flip(-1).short(), two)
    assert found.tokens == 25
    assert found.equal == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.shared == pytest.approx(sum(len(a & b) for a, b in pairs) / len(pairs) / 3)
    assert 0 < found.equal < found.shared < 1


def test_nothing_compared_is_nothing_that_differs_and_other_shapes_are_refused() -> None:
    unknown = torch.full((4, 2, 3), -1)
    assert agreement(unknown, unknown) == RoutingAgreement.from_sums({"length": 3.0}) == RoutingAgreement(0.0, 1.0, 1.0)
    with pytest.raises(DataError, match=r"\(4, 2, 3\) recorded and \(5, 2, 3\) used"):
        agreement(unknown, torch.zeros(5, 2, 3).long())
