"""Published names: what each family writes on disk, and that the way there and back loses nothing."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.checkpoint.names import from_hf, name_table, stream_from_hf, stream_to_hf, to_hf
from fathom.errors import CheckpointError
from fathom.families import PRESETS, preset
from fathom.model.build import parameter_shapes
from fathom.spec import (
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RouterSpec,
)

GQA = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=4)
MLA = LatentAttention(num_heads=2, kv_lora_rank=6, q_lora_rank=10, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3)
MOE = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=3, n_shared_experts=2)
SIGMOID = RouterSpec(
    score="sigmoid",
    select=GroupLimited(n_group=2, topk_group=1, group_score="top2_sum"),
    selection_bias=True,
    normalize=True,
)


def spec(family: str, **fields: Any) -> ModelSpec:
    given = {
        "name": "small",
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "attention": GQA,
        "max_position_embeddings": 32,
        "intermediate_size": 12,
    }
    return ModelSpec(family=family, **(given | fields))  # type: ignore[arg-type]


SPECS = {
    "llama": spec("llama"),
    "llama with biases": spec("llama", attention=dataclasses.replace(GQA, qkv_bias=True, out_bias=True), mlp_bias=True),
    "llama tied": spec("llama", tie_word_embeddings=True),
    "qwen2": spec("qwen2", attention=dataclasses.replace(GQA, qkv_bias=True), tie_word_embeddings=True),
    "mistral": spec("mistral", attention=dataclasses.replace(GQA, sliding_window=8)),
    "mixtral": spec("mixtral", intermediate_size=None, moe=dataclasses.replace(MOE, n_shared_experts=0)),
    "deepseek": spec("deepseek", moe=MOE, first_k_dense_replace=1),
    "deepseek_v2": spec("deepseek_v2", attention=MLA, moe=MOE, first_k_dense_replace=1),
    "deepseek_v2 lite": spec("deepseek_v2", attention=dataclasses.replace(MLA, q_lora_rank=None), moe=MOE),
    "deepseek_v2 with biases": spec("deepseek_v2", attention=dataclasses.replace(MLA, bias=True), moe=MOE),
    "deepseek_v2 every other layer": spec(
        "deepseek_v2", attention=MLA, moe=MOE, num_hidden_layers=4, first_k_dense_replace=1, moe_layer_freq=2
    ),
    "deepseek_v3": spec(
        "deepseek_v3",
        attention=MLA,
        moe=dataclasses.replace(MOE, router=SIGMOID),
        first_k_dense_replace=1,
        num_nextn_predict_layers=2,
    ),
    "deepseek_v3 tied": spec(
        "deepseek_v3",
        attention=MLA,
        moe=dataclasses.replace(MOE, router=SIGMOID),
        num_nextn_predict_layers=1,
        tie_word_embeddings=True,
    ),
}
each_spec = pytest.mark.parametrize("small", SPECS.values(), ids=SPECS)


def random_state(small: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in parameter_shapes(small).items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ours_to_theirs_to_ours_is_bit_for_bit(small: ModelSpec, dtype: torch.dtype) -> None:
    state = random_state(small, dtype)
    published = to_hf(small, state)
    back = from_hf(small, published)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == dtype for name in state)


@each_spec
def test_the_table_is_a_bijection(small: ModelSpec) -> None:
    table = name_table(small)
    published = [name for rule in table.rules for name in rule.names] + [copy.published for copy in table.duplicates]
    assert max(Counter(published).values()) == 1
    assert shapes_of(to_hf(small, random_state(small))) == table.hf_shapes()
    ours, theirs = parameter_shapes(small), {n: s for r in table.rules for n in r.names for s in [r.part_shape]}
    numbers = [sum(torch.Size(shape).numel() for shape in side.values()) for side in (ours, theirs)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_bijection_of_names_and_shapes(name: str) -> None:
    big = preset(name)
    table = name_table(big)
    assert table.our_shapes() == parameter_shapes(big)
    published = table.hf_shapes()
    table.check_hf(published)
    names = [published_name for rule in table.rules for published_name in rule.names]
    assert len(names) == len(set(names))
    for rule in table.rules:
        numbers = sum(torch.Size(published[part]).numel() for part in rule.names)
        assert numbers == torch.Size(rule.shape).numel()


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "mixtral-8x7b", "deepseek-r1-distill-qwen-1.5b"])
def test_big_models_convert_both_ways_without_weights(name: str) -> None:
    big = preset(name)
    state = {n: torch.empty(s, device="meta") for n, s in parameter_shapes(big).items()}
    published = to_hf(big, state)
    assert shapes_of(published) == name_table(big).hf_shapes()
    assert shapes_of(from_hf(big, published)) == parameter_shapes(big)


def test_sizes_of_released_checkpoints() -> None:
    """Tensors in the released indices: 7B 30 x 9 + 3; V2-Lite 6 dense attention tensors a layer, 64 x 3 experts."""
    lite = 3 + 27 * 7 + 3 + 26 * (1 + 3 + 64 * 3)
    counts = {"deepseek-llm-7b": 273, "mixtral-8x7b": 3 + 32 * (6 + 1 + 24), "deepseek-v2-lite": lite}
    for name, count in counts.items():
        assert len(name_table(preset(name)).hf_shapes()) == count


def test_llama_writes_gate_before_up() -> None:
    small = SPECS["llama with biases"]
    state = random_state(small)
    published = to_hf(small, state)
    prefix = "model.layers.1.mlp"
    assert torch.equal(published[f"{prefix}.gate_proj.weight"], state["layers.1.mlp.gate_up_proj.weight"][0])
    assert torch.equal(published[f"{prefix}.up_proj.weight"], state["layers.1.mlp.gate_up_proj.weight"][1])
    assert torch.equal(published[f"{prefix}.up_proj.bias"], state["layers.1.mlp.gate_up_proj.bias"][1])
    attention = {name.removeprefix("model.layers.0.self_attn.") for name in published if ".0.self_attn." in name}
    assert attention == {f"{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")}
    assert published.keys() >= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_mixtral_writes_w1_w3_w2_under_block_sparse_moe() -> None:
    small = SPECS["mixtral"]
    state = random_state(small)
    published = to_hf(small, state)
    inside = {n.removeprefix("model.layers.1.") for n in published if n.startswith("model.layers.1.")}
    experts = {f"block_sparse_moe.experts.{e}.w{w}.weight" for e in range(4) for w in (1, 2, 3)}
    attention = {f"self_attn.{p}_proj.weight" for p in "qkvo"}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert inside == experts | attention | norms | {"block_sparse_moe.gate.weight"}
    stacked = state["layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(published["model.layers.1.block_sparse_moe.experts.2.w1.weight"], stacked[2, 0])
    assert torch.equal(published["model.layers.1.block_sparse_moe.experts.2.w3.weight"], stacked[2, 1])
    down = state["layers.1.mlp.experts.down_proj"]
    assert torch.equal(published["model.layers.1.block_sparse_moe.experts.3.w2.weight"], down[3])


def test_deepseek_v3_writes_multi_token_prediction_as_further_layers() -> None:
    small = SPECS["deepseek_v3"]
    state = random_state(small)
    published = to_hf(small, state)
    inside = {n.removeprefix("model.layers.3.") for n in published if n.startswith("model.layers.3.")}
    experts = {f"mlp.experts.{e}.{p}_proj.weight" for e in range(4) for p in ("gate", "up", "down")}
    shared = {f"mlp.shared_experts.{p}_proj.weight" for p in ("gate", "up", "down")}
    latent = {"q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}
    assert inside == {
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "embed_tokens.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        *experts,
        *shared,
        *(f"self_attn.{name}.weight" for name in latent),
    }
    assert torch.equal(published["model.layers.3.shared_head.norm.weight"], state["mtp.1.norm.weight"])
    assert torch.equal(published["model.layers.2.shared_head.head.weight"], state["lm_head.weight"])
    assert torch.equal(published["model.layers.2.embed_tokens.weight"], state["embed_tokens.weight"])
    assert "model.layers.0.mlp.gate_proj.weight" in published


def test_repeats_may_be_absent_but_must_not_differ() -> None:
    small = SPECS["deepseek_v3"]
    state = random_state(small)
    published = to_hf(small, state)
    bare = {n: t for n, t in published.items() if not n.endswith(("layers.2.embed_tokens.weight", "head.head.weight"))}
    assert len(bare) == len(published) - 3
    assert from_hf(small, bare).keys() == state.keys()
    published["model.layers.3.shared_head.head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"layers.3.shared_head.head.weight: differs from lm_head.weight"):
        from_hf(small, published)


def test_a_tied_head_is_not_written_and_is_dropped_when_read() -> None:
    small = SPECS["qwen2"]
    state = random_state(small)
    published = to_hf(small, state)
    assert "lm_head.weight" not in published
    stored_twice = published | {"lm_head.weight": state["embed_tokens.weight"].clone()}
    assert from_hf(small, stored_twice).keys() == state.keys()
    with pytest.raises(CheckpointError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
        from_hf(small, published | {"lm_head.weight": torch.zeros(20, 8)})


def test_all_faults_of_a_checkpoint_are_listed_at_once() -> None:
    small = SPECS["deepseek_v2"]
    published = to_hf(small, random_state(small))
    del published["model.layers.1.mlp.experts.3.up_proj.weight"]
    published["model.layers.1.mlp.experts.4.up_proj.weight"] = torch.zeros(3, 8)
    published["model.norm.weight"] = torch.zeros(9)
    with pytest.raises(CheckpointError) as caught:
        from_hf(small, published)
    message = str(caught.value)
    assert "1 missing (model.layers.1.mlp.experts.3.up_proj.weight)" in message
    assert "1 unexpected (model.layers.1.mlp.experts.4.up_proj.weight)" in message
    assert "1 of another shape (model.norm.weight is 9 instead of 8)" in message
    assert "\n" not in message


def test_a_long_list_of_faults_is_cut_short_but_counted() -> None:
    experts = dataclasses.replace(MOE, n_routed_experts=200)
    small = spec("deepseek_v2", attention=MLA, moe=experts)
    with pytest.raises(CheckpointError) as caught:
        from_hf(small, {})
    message = str(caught.value)
    count = len(name_table(small).hf_shapes())
    assert count > 1200
    assert f"{count} missing" in message
    assert f"and {count - 20} more" in message
    assert message.count("model.") == 20
    assert len(message) < 2000


def test_faults_of_our_own_state_are_listed_too() -> None:
    small = SPECS["llama"]
    state = random_state(small)
    del state["norm.weight"]
    state["layers.0.mlp.gate_up_proj.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"1 missing \(norm.weight\), 1 of another shape \(layers.0.mlp.gate_up"):
        to_hf(small, state)


def test_the_remedy_names_what_is_wrong() -> None:
    small = SPECS["deepseek_v3"]
    published = to_hf(small, random_state(small))
    without_mtp = {n: t for n, t in published.items() if not n.startswith(("model.layers.2.", "model.layers.3."))}
    with pytest.raises(CheckpointError, match="set num_nextn_predict_layers to 0"):
        from_hf(small, without_mtp)
    quantized = published | {"model.layers.0.self_attn.o_proj.weight_scale_inv": torch.ones(1, 1)}
    with pytest.raises(CheckpointError, match="scales go with FP8 weights"):
        from_hf(small, quantized)


def test_stored_rotary_frequencies_are_ignored() -> None:
    small = SPECS["llama"]
    state = random_state(small)
    published = to_hf(small, state) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert from_hf(small, published).keys() == state.keys()


@pytest.mark.parametrize(
    ("small", "nameless"),
    [
        (spec("llama", attention=MLA), "self_attn.q_a_proj.weight"),
        (spec("qwen2", attention=dataclasses.replace(GQA, out_bias=True)), "self_attn.o_proj.bias"),
        (spec("mistral", mlp_bias=True), "mlp.gate_up_proj.bias"),
        (spec("mixtral", moe=MOE), "mlp.shared_experts.gate_up_proj.weight"),
        (spec("deepseek_v2", attention=MLA, num_nextn_predict_layers=1), "mtp.0.enorm.weight"),
        (spec("deepseek_v2", attention=MLA, moe=dataclasses.replace(MOE, router=SIGMOID)), "e_score_correction_bias"),
    ],
)
def test_what_a_family_cannot_publish_is_refused(small: ModelSpec, nameless: str) -> None:
    with pytest.raises(CheckpointError, match=f"family '{small.family}' publishes no tensor for .*{nameless}"):
        name_table(small)


def test_one_tensor_at_a_time_is_read() -> None:
    small = SPECS["deepseek"]
    published = to_hf(small, random_state(small))
    read: list[str] = []

    def lookup(name: str) -> Tensor:
        read.append(name)
        return published[name]

    stream = stream_from_hf(small, shapes_of(published), lookup, lambda name: published[name].dtype)
    ours, _ = next(stream)
    assert (ours, read) == ("embed_tokens.weight", ["model.embed_tokens.weight"])
    rest = dict(stream)
    assert len(rest) == len(parameter_shapes(small)) - 1
    assert sorted(read) == sorted(published)


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float16), (torch.bfloat16, torch.float16)])
def test_parts_of_different_types_become_the_type_that_holds_them_all(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    small = SPECS["deepseek"]
    state = random_state(small)
    published = to_hf(small, state)
    for index, name in enumerate(sorted(published)):
        published[name] = published[name].to(kinds[index % 2])
    found = from_hf(small, published)
    for rule in name_table(small).rules:
        parts = [published[name] for name in rule.names]
        assert found[rule.param_name].dtype == (
            torch.float32 if len({part.dtype for part in parts}) > 1 else parts[0].dtype
        )
        assert torch.equal(
            found[rule.param_name].float().flatten(), torch.cat([part.float().flatten() for part in parts])
        )
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, *kinds}


def test_repeats_are_written_beside_what_they_repeat() -> None:
    small = SPECS["deepseek_v3"]
    state = random_state(small)
    looked_up: list[str] = []

    def lookup(name: str) -> Tensor:
        looked_up.append(name)
        return state[name]

    published = [name for name, _ in stream_to_hf(small, shapes_of(state), lookup)]
    assert looked_up == list(state)
    first = published.index("model.embed_tokens.weight")
    assert published[first + 1 : first + 3] == [
        "model.layers.2.embed_tokens.weight",
        "model.layers.3.embed_tokens.weight",
    ]


@pytest.mark.parametrize(("name", "largest"), [("deepseek", 1), ("deepseek_v3", 2)])
def test_one_published_tensor_is_alive_beside_ours(name: str, largest: int) -> None:
    """Two where one repeats the other, which is ours."""
    small = SPECS[name]
    published = to_hf(small, random_state(small))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def lookup(name: str) -> Tensor:
        nonlocal most
        tensor = published[name].clone()
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    for _, tensor in stream_from_hf(small, shapes_of(published), lookup, lambda _: torch.float32):
        alive.append(weakref.ref(tensor))
        del tensor
    assert most == largest
