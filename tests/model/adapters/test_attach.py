"""Adapted models against the same models whose weights are W + scaling x B A, written out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fathom.errors import CheckpointError, SpecError
from fathom.kernels.weight_formats import dequantize
from fathom.model import Decoder, StaticCache, build
from fathom.model.adapters.adapter import parameter_of, slot_of
from fathom.model.adapters.attach import adapter_from_state, attach, learned_state, with_adapter
from fathom.model.moe import Experts
from fathom.model.quantized import QuantizedExperts, QuantizedLinear
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec
from fathom.spec.adapter import LoraSpec

MakeSpec = Callable[..., ModelSpec]
LORA = LoraSpec(rank=3, alpha=7.0)
TOKENS = torch.randint(0, 100, (2, 11), generator=torch.Generator().manual_seed(1))


def adapted(spec: ModelSpec, lora: LoraSpec = LORA) -> tuple[Decoder, Decoder]:
    """A model with a random adapter, in evaluation mode, and the model before."""
    plain = build(spec, seed=3).eval()
    model = copy.deepcopy(plain)
    attach(model, lora, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model, plain


def written_out(plain: Decoder, learned: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The weights W + scaling x B A, by an einsum of its own, differentiable in A and B."""
    state = {name: tensor.detach() for name, tensor in plain.state_dict().items()}
    for name, b in learned.items():
        if name.endswith(".B"):
            a = learned[name.removesuffix("B") + "A"]
            param_name, _ = parameter_of(name)
            state[param_name] = state[param_name] + scaling * torch.einsum("...nr,...rk->...nk", b, a)
    return state


def logits(model: Decoder, tokens: Tensor = TOKENS) -> Tensor:
    return model.logits(model(tokens).hidden_BTD)


def families(latent_spec: MakeSpec, grouped_spec: MakeSpec) -> dict[str, ModelSpec]:
    return {"query latent": latent_spec(8), "direct query": latent_spec(), "grouped": grouped_spec()}


@pytest.mark.parametrize("name", ["query latent", "direct query", "grouped"])
def test_logits_and_gradients_are_those_of_the_written_out_weights(
    name: str, latent_spec: MakeSpec, grouped_spec: MakeSpec
) -> None:
    model, plain = adapted(families(latent_spec, grouped_spec)[name])
    learned = {n: t.detach().clone().requires_grad_() for n, t in learned_state(model).items()}

    class Whole(nn.Module):
        def forward(self, state: dict[str, Tensor]) -> Tensor:
            hidden = functional_call(plain, state, (TOKENS,)).hidden_BTD
            return hidden @ state["lm_head.weight"].T

    expected = Whole()(written_out(plain, learned, LORA.scaling))
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    expected.square().mean().backward()
    logits(model).square().mean().backward()
    for n, tensor in learned.items():
        torch.testing.assert_close(model.get_parameter(n).grad, tensor.grad, atol=1e-6, rtol=1e-3)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in learned)


@pytest.mark.parametrize("rank", [None, 8])
def test_absorbed_and_expanded_attention_agree_while_decoding(rank: int | None, latent_spec: MakeSpec) -> None:
    model, _ = adapted(latent_spec(rank))
    with torch.no_grad():
        whole = model(TOKENS).hidden_BTD
        for form in ("absorbed", "expanded"):
            cache = StaticCache.allocate(model.spec, batch_size=2, max_length=16)
            parts = [model(TOKENS[:, :7], cache=cache, form=form).hidden_BTD]
            parts += [model(TOKENS[:, t : t + 1], cache=cache, form=form).hidden_BTD for t in range(7, 11)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_every_linear_layer_and_expert_is_adapted_and_the_rest_is_named(latent_spec: MakeSpec) -> None:
    model, _ = adapted(latent_spec(8))
    kinds = {parameter_of(name)[0].removesuffix(".weight").split(".", 2)[2] for name in learned_state(model)}
    attention = {f"self_attn.{n}_proj" for n in ("q_a", "q_b", "kv_b", "o")} | {"self_attn.kv_a_proj_with_mqa"}
    ffn = {f"mlp.{place}{n}_proj" for place in ("", "shared_experts.", "experts.") for n in ("gate_up", "down")}
    assert kinds == attention | ffn
    assert model.adaptation is not None
    assert [reason.split(" ")[:2] for reason in model.adaptation.left_out] == [
        ["embed_tokens", "(modules_to_save"],
        ["lm_head", "(modules_to_save"],
        ["2", "routers"],
    ]
    assert model.get_parameter("layers.1.mlp.experts.gate_up_lora.A").shape == (8, 2, 3, 32)


def test_nothing_changes_before_the_first_step_and_the_same_seed_draws_the_same(latent_spec: MakeSpec) -> None:
    plain = build(latent_spec(), seed=3).eval()
    models = [copy.deepcopy(plain) for _ in range(2)]
    for model in models:
        attach(model, LORA, seed=9)
        torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-5)
    first, second = map(learned_state, models)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(bool(t.any()) == name.endswith("A") for name, t in first.items())


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantized_base_passes_the_gradient_of_its_dequantized_weights(form: str, latent_spec: MakeSpec) -> None:
    spec = latent_spec(
        hidden_size=64,
        intermediate_size=96,
        attention=LatentAttention(
            num_heads=4, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
        ),
        moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1),
    )
    model, plain = adapted(spec, LoraSpec(rank=3, alpha=7.0, quantize_base=form))
    model.train()
    packed = 0
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear):
                plain.get_parameter(f"{name}.weight").copy_(
                    module.weight.view_as(plain.get_parameter(f"{name}.weight"))
                )
                packed += 1
            elif isinstance(module, QuantizedExperts):
                experts = plain.get_submodule(name)
                assert isinstance(experts, Experts)
                for part, matrices in ((experts.gate_up_proj, module.gate_up), (experts.down_proj, module.down)):
                    part.copy_(torch.stack([dequantize(each) for each in matrices.experts]).view_as(part))
                packed += 1
    assert packed == 3 * 4 + 2 + 2 * 3  # query and key latents, output; the dense layer; experts and shared experts
    adapter = adapter_from_state({n: t.detach() for n, t in learned_state(model).items()}, LORA.scaling)
    twin = with_adapter(plain, adapter)
    for name in learned_state(model):
        twin.get_parameter(name).requires_grad_(True)
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-4, rtol=1e-4)
    for each in (model, twin):
        logits(each).square().mean().backward()
    for name in learned_state(model):
        torch.testing.assert_close(
            model.get_parameter(name).grad, twin.get_parameter(name).grad, atol=1e-6, rtol=1e-3, msg=name
        )


def test_with_adapter_shares_every_weight_and_leaves_the_base_alone(latent_spec: MakeSpec) -> None:
    trained, plain = adapted(latent_spec(tie_word_embeddings=True), LoraSpec(rank=2, modules_to_save=("lm_head",)))
    assert "embed_tokens.weight" in learned_state(trained)
    with torch.no_grad():
        trained.embed_tokens.weight.add_(0.01)
    before = logits(plain)
    adapter = adapter_from_state(learned_state(trained), LoraSpec(rank=2).scaling)
    view = with_adapter(plain, adapter)
    torch.testing.assert_close(logits(view), logits(trained))
    assert torch.equal(logits(plain), before)
    shared = {
        name
        for name, p in view.named_parameters()
        if p.data_ptr() == plain.state_dict().get(name, p.new_empty(0)).data_ptr()
    }
    assert shared == set(plain.state_dict()) - {"embed_tokens.weight"}
    expected = logits(view)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(adapter.merged(name, parameter.detach()))
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_model_is_refused(latent_spec: MakeSpec, grouped_spec: MakeSpec) -> None:
    trained, _ = adapted(latent_spec())
    adapter = adapter_from_state(learned_state(trained), 1.0)
    with pytest.raises(CheckpointError, match=r"the model has no layers\.0\.self_attn\.kv_a_proj_with_mqa\.weight"):
        with_adapter(build(grouped_spec()), adapter)
    wide = latent_spec(intermediate_size=52)
    with pytest.raises(CheckpointError, match=r"\(2, 48, 32\) here and \(2, 52, 32\) in the model"):
        with_adapter(build(wide), adapter)


def test_dropout_is_drawn_from_the_seed_alone_and_not_in_evaluation(grouped_spec: MakeSpec) -> None:
    model, _ = adapted(grouped_spec(), LoraSpec(rank=3, dropout=0.5))
    assert model.adaptation is not None
    quiet = logits(model)
    model.train()
    drawn = []
    for seed in (1, 2, 1):
        model.adaptation.seed.value = seed
        drawn.append(logits(model))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], quiet)
    update = model.layers[0].self_attn.q_proj.lora
    x = torch.ones(1, 4096, 32)
    kept = update._dropped(x, 0)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert abs(float((kept == 0).float().mean()) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (("q_prj",), "is no linear layer of tiny-v2"),
        (("gate",), "is the router"),
        (("lm_head",), "modules_to_save"),
        (("gate_proj",), "name gate_proj and up_proj, or gate_up_proj"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(
    targets: tuple[str, ...], problem: str, latent_spec: MakeSpec
) -> None:
    with pytest.raises(SpecError, match=problem):
        attach(build(latent_spec()), LoraSpec(targets=targets), seed=1)


def test_targets_name_layers_by_any_part_of_their_path(latent_spec: MakeSpec) -> None:
    model, _ = adapted(latent_spec(), LoraSpec(targets=("experts", "layers.0.self_attn", "gate_proj", "up_proj")))
    names = {parameter_of(name)[0] for name in learned_state(model)}
    assert {n for n in names if ".experts." in n} == {
        f"layers.{i}.mlp.experts.{p}_proj" for i in (1, 2) for p in ("gate_up", "down")
    }
    assert {n for n in names if "self_attn" in n} == {
        f"layers.0.self_attn.{p}.weight" for p in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    }
    assert "layers.0.mlp.gate_up_proj.weight" in names
    assert "layers.0.mlp.down_proj.weight" not in names
    assert all(slot_of(parameter_of(name)[0])[1] in name for name in learned_state(model))
