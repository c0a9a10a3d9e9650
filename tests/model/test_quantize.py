"""Models quantized in PyTorch's formats against the same models with their weights dequantized."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fathom.errors import SpecError
from fathom.kernels import quantized_products
from fathom.kernels.weight_formats import QuantFormat, dequantize
from fathom.model import Decoder, StaticCache, build
from fathom.model.quantize import quantize
from fathom.model.quantized import QuantizedExperts, QuantizedLinear
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec
from tests.model.quantized import error, tokens

MakeSpec = Callable[..., ModelSpec]
FORMATS = pytest.mark.parametrize("form", ["int8", "int4"])


@pytest.fixture(autouse=True)
def _without_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.model.quantize.can_pack", lambda _: False)


def dequantized(model: Decoder, original: Decoder) -> Decoder:
    """The original with the weights that a quantized model stands for."""
    plain = copy.deepcopy(original)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear):
                if name == "lm_head" and plain.spec.tie_word_embeddings:
                    plain.lm_head = nn.Linear(plain.spec.hidden_size, plain.spec.vocab_size, bias=False)
                whole = plain.get_submodule(name).weight
                whole.copy_(module.weight.view_as(whole))
            elif isinstance(module, QuantizedExperts):
                experts = plain.get_submodule(name)
                for part, matrices in ((experts.gate_up_proj, module.gate_up), (experts.down_proj, module.down)):
                    part.copy_(torch.stack([dequantize(each) for each in matrices.experts]).view_as(part))
    return plain


@FORMATS
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_near_those_of_the_dequantized_weights(latent: ModelSpec, form: QuantFormat, tied: bool) -> None:
    spec = dataclasses.replace(latent, tie_word_embeddings=tied)
    original = build(spec, seed=3).eval()
    model = copy.deepcopy(original)
    quantize(model, form)
    plain = dequantized(model, original)
    ids = tokens(40)
    with torch.inference_mode():
        expected = plain.logits(plain(ids).hidden_BTD)
        assert error(model.logits(model(ids).hidden_BTD), expected) < 0.03
        assert error(original.logits(original(ids).hidden_BTD), expected) > 1e-3


@FORMATS
def test_decoding_equals_reading_at_once(latent: ModelSpec, form: QuantFormat) -> None:
    model = build(latent, seed=3)
    quantize(model, form)
    ids = tokens(12)
    cache = StaticCache.allocate(latent, batch_size=1, max_length=12, device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        whole = model(ids).hidden_BTD
        parts = [model(ids[:, t : t + 1], cache=cache).hidden_BTD for t in range(12)]
    assert error(torch.cat(parts, 1), whole) < 0.03


@FORMATS
def test_float32_tiles_give_the_dequantized_model_exactly(
    latent: ModelSpec, form: QuantFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_products, "max_fused_rows", lambda _: 0)
    original = build(latent, seed=3).eval().double()
    model = copy.deepcopy(original)
    quantize(model, form)
    plain = dequantized(model, original)
    ids = tokens(20)
    with torch.inference_mode():
        ours, theirs = model(ids, mtp=True), plain(ids, mtp=True)
    torch.testing.assert_close(ours.hidden_BTD, theirs.hidden_BTD)
    torch.testing.assert_close(ours.mtp_hidden[0], theirs.mtp_hidden[0])
    for mine, other in zip(ours.routing, theirs.routing, strict=True):
        assert torch.equal(mine.indices_BTK, other.indices_BTK)


def test_the_report_adds_up_and_names_what_stays(latent: ModelSpec) -> None:
    model = build(latent, seed=0)
    before = sum(parameter.nbytes for parameter in model.parameters())
    report = quantize(model, "int4")
    kept = {tensor.name: tensor.reason for tensor in report.skipped}
    assert report.bytes_before == before
    assert set(kept) == {name for name, _ in model.named_parameters()}
    held = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            held += module.qweight.nbytes
        elif isinstance(module, QuantizedExperts):
            held += module.gate_up.nbytes + module.down.nbytes
    assert report.bytes_after == held
    assert kept["embed_tokens.weight"] == "is looked up row by row"
    assert kept["norm.weight"] == "is a vector"
    assert "absorbed" in kept["layers.0.self_attn.kv_b_proj.weight"]
    assert kept["layers.1.mlp.gate.weight"] == "routers decide in float32"
    quantized_names = {matrix.name for matrix in report.quantized}
    expected = {
        "layers.0.mlp.down_proj",
        "layers.1.mlp.experts",
        "layers.2.self_attn.o_proj",
        "mtp.0.eh_proj",
        "lm_head",
    }
    assert expected <= quantized_names


def test_widths_choose_smaller_groups_or_stay_plain(latent_spec: MakeSpec) -> None:
    attention = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=10, qkv_bias=True)
    spec = latent_spec(hidden_size=64, attention=attention, moe=None, first_k_dense_replace=0, intermediate_size=160)
    original = build(spec, seed=0).eval()
    model = copy.deepcopy(original)
    report = quantize(model, "int4", 128, head="plain")
    groups = {matrix.name: matrix.group_sizes for matrix in report.quantized}
    kept = {tensor.name: tensor.reason for tensor in report.skipped}
    assert groups["layers.0.self_attn.q_proj"] == (64,)
    assert groups["layers.0.mlp.down_proj"] == (32,)
    assert "40 columns" in kept["layers.0.self_attn.o_proj.weight"]
    assert kept["lm_head.weight"] == "was excluded by head = plain"
    plain = dequantized(model, original)
    with torch.inference_mode():
        assert error(model(tokens(5)).hidden_BTD, plain(tokens(5)).hidden_BTD) < 0.03


def test_experts_stay_together_where_one_matrix_cannot_be_packed(latent_spec: MakeSpec) -> None:
    moe = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1)
    report = quantize(build(latent_spec(moe=moe), seed=0), "int8")
    kept = {tensor.name: tensor.reason for tensor in report.skipped}
    assert "24 columns" in kept["layers.1.mlp.experts.down_proj"]
    assert "other matrix" in kept["layers.1.mlp.experts.gate_up_proj"]


def test_training_a_packed_model_is_refused(latent: ModelSpec) -> None:
    model = build(latent, seed=0)
    quantize(model, "int8")
    assert not model.training
    model.eval()
    with pytest.raises(SpecError, match="cannot be trained"):
        model.train()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_packed_model_keeps_its_steps_when_its_dtype_changes(latent: ModelSpec) -> None:
    model = build(latent, seed=0)
    quantize(model, "int4")
    with torch.inference_mode():
        expected = model(tokens(4)).hidden_BTD
        model.to(torch.float64).to(torch.float32)
        torch.testing.assert_close(model(tokens(4)).hidden_BTD, expected)
        assert model.to(torch.bfloat16)(tokens(4)).hidden_BTD.dtype == torch.bfloat16


def test_bad_requests_are_refused(latent: ModelSpec) -> None:
    model = build(latent, seed=0)
    with pytest.raises(SpecError, match="group_size"):
        quantize(model, "int4", 48)
    with pytest.raises(SpecError, match="format"):
        quantize(model, "int3")  # type: ignore[arg-type]
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    quantize(model, "int8")
    with pytest.raises(SpecError, match="quantized already"):
        quantize(model, "int8")


@pytest.mark.parametrize("tied", [False, True])
def test_logits_come_from_the_packed_head(latent: ModelSpec, tied: bool) -> None:
    model = build(dataclasses.replace(latent, tie_word_embeddings=tied), seed=0)
    embedding = model.embed_tokens.weight.clone()
    quantize(model, "int4", head="int4")
    assert isinstance(model.lm_head, QuantizedLinear)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.logits(hidden), model.lm_head(hidden))
    assert torch.equal(model.embed_tokens.weight, embedding)
