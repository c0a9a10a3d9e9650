from __future__ import annotations

from collections.abc import Callable

import gguf
import pytest
import torch
from torch import Tensor

from fathom.checkpoint.gguf.keys import architecture
from fathom.checkpoint.gguf.names import check, gguf_rules
from fathom.checkpoint.names import name_table
from fathom.errors import CheckpointError
from fathom.model.build import Shape
from fathom.spec import LatentAttention, ModelSpec

Make = Callable[[ModelSpec], dict[str, Tensor]]
SpecOf = Callable[[str], ModelSpec]


def _stored(spec: ModelSpec, state: dict[str, Tensor], found: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {name: part.clone() for rule in gguf_rules(spec, found) for name, part in rule.split(state[rule.param_name])}


def _shapes(stored: dict[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}


def test_ours_to_gguf_and_back_is_the_same_bit_for_bit(spec: ModelSpec, random_state: Make) -> None:
    state = random_state(spec)
    stored = _stored(spec, state)
    rules = check(spec, _shapes(stored))
    assert [rule.param_name for rule in rules] == list(state)
    for rule in rules:
        assert torch.equal(rule.assemble(stored.__getitem__), state[rule.param_name]), rule.param_name


def test_every_rule_announces_the_shapes_it_splits_into(spec: ModelSpec, random_state: Make) -> None:
    state = random_state(spec)
    for rule in gguf_rules(spec):
        assert {name: tuple(part.shape) for name, part in rule.split(state[rule.param_name])} == rule.shapes


def test_names_are_those_the_gguf_library_gives_the_published_tensors(spec: ModelSpec) -> None:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture(spec))
    library = gguf.get_tensor_name_map(arch, spec.num_hidden_layers)
    published = {rule.param_name: rule.published for rule in name_table(spec).rules}
    for rule in gguf_rules(spec):
        if rule.param_name.startswith("mtp."):
            continue  # that version of the library maps none for these families
        expected = []
        for name in published[rule.param_name][0]:
            merged = name.replace(".experts.0.", ".experts.")
            if "block_sparse_moe.experts" in merged:
                merged = merged.replace("model.", "").replace("block_sparse_moe", "feed_forward")
            parts = [merged]
            if "kv_b_proj" in merged:
                parts = [merged.replace("kv_b", letter + "_b") for letter in "kv"]
            expected += [library.get_name(part, try_suffixes=(".weight", ".bias")) for part in parts]
        if rule.param_name.endswith("e_score_correction_bias"):
            expected = [rule.names[0]]
            assert rule.names[0].endswith(".exp_probs_b.bias")
        assert list(rule.names) == expected


def test_rows_of_queries_and_keys_are_stored_pair_by_pair(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("llama")
    state = random_state(spec)
    stored = _stored(spec, state)
    for ours, theirs, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        weight = state[f"layers.1.self_attn.{ours}.weight"]
        for head in range(heads):
            for pair in range(8):
                first = stored[f"blk.1.{theirs}.weight"][16 * head + 2 * pair]
                second = stored[f"blk.1.{theirs}.weight"][16 * head + 2 * pair + 1]
                assert torch.equal(first, weight[16 * head + pair])
                assert torch.equal(second, weight[16 * head + pair + 8])
    assert torch.equal(stored["blk.1.attn_v.weight"], state["layers.1.self_attn.v_proj.weight"])


def test_qwen2_and_latent_rows_stay_where_they_are(spec_of: SpecOf, random_state: Make) -> None:
    for name, pairs in (
        ("qwen2", {"self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.bias": "attn_k.bias"}),
        ("deepseek_v2", {"self_attn.q_b_proj.weight": "attn_q_b.weight"}),
    ):
        spec = spec_of(name)
        state = random_state(spec)
        stored = _stored(spec, state)
        for ours, theirs in pairs.items():
            assert torch.equal(stored[f"blk.2.{theirs}"], state[f"layers.2.{ours}"])


def test_latent_keys_are_stored_transposed_and_values_as_they_are(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("deepseek_v2")
    state = random_state(spec)
    stored = _stored(spec, state)
    shape = spec.attention
    assert isinstance(shape, LatentAttention)
    whole = state["layers.0.self_attn.kv_b_proj.weight"]
    nope, value = shape.qk_nope_head_dim, shape.v_head_dim
    for head in range(shape.num_heads):
        rows = whole[head * (nope + value) :][: nope + value]
        assert torch.equal(stored["blk.0.attn_k_b.weight"][head], rows[:nope].T)
        assert torch.equal(stored["blk.0.attn_v_b.weight"][head], rows[nope:])


def test_experts_are_stacked_with_gate_and_up_apart(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("mixtral")
    state = random_state(spec)
    stored = _stored(spec, state)
    both = state["layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(stored["blk.0.ffn_gate_exps.weight"], both[:, 0])
    assert torch.equal(stored["blk.0.ffn_up_exps.weight"], both[:, 1])


def test_files_of_earlier_years_are_read_too(spec_of: SpecOf, random_state: Make) -> None:
    latent, mixtral = spec_of("deepseek_v2"), spec_of("mixtral")
    state = random_state(latent)
    stored = _stored(latent, state)
    for layer in range(3):
        del stored[f"blk.{layer}.attn_k_b.weight"], stored[f"blk.{layer}.attn_v_b.weight"]
        stored[f"blk.{layer}.attn_kv_b.weight"] = state[f"layers.{layer}.self_attn.kv_b_proj.weight"]
    _assert_reads(latent, stored, state)
    state = random_state(mixtral)
    stored = _stored(mixtral, state)
    for layer in range(3):
        for part in ("gate", "up", "down"):
            stack = stored.pop(f"blk.{layer}.ffn_{part}_exps.weight")
            stored |= {f"blk.{layer}.ffn_{part}.{expert}.weight": one for expert, one in enumerate(stack)}
    _assert_reads(mixtral, stored, state)


def test_gate_and_up_in_one_stack_are_read_and_repeats_are_passed_over(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("deepseek_v3")
    state = random_state(spec)
    stored = _stored(spec, state)
    for layer in (1, 2):
        del stored[f"blk.{layer}.ffn_gate_exps.weight"], stored[f"blk.{layer}.ffn_up_exps.weight"]
        stored[f"blk.{layer}.ffn_gate_up_exps.weight"] = state[f"layers.{layer}.mlp.experts.gate_up_proj"].flatten(1, 2)
        stored[f"blk.{layer}.attn_kv_b.weight"] = state[f"layers.{layer}.self_attn.kv_b_proj.weight"]
    stored["rope_freqs.weight"] = torch.ones(8)
    _assert_reads(spec, stored, state)


def _assert_reads(spec: ModelSpec, stored: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for rule in check(spec, _shapes(stored)):
        assert torch.equal(rule.assemble(stored.__getitem__), state[rule.param_name]), rule.param_name


def test_parts_of_different_types_are_joined_in_the_type_that_holds_both(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("llama")
    state = random_state(spec)
    stored = _stored(spec, state)
    rule = next(rule for rule in gguf_rules(spec) if rule.param_name == "layers.0.mlp.gate_up_proj.weight")
    for narrow in rule.names:
        mixed = stored | {narrow: stored[narrow].to(torch.bfloat16)}
        joined = rule.assemble(mixed.__getitem__)
        assert joined.dtype == torch.float32
        assert torch.equal(joined[0], mixed["blk.0.ffn_gate.weight"].float())
        assert torch.equal(joined[1], mixed["blk.0.ffn_up.weight"].float())


def test_all_faults_are_listed_at_once(spec_of: SpecOf, random_state: Make) -> None:
    spec = spec_of("llama")
    shapes = _shapes(_stored(spec, random_state(spec)))
    del shapes["blk.1.ffn_up.weight"], shapes["output_norm.weight"]
    shapes |= {"blk.0.attn_qkv.weight": (1, 2), "blk.2.ffn_down.weight": (3, 4)}
    with pytest.raises(CheckpointError) as caught:
        check(spec, shapes)
    message = str(caught.value)
    assert "2 missing (blk.1.ffn_up.weight, output_norm.weight)" in message
    assert "1 unexpected (blk.0.attn_qkv.weight)" in message
    assert "1 of another shape (blk.2.ffn_down.weight is 3x4 instead of 64x96)" in message
    assert "\n" not in message
