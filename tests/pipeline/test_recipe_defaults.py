"""What a recipe may leave out, and that whole recipes mean what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import SpecError, SpecErrors
from fathom.families import PRESETS
from fathom.pipeline.recipe import load_run_plan, make_recipe
from fathom.spec.attention import GroupedQueryAttention, LatentAttention
from fathom.spec.mapping import from_mapping, read_toml, to_mapping
from fathom.spec.model import FAMILIES
from fathom.spec.moe import GroupLimited, TopK
from fathom.spec.recipe import Recipe, TrainStep
from fathom.spec.train import AdamWSpec, BatchSpec, TrainSpec
from tests.spec.test_faults import RECIPES, whole_recipe

SMALL = """
name = "small"
[model]
family = "FAMILY"
hidden_size = 64
num_hidden_layers = 3
attention = { num_heads = 4 }
moe = { n_routed_experts = 16, num_experts_per_tok = 2, moe_intermediate_size = 32 }
[[steps]]
kind = "corpus"
manifest = "sources.toml"
[[steps]]
kind = "tokenizer"
vocab_size = 512
[[steps]]
kind = "shards"
[[steps]]
kind = "train"
train = { sequence_length = 128, total_tokens = 10_000, batch = { size = 4 }, optimizer = { lr = 1e-3 } }
[[steps]]
kind = "train"
train = { sequence_length = 128, total_tokens = 10_000, batch = { size = 4 }, optimizer = { lr = 1e-3 } }
"""


def write(folder: Path, text: str) -> Path:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("text")
    (folder / "sources.toml").write_text('[[sources]]\nkind = "folder"\nname = "mine"\npath = "texts"\n')
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_a_recipe_of_deepseek_v2_needs_its_sizes_only(tmp_path: Path) -> None:
    plan = load_run_plan(write(tmp_path, SMALL.replace("FAMILY", "deepseek_v2")))
    model = plan.recipe.trained_model
    assert model.attention == LatentAttention(
        num_heads=4, kv_lora_rank=64, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16
    )
    assert (model.vocab_size, model.max_position_embeddings, model.rope.layout) == (512, 128, "interleaved")
    assert model.moe is not None
    assert (model.moe.n_shared_experts, model.first_k_dense_replace, model.intermediate_size) == (2, 1, 4 * 32)
    assert model.moe.router.select == GroupLimited(n_group=8, topk_group=3)
    balance = model.moe.router.balance
    assert (balance.expert_loss, balance.device_loss, balance.communication_loss) == (0.003, 0.05, 0.02)
    assert [step.name for step in plan.recipe.steps] == ["corpus", "tokenizer", "shards", "train", "train-2"]
    shown = dict(plan.defaults)
    assert shown["model.name"] == '"small"'
    assert shown["model.attention.kv_lora_rank"] == "64"
    assert shown["model.moe.router"].startswith("{ balance = { expert_loss = 0.003")
    assert shown["steps[4].name"] == '"train-2"'


@pytest.mark.parametrize("family", ["deepseek_v2", "llama"])
def test_of_what_follows_from_a_missing_field_only_that_field_is_missed(family: str, tmp_path: Path) -> None:
    text = SMALL.replace("FAMILY", family).replace("attention = {", "intermediate_size = 64\n#")
    with pytest.raises(SpecError, match=r"small.toml: model.attention.num_heads: is missing; set it, e.g. num_heads"):
        load_run_plan(write(tmp_path, text))


def test_v3_brings_its_router_and_what_is_given_wins(tmp_path: Path) -> None:
    text = SMALL.replace("FAMILY", "deepseek_v3").replace(
        "moe_intermediate_size = 32",
        'moe_intermediate_size = 32, router = { scale = 1.5, select = { kind = "top_k" } }',
    )
    model = load_run_plan(write(tmp_path, text)).recipe.trained_model
    assert model.moe is not None
    router = model.moe.router
    assert (router.score, router.selection_bias, router.normalize, router.scale) == ("sigmoid", True, True, 1.5)
    assert router.select == TopK()
    assert (router.balance.bias_update_rate, router.balance.sequence_loss) == (0.001, 1e-4)


def test_every_family_makes_a_model_of_few_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    for family in FAMILIES:
        if family.startswith("deepseek_vl"):
            continue  # a vision tower has no size by default
        text = SMALL.replace("FAMILY", family)
        if family in ("llama", "qwen2", "mistral"):
            text = text.replace("moe = {", "intermediate_size = 96\n#")
        path.write_text(text)
        model = load_run_plan(path).recipe.trained_model
        assert model.family == family
        if isinstance(model.attention, GroupedQueryAttention):
            assert (model.attention.num_kv_heads, model.attention.head_dim) == (4, 16)


def test_experts_that_do_not_divide_among_devices_are_routed_as_in_v2_lite(tmp_path: Path) -> None:
    text = SMALL.replace("FAMILY", "deepseek_v2").replace("n_routed_experts = 16", "n_routed_experts = 10")
    model = load_run_plan(write(tmp_path, text)).recipe.trained_model
    assert model.moe is not None
    assert model.moe.router.select == TopK()
    assert (model.moe.router.balance.expert_loss, model.moe.router.balance.device_loss) == (0.001, 0.0)


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.toml")))
def test_the_recipes_of_fathom_leave_nothing_to_defaults_of_a_family(name: str) -> None:
    """So they mean what they meant before families had defaults: their tables read as they stand are the recipe."""
    plan = load_run_plan(RECIPES / name)
    assert plan.defaults == ()
    assert plan.recipe == from_mapping(Recipe, whole_recipe(name))


def test_given_balance_losses_leave_the_selection_as_it_is() -> None:
    recipe = RECIPES.parent / "tests" / "pipeline" / "tiny.toml"
    raw = read_toml(recipe)
    assert make_recipe(raw, []).trained_model.moe == from_mapping(Recipe, read_toml(recipe)).trained_model.moe


def test_recorded_recipes_are_read_as_they_are() -> None:
    """Of every preset: a value that is None is not recorded, and is not filled either."""
    for entry in PRESETS.values():
        recorded = json.loads(json.dumps(to_mapping(entry.spec)))
        filled: list[tuple[str, str]] = []
        recipe = {"name": "r", "steps": [{"kind": "open", "model": "m"}], "model": recorded}
        made = make_recipe(json.loads(json.dumps(recipe)), [], filled)
        assert made.model == entry.spec
        assert filled == []


@pytest.mark.parametrize(
    ("batch", "length", "expected"),
    [
        (BatchSpec(size=8), 256, 8),
        (BatchSpec(size=48), 1024, 8),
        (BatchSpec(size=7), 4096, 1),
        (BatchSpec(size=12, initial_size=8, ramp_tokens=10**6), 64, 4),
        (BatchSpec(size=12, micro_batch_size=3), 10**6, 3),
        (BatchSpec(size=3), 10**6, 1),
    ],
)
def test_a_micro_batch_is_the_largest_that_divides_and_holds_8192_tokens(
    batch: BatchSpec, length: int, expected: int
) -> None:
    spec = TrainSpec(sequence_length=length, total_tokens=10**9, batch=batch, optimizer=AdamWSpec(lr=1e-3))
    assert spec.batch.micro_batch_size == expected
    assert from_mapping(TrainSpec, to_mapping(spec)) == spec


def test_names_by_default_stay_clear_of_given_ones_and_can_be_set(tmp_path: Path) -> None:
    text = SMALL.replace("FAMILY", "deepseek_v2").replace('kind = "corpus"', 'kind = "corpus"\nname = "Train"')
    path = write(tmp_path, text)
    recipe = load_run_plan(path, overrides=["train-3.train.total_tokens=20000"]).recipe
    assert [step.name for step in recipe.steps] == ["Train", "tokenizer", "shards", "train-2", "train-3"]
    last = recipe.steps[-1]
    assert isinstance(last, TrainStep)
    assert last.train.total_tokens == 20_000


def broken(folder: Path, changes: dict[str, str]) -> Path:
    text = SMALL.replace("FAMILY", "deepseek_v2")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    return write(folder, text)


FIVE = {
    "hidden_size = 64": "hidden_size = -64",
    "num_hidden_layers = 3": 'num_hidden_layers = "three"',
    "n_routed_experts = 16, ": "",
    "vocab_size = 512": "vocab_sise = 512",
    "lr = 1e-3": "lr = 0",
}


def test_five_faults_are_one_block_with_an_example_each(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as refused:
        load_run_plan(broken(tmp_path, FIVE))
    lines = str(refused.value).splitlines()
    paths = [fault.path for fault in refused.value.faults]
    assert lines[0] == f"small.toml: {len(paths)} faults:"
    for path in (
        *("model.hidden_size", "model.num_hidden_layers", "model.moe.n_routed_experts"),
        *("steps[1].vocab_sise", "steps[1].vocab_size", "steps[3].train.optimizer.lr"),
    ):
        assert path in paths
    assert "      e.g. n_routed_experts = 24" in lines


def test_the_remedies_and_examples_of_five_faults_work(tmp_path: Path) -> None:
    path = broken(tmp_path, FIVE)
    with pytest.raises(SpecErrors) as refused:
        load_run_plan(path)
    examples = {fault.path: fault.example for fault in refused.value.faults}
    text = path.read_text()
    text = text.replace("hidden_size = -64", examples["model.hidden_size"])
    text = text.replace('num_hidden_layers = "three"', examples["model.num_hidden_layers"])
    text = text.replace("moe = {", f"moe = {{ {examples['model.moe.n_routed_experts']},")
    text = text.replace("vocab_sise = 512", examples["steps[1].vocab_size"])
    text = text.replace("lr = 0", examples["steps[3].train.optimizer.lr"])
    path.write_text(text)
    assert load_run_plan(path).recipe.trained_model.hidden_size == 256


def test_one_fault_is_one_line_with_its_example(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        load_run_plan(broken(tmp_path, {"hidden_size = 64\n": ""}))
    assert str(refused.value) == "small.toml: model.hidden_size: is missing; set it, e.g. hidden_size = 256"


def test_an_unknown_preset_stands_beside_other_faults_of_its_model(tmp_path: Path) -> None:
    changes = {'family = "deepseek_v2"': 'preset = "no-such"', "hidden_size = 64": 'hidden_size = "a"'}
    with pytest.raises(SpecErrors) as refused:
        load_run_plan(broken(tmp_path, changes))
    assert [fault.path for fault in refused.value.faults][:2] == ["model.preset", "model.hidden_size"]


def test_a_missing_step_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        load_run_plan(broken(tmp_path, {'kind = "corpus"\nmanifest = "sources.toml"': 'kind = "report"'}))
    assert [fault.path for fault in refused.value.faults] == ["small.toml: steps[1]"]


def test_faults_of_named_problems_are_located_once_where_they_are_written(tmp_path: Path) -> None:
    uses = [{"kind": "tasks", "name": f"t{i}", "problems": ["mine", "none"], "max_tokens": 8} for i in range(2)]
    raw: dict[str, Any] = {
        "name": "r",
        "problems": {"mine": {"kind": "problems", "pth": "a.jsonl"}},
        "steps": [{"kind": "open", "model": "m"}, *uses],
    }
    with pytest.raises(SpecErrors) as refused:
        make_recipe(raw, [])
    paths = [fault.path for fault in refused.value.faults]
    assert sorted(paths) == [
        "problems.mine.path",
        "problems.mine.pth",
        "steps[1].problems[1]",
        "steps[2].problems[1]",
    ]


def test_a_model_without_steps_has_no_sizes_by_default() -> None:
    with pytest.raises(SpecErrors) as refused:
        make_recipe({"name": "r", "model": {"name": "m", "family": "llama"}, "steps": []}, [])
    assert {"model.vocab_size", "model.hidden_size", "steps"} <= {fault.path for fault in refused.value.faults}
