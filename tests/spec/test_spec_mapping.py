import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import (
    BalanceSpec,
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    LinearScaling,
    Llama3Scaling,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    SamplingParams,
    TopK,
    YarnScaling,
    from_mapping,
    read_toml,
    to_mapping,
)
from fathom.spec.recipe import Recipe

small = st.integers(1, 8)
factor = st.floats(0.5, 64, allow_nan=False)


@st.composite
def attentions(draw: st.DrawFn) -> GroupedQueryAttention | LatentAttention:
    if draw(st.booleans()):
        kv_heads = draw(small)
        return GroupedQueryAttention(
            num_heads=kv_heads * draw(small),
            num_kv_heads=kv_heads,
            head_dim=2 * draw(small),
            qkv_bias=draw(st.booleans()),
            sliding_window=draw(st.none() | small),
        )
    return LatentAttention(
        num_heads=draw(small),
        kv_lora_rank=draw(small),
        qk_nope_head_dim=draw(small),
        qk_rope_head_dim=2 * draw(small),
        v_head_dim=draw(small),
        q_lora_rank=draw(st.none() | small),
    )


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureOfExperts:
    groups, size = draw(small), draw(st.integers(2, 8))
    chosen = draw(st.integers(1, groups))
    limited = GroupLimited(n_group=groups, topk_group=chosen, group_score=draw(st.sampled_from(["max", "top2_sum"])))
    return MixtureOfExperts(
        n_routed_experts=groups * size,
        num_experts_per_tok=draw(st.integers(1, size * chosen)),
        moe_intermediate_size=draw(small),
        n_shared_experts=draw(st.integers(0, 2)),
        router=RouterSpec(
            score=draw(st.sampled_from(["softmax", "sigmoid"])),
            select=draw(st.sampled_from([TopK(), limited])),
            selection_bias=True,
            normalize=draw(st.booleans()),
            scale=draw(factor),
            balance=BalanceSpec(
                expert_loss=draw(st.floats(0, 1)),
                bias_update_rate=draw(st.floats(0, 1)),
                capacity_factor=draw(st.none() | factor),
            ),
        ),
    )


ropes = st.builds(
    RopeSpec,
    theta=st.floats(1, 1e7),
    layout=st.sampled_from(["half", "interleaved"]),
    scaling=st.none()
    | st.builds(LinearScaling, factor=factor)
    | st.builds(Llama3Scaling, factor=factor, original_max_position_embeddings=small)
    | st.builds(
        YarnScaling,
        factor=factor,
        original_max_position_embeddings=small,
        mscale=st.none() | factor,
        mscale_all_dim=st.none() | factor,
        truncate=st.booleans(),
    ),
)


@given(attention=attentions(), moe=st.none() | mixtures(), rope=ropes, name=st.text(max_size=12))
def test_any_model_survives_mappings_and_json(
    attention: Any, moe: MixtureOfExperts | None, rope: RopeSpec, name: str
) -> None:
    spec = ModelSpec(
        name=name,
        family="deepseek_v2",
        vocab_size=64,
        hidden_size=8,
        num_hidden_layers=2,
        attention=attention,
        max_position_embeddings=64,
        intermediate_size=16,
        moe=moe,
        rope=rope,
        pad_token_id=-1,
    )
    mapping = to_mapping(spec)
    assert from_mapping(ModelSpec, mapping) == spec
    assert from_mapping(ModelSpec, json.loads(json.dumps(mapping))) == spec


BASE = to_mapping(preset("bench-t"))


def changed(path: str, value: Any) -> dict[str, Any]:
    mapping: dict[str, Any] = json.loads(json.dumps(BASE))
    table = mapping
    *parents, last = path.split(".")
    for parent in parents:
        table = table[parent]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return mapping


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("hiden_size", 1, "model.hiden_size: unknown field; did you mean 'hidden_size'?"),
        ("zzz", 1, "model.zzz: unknown field; known fields: "),
        ("hidden_size", None, "model.hidden_size: is missing; set it in ModelSpec"),
        ("hidden_size", 2.5, "model.hidden_size: expected int, got 2.5"),
        ("hidden_size", True, "model.hidden_size: expected int, got True"),
        ("mlp_bias", 1, "model.mlp_bias: expected bool, got 1"),
        ("rms_norm_eps", "small", "model.rms_norm_eps: expected float, got 'small'"),
        ("family", "gpt2", "model.family: unknown value 'gpt2'; use one of 'llama'"),
        ("attention", 3, "model.attention: expected a table, got 3; give one with a kind of gqa, mla"),
        ("attention.kind", None, "model.attention.kind: needs a kind; use one of gqa, mla"),
        ("attention.kind", "flash", "model.attention.kind: unknown kind 'flash'; use one of gqa, mla"),
        ("attention.kv_lora_rank", 0, "model.attention.kv_lora_rank: must be above 0, got 0"),
        ("attention.head_dim", 8, "model.attention.head_dim: unknown field"),
        ("moe.router.select.kind", "best", "model.moe.router.select.kind: unknown kind 'best'"),
        ("moe.router.balance.devices", 5, "model.moe.n_routed_experts: 32 is not a multiple of 5"),
        ("moe.router.balance.scope", "step", "model.moe.router.balance.scope: unknown value 'step'"),
        ("rope", [], "model.rope: expected a table, got []"),
    ],
)
def test_errors_are_located(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping(ModelSpec, changed(path, value), "model")
    assert str(caught.value).startswith(message)


def test_whole_numbers_pass_for_floats_and_lists_for_tuples() -> None:
    spec = from_mapping(ModelSpec, changed("rope.theta", 500000))
    assert spec.rope.theta == 500000.0
    assert isinstance(spec.rope.theta, float)


RECIPE = """
name = "tiny"
[model]
name = "m"
family = "llama"
vocab_size = 512
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 64
max_position_embeddings = 64
[model.attention]
kind = "gqa"
num_heads = 2
num_kv_heads = 1
head_dim = 16
[[steps]]
kind = "corpus"
manifest = "sources.toml"
[[steps]]
kind = "train"
name = "pretrain"
[steps.train]
sequence_length = 64
total_tokens = 1024
batch = { size = 4, micro_batch_size = 2 }
optimizer = { lr = 1e-3 }
schedule = { kind = "step", milestones = [0.5, 0.75] }
"""


def test_a_recipe_is_read_from_toml_and_survives_mappings(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    recipe = from_mapping(Recipe, read_toml(path))
    assert [step.name for step in recipe.steps] == ["corpus", "pretrain"]
    assert recipe.steps[1].train.schedule.milestones == (0.5, 0.75)  # type: ignore[union-attr]
    assert from_mapping(Recipe, to_mapping(recipe)) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 1e-3", "lr = 0.0", "steps[1].train.optimizer.lr: must be above 0, got 0.0"),
        ("lr = 1e-3", "rate = 1", "steps[1].train.optimizer.rate: unknown field"),
        ('kind = "corpus"', 'kind = "corpora"', "steps[0].kind: unknown kind 'corpora'"),
        ('kind = "corpus"\n', "", "steps[0].kind: needs a kind; use one of answers, captions, corpus"),
        ("[0.5, 0.75]", "[0.5, true]", "steps[1].train.schedule.milestones[1]: expected float, got True"),
        ("[0.5, 0.75]", "0.5", "steps[1].train.schedule.milestones: expected a list, got 0.5"),
        ("sequence_length = 64", "sequence_length = 65", "steps[1].train.sequence_length: 65 exceeds the context"),
        ("head_dim = 16", "head_dim = 15", "model.attention.head_dim: 15 is not a multiple of 2"),
        ("size = 4,", "size = 5,", "steps[1].train.batch.size: 5 is not a multiple of 2"),
    ],
)
def test_errors_in_toml_are_located(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(SpecError) as caught:
        from_mapping(Recipe, tomllib.loads(RECIPE.replace(old, new)))
    assert str(caught.value).startswith(message)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('a = 1\nb = "unfinished\n')
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'a = "\xe9"')
    for path, problem in (
        (tmp_path / "none.toml", "no such file; check the path"),
        (tmp_path, "is a folder"),
        (broken, "is not valid TOML: .*line 2"),
        (latin, "cannot be read"),
    ):
        with pytest.raises(SpecError, match=problem) as caught:
            read_toml(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_spec_error_gains_its_parents_path() -> None:
    error = SpecError("lr", "is wrong", "fix it").under("optimizer").under("steps[3]")
    assert (error.path, str(error)) == ("steps[3].optimizer.lr", "steps[3].optimizer.lr: is wrong; fix it")
    assert SpecError("[2]", "is wrong", "fix it").under("list").path == "list[2]"
    assert str(SpecError("", "is wrong", "fix it")) == "is wrong; fix it"


def test_none_is_left_out_because_toml_has_no_null() -> None:
    mapping = to_mapping(replace(preset("bench-t"), moe=None, first_k_dense_replace=0))
    assert "moe" not in mapping
    assert "scaling" not in mapping["rope"]


def test_a_list_of_pairs_has_a_type_for_each_of_both() -> None:
    made = from_mapping(SamplingParams, {"logit_bias": [[11, -100.5], [12, 1]]})
    assert made.logit_bias == ((11, -100.5), (12, 1.0))
    for wrong, where in (([[1.5, 0]], "logit_bias[0][0]"), ([[1, "a"]], "logit_bias[0][1]"), ([[1]], "logit_bias[0]")):
        with pytest.raises(SpecError) as refused:
            from_mapping(SamplingParams, {"logit_bias": wrong})
        assert refused.value.path == where
