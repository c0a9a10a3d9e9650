"""Switch's published form against transformers: every number of a forward pass, gradients, and greedy answers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersAttention,
    load_balancing_loss_func,
    router_z_loss_func,
)

from fathom.errors import SpecError
from fathom.model.moe.balance import expert_balance_loss, z_loss
from fathom.spec import MixtureOfExperts, RouterSpec
from fathom.study.switch_t5 import EncoderDecoder, EncoderDecoderSpec, build, generate, spec_from_config
from fathom.study.switch_t5.attention import bucket
from fathom.study.switch_t5.model import EncoderDecoderCache
from fathom.study.switch_t5.names import from_hf, to_hf

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "num_heads": 3,
    "num_experts": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "room for all": {"expert_capacity": 99},
    "overflow": {"expert_capacity": 3},
    "experts everywhere": {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4, "expert_capacity": 4},
    "one expert layer": {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 1, "expert_capacity": 4},
    "untied": {"tie_word_embeddings": False, "expert_capacity": 5, "num_decoder_layers": 2},
}


def theirs_of(**fields: Any) -> SwitchTransformersForConditionalGeneration:
    """Their model with weights large enough that every part matters."""
    theirs = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**(SMALL | fields))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            spread = 0.3 if parameter.dim() > 1 and "relative" not in name else 1.0
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
        for stack in (theirs.encoder, theirs.decoder):
            stack.embed_tokens.weight.copy_(theirs.shared.weight)
    return theirs


def ours_of(theirs: SwitchTransformersForConditionalGeneration) -> EncoderDecoder:
    spec = spec_from_config(theirs.config.to_dict())
    ours = build(spec, seed=None)
    ours.load_state_dict(from_hf(spec, theirs.state_dict()))
    return ours.eval()


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Source, its mask (the last sequence is padded), and target."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(2, 60, (3, 17), generator=generator)
    mask = torch.ones_like(source)
    mask[2, 9:] = 0
    return source * mask, mask, torch.randint(0, 60, (3, 14), generator=generator)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_encoder_routers_and_logits_equal_transformers(name: str) -> None:
    theirs = theirs_of(**VARIANTS[name])
    ours, (source, mask, target) = ours_of(theirs), texts()
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target, output_router_logits=True)
        actual = ours(source, target, source_mask_BS=mask)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(actual.encoded_BSD, expected.encoder_last_hidden_state, **close)
    torch.testing.assert_close(actual.logits_BTV, expected.logits, **close)
    for ours_routed, logits in (
        (actual.encoder_routing, expected.encoder_router_logits),
        (actual.decoder_routing, expected.decoder_router_logits),
    ):
        assert len(ours_routed) == len(logits)
        for routed, router_logits in zip(ours_routed, logits, strict=True):
            torch.testing.assert_close(routed.scores_BTE, router_logits.softmax(-1), **close)
    lost = [~routed.kept_BTK for routed in (*actual.encoder_routing, *actual.decoder_routing)]
    assert any(bool(x.any()) for x in lost) == (name != "room for all")


@pytest.mark.parametrize("name", ["room for all", "overflow", "untied"])
def test_greedy_answers_equal_transformers(name: str) -> None:
    theirs = theirs_of(**VARIANTS[name])
    ours, (source, mask, _) = ours_of(theirs), texts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(
            input_ids=source, attention_mask=mask, max_new_tokens=12, do_sample=False, num_beams=1, eos_token_id=7
        )
    ours.spec = replace(ours.spec, eos_token_id=7)
    answers = generate(ours, source, source_mask_BS=mask, max_new_tokens=12)
    for row, answer in zip(expected[:, 1:].tolist(), answers, strict=True):
        assert row[: len(answer)] == answer
        assert set(row[len(answer) :]) <= {0}
    assert len({tuple(answer) for answer in answers}) == 3


def test_decoding_with_memory_equals_decoding_at_once_where_all_find_a_place() -> None:
    ours, (source, mask, target) = ours_of(theirs_of(expert_capacity=99)), texts()
    with torch.no_grad():
        encoded, _ = ours.encode(source, source_mask_BS=mask)
        whole, _ = ours.decode(target, encoded, source_mask_BS=mask)
        memory = EncoderDecoderCache.empty(4)
        parts = [
            ours.decode(target[:, a:b], encoded, source_mask_BS=mask, memory=memory)[0]
            for a, b in ((0, 3), (3, 4), (4, 14))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["room for all", "overflow"])
def test_losses_and_gradients_equal_transformers(name: str) -> None:
    """In float64, but for routers and our logits: of float32, processors round sums each in its own way."""
    theirs = theirs_of(**VARIANTS[name])
    ours, (source, _, target) = ours_of(theirs).double(), texts()
    theirs = theirs.double()
    expected = theirs(input_ids=source, decoder_input_ids=target, output_router_logits=True)
    actual = ours(source, target)
    labels = target.roll(-1, 1)
    total = []
    for logits, ours_routed, theirs_routed in (
        (actual.logits_BTV, actual.encoder_routing, expected.encoder_router_logits),
        (expected.logits, None, expected.encoder_router_logits),
    ):
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if ours_routed is not None:
            auxiliary = torch.stack([expert_balance_loss(routed, scope="sequence") for routed in ours_routed])
        else:
            auxiliary = torch.stack([load_balancing_loss_func(x.softmax(-1), x.argmax(-1)) for x in theirs_routed])
        total.append(loss + 0.1 * auxiliary.sum())
    torch.testing.assert_close(total[0].double(), total[1].double(), rtol=1e-6, atol=1e-6)
    total[0].backward()
    total[1].backward()
    gradients = {key: gradient_of(parameter) for key, parameter in theirs.named_parameters()}
    mine = {key: gradient_of(parameter) for key, parameter in ours.named_parameters()}
    for key, gradient in to_hf(ours.spec, mine).items():
        torch.testing.assert_close(gradient, gradients[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_z_loss_equals_transformers() -> None:
    theirs = theirs_of(expert_capacity=99)
    ours, (source, _, target) = ours_of(theirs).train(), texts()
    with torch.no_grad():
        logits = theirs(input_ids=source, decoder_input_ids=target, output_router_logits=True).encoder_router_logits
        for routed, expected in zip(ours(source, target).encoder_routing, logits, strict=True):
            torch.testing.assert_close(z_loss(routed), router_z_loss_func(expected))


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 12), (16, 50)])
def test_distances_fall_into_the_published_buckets(both_ways: bool, buckets: int, furthest: int) -> None:
    ahead = torch.arange(-300, 301)
    theirs = SwitchTransformersAttention._relative_position_bucket(ahead, both_ways, buckets, furthest)
    assert torch.equal(bucket(ahead, buckets, furthest, both_ways=both_ways), theirs)


def test_routers_stay_float32_in_a_bfloat16_model() -> None:
    spec = spec_from_config(SwitchTransformersConfig(**SMALL, expert_capacity=4).to_dict())
    model = build(spec, dtype=torch.bfloat16)
    source, mask, target = texts()
    output = model(source, target, source_mask_BS=mask)
    assert {m.router.weight.dtype for m in model.routers()} == {torch.float32}
    assert output.encoder_routing[0].scores_BTE.dtype == torch.float32
    assert output.encoded_BSD.dtype == torch.bfloat16
    assert bool(output.logits_BTV.isfinite().all())


def test_initial_weights_are_switchs_and_reproducible() -> None:
    spec = spec_from_config(SwitchTransformersConfig(**(SMALL | {"d_model": 64, "d_ff": 128})).to_dict())
    one, two = build(spec, seed=3).state_dict(), build(spec, seed=3).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = one["encoder.layers.1.mlp.experts.wi"]
    assert float(drawn.abs().max()) <= 2 * (0.1 / 64) ** 0.5
    assert float(drawn.std()) == pytest.approx(0.88 * (0.1 / 64) ** 0.5, rel=0.05)  # truncation at two deviations


MOE = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=1, moe_intermediate_size=24, router=RouterSpec())
SPEC = EncoderDecoderSpec(
    name="t", vocab_size=60, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=3, moe=MOE
)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"moe": replace(MOE, n_shared_experts=1)}, "set it to 0"),
        ({"moe": None, "expert_capacity": 4}, "set moe"),
        ({"relative_attention_num_buckets": 6}, "multiple of 4"),
        ({"relative_attention_max_distance": 16}, "above half"),
        ({"eos_token_id": 60}, "raise vocab_size"),
        ({"d_model": 0}, "positive"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(SpecError, match=advice):
        replace(SPEC, **fields)
