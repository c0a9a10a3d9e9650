from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gguf
import pytest

from fathom.checkpoint.gguf.keys import Keys, as_float32, check_storable, shortest
from fathom.checkpoint.gguf.metadata import metadata_from_spec, spec_from_metadata
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.checkpoint.gguf.rope import ROPE_FACTORS, rope_factors
from fathom.errors import CheckpointError, SpecError
from fathom.families import preset
from fathom.model.build import Shape
from fathom.spec import (
    BalanceSpec,
    GroupLimited,
    LatentAttention,
    Llama3Scaling,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    TopK,
    YarnScaling,
)
from tests.published import SPECS

SpecOf = Callable[[str], ModelSpec]


def _plain(spec: ModelSpec) -> dict[str, Any]:
    """The metadata as a reader finds it, numbers rounded to float32."""
    written = metadata_from_spec(spec)
    return {key: as_float32(value) if kind == "FLOAT32" else value for key, (kind, value) in written.items()}


def _shapes(spec: ModelSpec) -> dict[str, Shape]:
    return {name: shape for rule in gguf_rules(spec) for name, shape in rule.shapes.items()}


def _again(spec: ModelSpec) -> ModelSpec:
    scaling, shapes = spec.rope.scaling, _shapes(spec)
    if not isinstance(scaling, Llama3Scaling):
        return spec_from_metadata(_plain(spec), shapes)
    width = spec.attention.rope_dim
    factors = rope_factors(scaling, spec.rope.theta, width).tolist()
    return spec_from_metadata(_plain(spec), {**shapes, ROPE_FACTORS: (width // 2,)}, factors)


def _untrained(spec: ModelSpec, name: str) -> ModelSpec:
    """Without the settings of training, which a file does not hold."""
    moe = spec.moe
    if moe is not None:
        moe = replace(moe, router=replace(moe.router, balance=BalanceSpec()))
    return replace(spec, name=name, moe=moe, initializer_range=0.006)


def test_a_spec_comes_back_from_its_metadata(spec: ModelSpec) -> None:
    layout = "interleaved" if isinstance(spec.attention, LatentAttention) else "half"
    assert _again(spec) == replace(spec, rope=replace(spec.rope, layout=layout))


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-llm-7b",
        "deepseek-coder-6.7b",
        "deepseek-moe-16b",
        "deepseek-v2",
        "deepseek-v2-lite",
        "deepseek-v2.5",
        "deepseek-v3",
        "mistral-7b",
        "mixtral-8x7b",
        "deepseek-r1-distill-qwen-7b",
        "deepseek-r1-distill-llama-8b",
    ],
)
def test_published_models_come_back_from_their_metadata(name: str) -> None:
    spec = preset(name)
    assert _again(spec) == _untrained(spec, name)


def test_keys_are_those_the_gguf_library_lists(spec: ModelSpec) -> None:
    listed = {
        value.replace("{arch}", metadata_from_spec(spec)["general.architecture"][1])
        for part in vars(gguf.Keys).values()
        if isinstance(part, type)
        for value in vars(part).values()
        if isinstance(value, str)
    }
    assert set(metadata_from_spec(spec)) <= listed


V2_LITE_OF_2024: dict[str, Any] = {
    "general.architecture": "deepseek2",
    "general.name": "deepseek-v2-lite",
    "deepseek2.block_count": 27,
    "deepseek2.context_length": 163840,
    "deepseek2.embedding_length": 2048,
    "deepseek2.feed_forward_length": 10944,
    "deepseek2.attention.head_count": 16,
    "deepseek2.attention.head_count_kv": 16,
    "deepseek2.rope.freq_base": 10000.0,
    "deepseek2.attention.layer_norm_rms_epsilon": as_float32(1e-6),
    "deepseek2.expert_used_count": 6,
    "deepseek2.leading_dense_block_count": 1,
    "deepseek2.vocab_size": 102400,
    "deepseek2.attention.kv_lora_rank": 512,
    "deepseek2.attention.key_length": 192,
    "deepseek2.attention.value_length": 128,
    "deepseek2.expert_feed_forward_length": 1408,
    "deepseek2.expert_count": 64,
    "deepseek2.expert_shared_count": 2,
    "deepseek2.expert_weights_scale": 1.0,
    "deepseek2.rope.dimension_count": 64,
    "deepseek2.rope.scaling.type": "yarn",
    "deepseek2.rope.scaling.factor": 40.0,
    "deepseek2.rope.scaling.original_context_length": 4096,
    "deepseek2.rope.scaling.yarn_log_multiplier": as_float32(0.0707),
    "tokenizer.ggml.bos_token_id": 100000,
    "tokenizer.ggml.eos_token_id": 100001,
}


def test_a_v2_lite_file_of_2024_is_v2_lite() -> None:
    spec = preset("deepseek-v2-lite")
    shapes = {
        name.replace("attn_q_a", "attn_q"): shape
        for name, shape in _shapes(spec).items()
        if not name.endswith(("attn_k_b.weight", "attn_v_b.weight"))
    }
    shapes |= {f"blk.{layer}.attn_kv_b.weight": (16 * 256, 512) for layer in range(27)}
    assert spec_from_metadata(V2_LITE_OF_2024, shapes) == _untrained(spec, "deepseek-v2-lite")


def test_a_v3_file_without_group_keys_selects_from_all_and_one_without_gating_is_v2(spec_of: SpecOf) -> None:
    spec = spec_of("deepseek_v3")
    metadata, shapes = _plain(spec), _shapes(spec)
    del metadata["deepseek2.expert_group_count"], metadata["deepseek2.expert_group_used_count"]
    assert spec.moe is not None
    found = spec_from_metadata(metadata, shapes)
    assert found.moe is not None
    assert found.moe.router == replace(spec.moe.router, select=TopK())
    del metadata["deepseek2.expert_gating_func"]
    assert spec_from_metadata(metadata, shapes).family == "deepseek_v2"


def test_modules_missing_from_a_file_are_not_counted(spec_of: SpecOf) -> None:
    spec = spec_of("deepseek_v3 with MTP")
    trunk = {name: shape for name, shape in _shapes(spec).items() if not name.startswith("blk.3.")}
    found = spec_from_metadata(_plain(spec), trunk)
    assert (found.num_hidden_layers, found.num_nextn_predict_layers) == (3, 0)


def test_numbers_are_the_shortest_decimals_of_their_float32() -> None:
    for value in (1e-6, 1e-5, 0.707, 10_000.0, 500_000.0, 16.0, 2.5, 0.0707, 1 / 3):
        stored = as_float32(value)
        assert as_float32(shortest(stored)) == stored
        assert len(repr(shortest(stored))) <= max(len(repr(value)), 12)
    assert shortest(as_float32(1e-6)) == 1e-6


def test_lists_of_equal_numbers_count_as_one(spec_of: SpecOf) -> None:
    spec = spec_of("llama")
    metadata = _plain(spec) | {"llama.attention.head_count_kv": [2, 2, 2], "llama.feed_forward_length": [96] * 3}
    assert spec_from_metadata(metadata, _shapes(spec)) == spec
    with pytest.raises(SpecError, match=r"llama\.attention\.head_count_kv: differs between layers"):
        spec_from_metadata(metadata | {"llama.attention.head_count_kv": [2, 1, 2]}, _shapes(spec))


def test_what_cannot_be_read_is_refused_by_its_key(spec_of: SpecOf) -> None:
    spec = spec_of("llama")
    metadata, shapes = _plain(spec), _shapes(spec)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"general.architecture": "gpt2"}, r"general\.architecture: 'gpt2' is not supported"),
        ({"llama.block_count": None}, r"llama\.block_count: expected a whole number, got None"),
        ({"llama.context_length": 2.5}, r"llama\.context_length: expected a whole number"),
        ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "expected a number, got nan"),
        ({"llama.rope.scaling.type": "longrope"}, r"rope\.scaling\.type: 'longrope' is not supported"),
        ({"llama.rope.dimension_count": 8}, r"llama\.rope\.dimension_count: is not 16"),
        ({"llama.attention.causal": False}, r"llama\.attention\.causal: changes what is computed"),
    ]
    for change, message in cases:
        with pytest.raises(SpecError, match=message):
            spec_from_metadata(metadata | change, shapes)
    del metadata["llama.embedding_length"]
    with pytest.raises(SpecError, match=r"llama\.embedding_length: is missing"):
        Keys(metadata).integer("embedding_length")
    with pytest.raises(CheckpointError, match=r"token_embd\.weight: is missing"):
        spec_from_metadata(_plain(spec), {})
    with pytest.raises(CheckpointError, match="pass them as rope_factors"):
        spec_from_metadata(_plain(spec), {**shapes, ROPE_FACTORS: (8,)})


def test_what_an_architecture_has_no_place_for_is_refused(spec_of: SpecOf) -> None:
    llama, v2, moe16, mixtral = (spec_of(name) for name in ("llama", "deepseek_v2", "deepseek", "mixtral"))
    assert moe16.moe is not None
    assert mixtral.moe is not None
    assert isinstance(v2.attention, LatentAttention)
    groups = replace(mixtral.moe.router, select=GroupLimited(n_group=4, topk_group=2))
    cases = [
        (replace(moe16, moe_layer_freq=2), "moe_layer_freq"),
        (replace(v2, attention=replace(v2.attention, bias=True)), "attention"),
        (replace(llama, family="qwen2", moe=moe16.moe), "moe"),
        (replace(llama, family="qwen2", mlp_bias=True), "mlp_bias"),
        (replace(v2, rope=RopeSpec(scaling=Llama3Scaling(factor=4.0, original_max_position_embeddings=32))), "rope"),
        (replace(llama, num_nextn_predict_layers=1), "num_nextn_predict_layers"),
        (replace(mixtral, moe=replace(mixtral.moe, router=groups)), "moe.router"),
        (replace(mixtral, moe=replace(mixtral.moe, n_shared_experts=1)), "moe.n_shared_experts"),
        (replace(moe16, moe=replace(moe16.moe, router=RouterSpec(score="sigmoid"))), "moe.router"),
        (replace(llama, attention=v2.attention), "attention"),
    ]
    for spec, path in cases:
        with pytest.raises(SpecError, match=f"{path}.*GGUF's architecture .* cannot express it"):
            metadata_from_spec(spec)


def _llama_cpp_scales(metadata: dict[str, Any], *, mla: bool) -> tuple[float, float]:
    """What llama.cpp multiplies cos and sin by, and the softmax scale of MLA, from the keys of a file."""
    arch = metadata["general.architecture"]
    factor = metadata[f"{arch}.rope.scaling.factor"]
    multiplier = metadata.get(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0) / 0.1 if mla else 0.0
    given = metadata.get(f"{arch}.rope.scaling.attn_factor", 1.0)
    shrunk = given / (1 + 0.1 * math.log(factor))
    if multiplier == 0:
        shrunk *= 0.1 * math.log(factor) + 1
    rotation = shrunk * (1 + 0.1 * math.log(factor))  # the kernel multiplies again
    return rotation, (rotation * (1 + 0.1 * multiplier * math.log(factor))) ** 2


@pytest.mark.parametrize("mscale", [None, 0.707, 1.0, 1.3])
@pytest.mark.parametrize("all_dim", [None, 0.707, 1.0, 1.3])
@pytest.mark.parametrize("attention_factor", [None, 1.0, 1.2])
def test_llama_cpp_scales_as_yarn_says_whatever_it_says(
    mscale: float | None, all_dim: float | None, attention_factor: float | None, spec_of: SpecOf
) -> None:
    yarn = YarnScaling(
        factor=40.0,
        original_max_position_embeddings=64,
        mscale=mscale,
        mscale_all_dim=all_dim,
        attention_factor=attention_factor,
    )
    for name in ("llama", "deepseek_v2"):
        spec = spec_of(name)
        spec = replace(spec, rope=replace(spec.rope, scaling=yarn))
        mla = name == "deepseek_v2"
        rotation, softmax = _llama_cpp_scales(_plain(spec), mla=mla)
        assert rotation == pytest.approx(yarn.rotation_scale, rel=1e-6)
        again = _again(spec).rope.scaling
        assert isinstance(again, YarnScaling)
        assert again.rotation_scale == pytest.approx(yarn.rotation_scale, rel=1e-6)
        if mla:
            assert softmax == pytest.approx(yarn.softmax_multiplier, rel=1e-6)
            assert again.softmax_multiplier == pytest.approx(yarn.softmax_multiplier, rel=2e-6)


@pytest.mark.parametrize(
    ("kind", "largest", "beyond"),
    [
        ("FLOAT32", (2 - 2**-23) * 2.0**127, 1e300),
        ("FLOAT32[]", [1.0, -1.0], [1.0, -1e39]),
        ("UINT32", 2**32 - 1, 2**32),
        ("UINT32", 0, -1),
        ("INT32[]", (-(2**31),), (-(2**31) - 1,)),
    ],
)
def test_numbers_that_their_type_cannot_hold_are_refused(kind: Any, largest: Any, beyond: Any) -> None:
    assert check_storable({"x.y": (kind, largest)})
    with pytest.raises(SpecError, match=r"x\.y: .* does not fit .*; use another format"):
        check_storable({"x.y": (kind, beyond)})


def test_a_model_that_gguf_cannot_hold_is_refused_by_the_key() -> None:
    spec = replace(SPECS["tiny-deepseek_v2"], rms_norm_eps=1e300)
    with pytest.raises(SpecError, match=r"deepseek2\.attention\.layer_norm_rms_epsilon: 1e\+300 does not fit FLOAT32"):
        metadata_from_spec(spec)
