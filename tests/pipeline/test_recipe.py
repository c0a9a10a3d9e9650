"""Recipes from TOML: presets, overrides, folders of text, and errors that say where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.errors import SpecError
from fathom.pipeline.recipe import load_run_plan, merge
from fathom.spec import LatentAttention, YarnScaling
from fathom.spec.alignment import WorkedProblems
from fathom.spec.data import FolderSource
from fathom.spec.problem import FileProblems, GymProblems
from fathom.spec.recipe import SftStep, TasksStep, TrainStep

RECIPE = """
name = "small"

[model]
preset = "bench-t"
hidden_size = 64
rope = { scaling = { kind = "yarn", factor = 2.0, original_max_position_embeddings = 64 } }

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
name = "pretrain"
[steps.train]
sequence_length = 32
total_tokens = 10000
batch = { size = 4, micro_batch_size = 2 }
optimizer = { lr = 1e-3 }
"""
SOURCES = """
[[sources]]
kind = "folder"
name = "mine"
path = "texts"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "sources.toml").write_text(SOURCES)
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def first_train(path: Path, *overrides: str) -> TrainStep:
    steps = load_run_plan(path, overrides=overrides).recipe.steps
    return next(step for step in steps if isinstance(step, TrainStep))


def test_a_preset_gives_what_the_recipe_leaves_out(recipe: Path) -> None:
    model = load_run_plan(recipe).recipe.model
    assert model.hidden_size == 64
    assert isinstance(model.attention, LatentAttention)
    assert isinstance(model.rope.scaling, YarnScaling)
    assert model.rope.layout == "interleaved"


def test_folders_are_relative_to_the_manifest(recipe: Path) -> None:
    (source,) = load_run_plan(recipe).manifests["corpus"].sources
    assert isinstance(source, FolderSource)
    assert Path(source.path) == recipe.parent / "texts"


@pytest.mark.parametrize(
    "key",
    ["pretrain.train.total_tokens", "steps.pretrain.train.total_tokens", "steps[3].train.total_tokens"],
)
def test_overrides_find_a_step_by_name_or_number(recipe: Path, key: str) -> None:
    assert first_train(recipe, f"{key}=4096").train.total_tokens == 4096


def test_overrides_reach_fields_that_were_not_set(recipe: Path) -> None:
    plan = load_run_plan(
        recipe, overrides=["model.name=mine", "pretrain.train.batch.initial_size=2", "corpus.min_chars = 5"]
    )
    assert plan.recipe.model.name == "mine"
    step = plan.recipe.steps[3]
    assert isinstance(step, TrainStep)
    assert step.train.batch.initial_size == 2


def test_text_folders_replace_the_sources(recipe: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "my texts", tmp_path / "b" / "my texts"]
    for folder in folders:
        folder.mkdir(parents=True)
    (recipe.parent / "sources.toml").unlink()
    sources = load_run_plan(recipe, text=folders).manifests["corpus"].sources
    assert [source.name for source in sources] == ["my-texts", "my-texts-2"]
    with pytest.raises(SpecError, match=r"--text-column: .* give --text FOLDER"):
        load_run_plan(recipe, text_column="story")
    (source,) = load_run_plan(recipe, text=folders[:1], text_column="story").manifests["corpus"].sources
    assert isinstance(source, FolderSource)
    assert source.text_column == "story"
    with pytest.raises(SpecError, match=r"--text.*nowhere does not exist"):
        load_run_plan(recipe, text=[tmp_path / "nowhere"])


def test_a_corpus_of_ones_own_text_needs_no_manifest(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace('manifest = "sources.toml"', 'text = ["notes"]'))
    with pytest.raises(SpecError, match=r"steps\.corpus\.text: .*notes does not exist"):
        load_run_plan(recipe)
    (recipe.parent / "notes").mkdir()
    (source,) = load_run_plan(recipe).manifests["corpus"].sources
    assert isinstance(source, FolderSource)
    assert (source.name, Path(source.path)) == ("notes", recipe.parent / "notes")
    with pytest.raises(SpecError, match=r"text: stands beside a manifest"):
        load_run_plan(recipe, overrides=["corpus.manifest=x.toml"])
    recipe.write_text(RECIPE.replace('manifest = "sources.toml"', ""))
    with pytest.raises(SpecError, match=r"steps\.corpus\.text: is missing; .*--text FOLDER"):
        load_run_plan(recipe)
    assert load_run_plan(recipe, text=[recipe.parent / "notes"]).manifests["corpus"].sources[0].name == "notes"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden=3", r"small.toml: model.hidden: unknown field; did you mean"),
        ("pretrain.train.total_tokens=abc", r"small.toml: steps\[3\].train.total_tokens: expected int, got 'abc'"),
        ("pretrain.train.batch.size=3", r"steps\[3\].train.batch.size: 3 is not a multiple of 2"),
        (
            "model.max_position_embeddings=16",
            r"model: rope.scaling.original_max_position_embeddings|model.rope.scaling",
        ),
        ("model.preset=bench-x", "no preset is called 'bench-x'"),
        ("steps.nothing.train=1", "there is no entry 'nothing'; use one of corpus, tokenizer, shards, pretrain"),
        ("name.x=1", "'x' is not inside a table"),
        ("name", "is not path=value"),
    ],
)
def test_mistakes_are_located(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        load_run_plan(recipe, overrides=[override])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml: no such file"):
        load_run_plan(tmp_path / "none.toml")
    (tmp_path / "sources.toml").unlink()
    with pytest.raises(SpecError, match=r"sources\.toml: no such file"):
        load_run_plan(recipe)
    recipe.write_text("name = [")
    with pytest.raises(SpecError, match="not valid TOML"):
        load_run_plan(recipe)


def test_merge_replaces_a_table_of_another_kind() -> None:
    base = {"a": {"kind": "x", "p": 1}, "b": {"q": 1, "r": 2}, "c": 1}
    over = {"a": {"kind": "y", "s": 2}, "b": {"r": 3}}
    assert merge(base, over) == {"a": {"kind": "y", "s": 2}, "b": {"q": 1, "r": 3}, "c": 1}


ALIGNED = """
name = "aligned"

[problems.sums]
kind = "reasoning_gym"
dataset = "chain_sum"
options = { max_terms = 3 }

[problems.own]
kind = "problems"
name = "mine"
path = "mine.jsonl"

[[steps]]
kind = "open"
model = "somewhere"

[[steps]]
kind = "sft"
data = [{ kind = "worked", problems = "sums", count = 8 }]
train = { sequence_length = 32, epochs = 1.0, batch = { size = 1, micro_batch_size = 1 }, optimizer = { lr = 1e-3 } }

[[steps]]
kind = "tasks"
max_tokens = 8
problems = ["own", "sums", { kind = "reasoning_gym", dataset = "gcd" }]
"""


def test_problems_named_once_are_taken_by_name(tmp_path: Path) -> None:
    path = tmp_path / "aligned.toml"
    path.write_text(ALIGNED)
    _, sft, tasks = load_run_plan(path, overrides=["problems.sums.options.max_terms=2"]).recipe.steps
    assert isinstance(sft, SftStep)
    assert isinstance(tasks, TasksStep)
    sums = GymProblems(name="sums", dataset="chain_sum", options={"max_terms": 2})
    assert sft.data == (WorkedProblems(problems=sums, count=8),)
    assert tasks.problems == (FileProblems(name="mine", path="mine.jsonl"), sums, GymProblems(dataset="gcd"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('tasks.problems=["sum"]', r"steps\[2\]\.problems\[0\]: there are no problems 'sum'; use one of sums, own"),
        ('sft.data=[{kind="worked",problems="x",count=1}]', r"steps\[1\]\.data\[0\]\.problems: there are no"),
        ("problems=3", "problems: expected tables, got 3"),
        ("problems={}", "use one of none: add"),
        ('problems.sums.options="x"', r"toml: problems\.sums\.options: expected a table"),
    ],
)
def test_problems_that_nobody_named_are_located(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "aligned.toml"
    path.write_text(ALIGNED)
    with pytest.raises(SpecError, match=message):
        load_run_plan(path, overrides=[override])
