"""Models with packed weights against the same models with the weights unpacked and activations rounded by formula."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fathom.errors import SpecError
from fathom.kernels import reference
from fathom.kernels.native.matrix import PackedExperts, PackedMatrix
from fathom.kernels.weight_formats import QuantFormat, dequantize
from fathom.model import Decoder, StaticCache, build
from fathom.model.adapters.attach import adapter_from_state, attach, learned_state, with_adapter
from fathom.model.moe import ExpertAssignment, RoutedExperts
from fathom.model.packing import packable
from fathom.model.quantize import quantize, set_activations
from fathom.model.quantized import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedLinear,
    QuantizedUpProjection,
    quantized_weights,
)
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec
from fathom.spec.adapter import LoraSpec
from tests.model.quantized import error, tokens

MakeSpec = Callable[..., ModelSpec]
FORMATS = pytest.mark.parametrize("form", ["int8", "int4"])
pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def grouped(latent_spec: MakeSpec) -> ModelSpec:
    """GQA with biases, dense, its head tied; widths that fill no whole panel."""
    attention = GroupedQueryAttention(num_heads=3, num_kv_heads=1, head_dim=32, qkv_bias=True)
    return latent_spec(
        hidden_size=96,
        intermediate_size=160,
        attention=attention,
        moe=None,
        first_k_dense_replace=0,
        tie_word_embeddings=True,
    )


@pytest.fixture(params=["latent", "grouped"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    found: ModelSpec = request.getfixturevalue(request.param)
    return found


class UnpackedExperts(RoutedExperts):
    """A loop over experts with the weights that packed ones stand for."""

    def __init__(self, packed: QuantizedExperts, *, rounded: bool) -> None:
        super().__init__()
        self.packed = packed
        self.round: Callable[[Tensor], Tensor] = reference.round_activations if rounded else lambda x: x

    def grouped(self, x_ZD: Tensor, assignment: ExpertAssignment) -> Tensor:
        y_ZD, stacks = torch.zeros_like(x_ZD), (self.packed.gate_up, self.packed.down)
        for expert in range(len(self.packed.gate_up)):
            gate_up, down = (dequantize(stack[expert]).to(x_ZD.dtype) for stack in stacks)
            chosen_ZK = assignment.indices_NK == expert
            hidden = reference.swiglu(self.round(x_ZD) @ gate_up.t())
            output_ZD = self.round(hidden) @ down.t()
            y_ZD += output_ZD * (assignment.weights_NK * chosen_ZK).sum(-1, keepdim=True)
        return y_ZD


def unpacked(model: Decoder, original: Decoder, *, rounded: bool) -> Decoder:
    """The original with the weights that a packed model stands for, in plain modules that round their inputs."""
    plain = copy.deepcopy(original)
    for name, module in model.named_modules():
        place, _, own = name.rpartition(".")
        if isinstance(module, QuantizedLinear | QuantizedUpProjection):
            twin = plain.get_submodule(name)
            if name == "lm_head":
                twin = nn.Linear(plain.spec.hidden_size, plain.spec.vocab_size, bias=False)
                plain.lm_head = twin  # type: ignore[assignment]
            twin.weight = nn.Parameter(module.weight.view_as(twin.weight))  # type: ignore[arg-type]
            if rounded and isinstance(module, QuantizedLinear):
                twin.register_forward_pre_hook(lambda _, given: reference.round_activations(given[0]))
        elif isinstance(module, QuantizedExperts):
            experts = UnpackedExperts(module, rounded=rounded)
            setattr(plain.get_submodule(place), own, experts)
        elif isinstance(module, QuantizedEmbedding):
            plain.embed_tokens.weight = nn.Parameter(module.weight)
    return plain.eval()


def packed(spec: ModelSpec, form: QuantFormat, **options: str) -> tuple[Decoder, Decoder]:
    """A packed model and the original."""
    original = build(spec, seed=3).eval()
    model = copy.deepcopy(original)
    quantize(model, form, **options)  # type: ignore[arg-type]
    return model, original


@FORMATS
def test_with_exact_activations_a_model_computes_what_its_unpacked_weights_do(
    spec: ModelSpec, form: QuantFormat
) -> None:
    model, original = packed(spec, form)
    set_activations(model, rounded=False)
    plain = unpacked(model, original, rounded=False)
    with torch.inference_mode():
        ours, theirs = model(tokens(40), mtp=True), plain(tokens(40), mtp=True)
        assert error(model.logits(ours.hidden_BTD), plain.logits(theirs.hidden_BTD)) < 1e-5
    for mine, other in zip(ours.mtp_hidden, theirs.mtp_hidden, strict=True):
        assert error(mine, other) < 1e-5


@FORMATS
def test_activations_are_rounded_as_the_formula_says(spec: ModelSpec, form: QuantFormat) -> None:
    model, original = packed(spec, form)
    rounded, exact = (unpacked(model, original, rounded=which) for which in (True, False))
    with torch.inference_mode():
        logits, expected, other = (x.logits(x(tokens(40)).hidden_BTD) for x in (model, rounded, exact))
    assert error(logits, expected) < error(other, expected) / 2  # a number between two steps may go either way


@FORMATS
def test_decoding_through_the_cache_equals_reading_at_once(spec: ModelSpec, form: QuantFormat) -> None:
    model, _ = packed(spec, form)
    set_activations(model, rounded=False)
    cache = StaticCache.allocate(spec, batch_size=1, max_length=9, device=torch.device("cpu"), dtype=torch.float32)
    ids = tokens(9)
    with torch.inference_mode():
        parts = [model(ids[:, t : t + 1], cache=cache, form="absorbed").hidden_BTD for t in range(9)]
        assert error(torch.cat(parts, 1), model(ids).hidden_BTD) < 1e-5


@FORMATS
def test_every_matrix_is_held_once_in_its_format_and_the_report_counts_it(spec: ModelSpec, form: QuantFormat) -> None:
    original = build(spec, seed=3)
    model = copy.deepcopy(original)
    wide, report = packable(model), quantize(model, form)
    kept = dict(model.named_parameters())
    assert kept.keys() == dict(original.named_parameters()).keys() - wide.keys()
    assert all(
        name.endswith(("norm.weight", "bias", "mlp.gate.weight")) or tensor.dim() == 1 for name, tensor in kept.items()
    )
    matrices = [each for each in quantized_weights(model) if isinstance(each, PackedMatrix | PackedExperts)]
    assert report.bytes_after == sum(each.nbytes for each in (*matrices, *kept.values()))
    in_8_bits = [each for each in matrices if each.format == "q8"]
    assert {each.format for each in matrices} == ({"q8"} if form == "int8" else {"q8", "q4"})
    assert (len(in_8_bits) == len(matrices)) == (form == "int8")
    if spec.tie_word_embeddings:
        assert isinstance(model.lm_head, QuantizedLinear)
        assert isinstance(model.embed_tokens, QuantizedEmbedding)
        assert model.lm_head.qweight is model.embed_tokens.qweight


def test_adapters_add_to_packed_weights(latent: ModelSpec) -> None:
    model, original = packed(latent, "int8")
    set_activations(model, rounded=False)
    plain = unpacked(model, original, rounded=False)
    adapted = build(latent, seed=3)
    attach(adapted, LoraSpec(rank=2, targets=("q_b_proj", "kv_b_proj", "o_proj")), seed=1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    adapter = adapter_from_state(learned_state(adapted), 1.0)
    ids = tokens(7)
    caches = [
        StaticCache.allocate(latent, batch_size=1, max_length=7, device=torch.device("cpu"), dtype=torch.float32)
        for _ in range(2)
    ]
    with torch.inference_mode():
        ours, theirs = with_adapter(model, adapter), with_adapter(plain, adapter)
        for form in ("expanded", "absorbed"):
            found, expected = (
                x(ids, cache=cache if form == "absorbed" else None, form=form).hidden_BTD  # type: ignore[arg-type]
                for x, cache in zip((ours, theirs), caches, strict=True)
            )
            assert error(found, expected) < 1e-5
        assert error(model(ids).hidden_BTD, found) > 1e-2


def test_widths_that_are_no_whole_groups_stay_plain(latent_spec: MakeSpec) -> None:
    moe = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1)
    model = build(latent_spec(moe=moe), seed=0)
    report = quantize(model, "int4")
    reasons = {tensor.name: tensor.reason for tensor in report.skipped}
    assert "24 columns are not a multiple of 32" in reasons["layers.1.mlp.experts.down_proj"]
    assert "other matrix" in reasons["layers.1.mlp.experts.gate_up_proj"]
    assert "8 key rows are no multiple of 32" in reasons["layers.0.self_attn.kv_b_proj.weight"]
    with torch.inference_mode():
        assert bool(model(tokens(5)).hidden_BTD.isfinite().all())


def test_what_cannot_be_done_is_refused(latent: ModelSpec) -> None:
    model, _ = packed(latent, "int8")
    with pytest.raises(SpecError, match="quantized already"):
        quantize(model, "int4")
    with pytest.raises(SpecError, match="cannot be trained"):
        model.train()
    broken = build(latent, seed=0)
    with torch.no_grad():
        broken.layers[1].mlp.experts.down_proj[2, 3, 4] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(SpecError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        quantize(broken, "int8")


def test_the_activations_keep_the_dtype_that_the_model_is_given(latent: ModelSpec) -> None:
    model, _ = packed(latent, "int8")
    with torch.inference_mode():
        expected = model(tokens(6)).hidden_BTD
        assert model.to(torch.bfloat16)(tokens(6)).hidden_BTD.dtype == torch.bfloat16
        exact = model.to(torch.float64)(tokens(6)).hidden_BTD
    assert error(exact.float(), expected) < 0.05
