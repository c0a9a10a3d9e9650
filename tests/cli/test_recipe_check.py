"""``fathom recipe check``: all faults at once, and the plan with what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.pipeline.forecast import totals
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.trust import NO_TRUST, Trust, untried_functions

RECIPE = """
name = "checked"

[[steps]]
kind = "open"
model = "nowhere"

[[steps]]
kind = "sft"
data = [{ kind = "file", path = "absent.jsonl" }, { kind = "file", path = "odd.jsonl" }]
train = { sequence_length = 64, epochs = 1.0, batch = { size = 1 }, optimizer = { lr = 1e-3 } }

[[steps]]
kind = "grpo"
problems = [{ kind = "problems", path = "sums.jsonl" }]
rewards = [{ kind = "function", name = "own", target = "%s" }]
policy = { rollouts = 2, optimizer = { lr = 1e-4 }, rollout = { questions = 2, group_size = 2, max_tokens = 8 } }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "sums.jsonl").write_text('{"question": "2 + 3?", "answer": "5"}\n')
    path = tmp_path / "checked.toml"
    path.write_text(RECIPE % "own_reward:uppercase")
    return path


def test_all_faults_are_listed_at_once(recipe: Path, call) -> None:
    found = call("recipe", "check", recipe, "--allow-code")
    assert found.code == 2
    first, *lines = found.err.splitlines()
    assert "4 faults" in first
    for words in (
        "absent.jsonl",
        "no known form in the columns a",
        "nowhere",
        "'own_reward:uppercase' cannot be imported",
    ):
        assert any(words in line for line in lines), words
    assert not list(recipe.parent.glob("runs"))
    without = call("recipe", "check", recipe)
    assert "own_reward" not in without.err
    assert list(untried_functions(load_run_plan(recipe).recipe, Trust(code=True))) == []
    (line,) = untried_functions(load_run_plan(recipe).recipe, NO_TRUST)
    remedy = "if you trust the code, add --allow-code here and when it trains"
    assert line == f"not tried: own_reward:uppercase; {remedy}"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def uppercase(prompt, answer, reference):\n    return 0.0\n", ""),
        ("def other(prompt, answer, reference):\n    return 0.0\n", "has no attribute 'uppercase'"),
        ("import absent_library\n", "No module named 'absent_library'"),
        ("uppercase = 3\n", "'own_reward:uppercase' is no function"),
        ("def uppercase(answer):\n    return 0.0\n", "takes (answer); write def uppercase(prompt, answer, reference)"),
    ],
    ids=["right", "name", "import", "value", "arguments"],
)
def test_a_module_beside_the_recipe_is_tried_before_a_model_is_opened(
    code: str, words: str, recipe: Path, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (recipe.parent / "own_reward.py").write_text(code)
    text = recipe.read_text()
    sft, grpo = (text.index(f'[[steps]]\nkind = "{kind}"') for kind in ("sft", "grpo"))
    recipe.write_text(text[:sft] + text[grpo:])
    found = call("train", recipe, "--allow-code", "--out", tmp_path / "run")
    assert found.code == 2
    assert ("nowhere" in found.err) or words
    checked = call("recipe", "check", recipe, "--allow-code")
    assert words in checked.err
    assert ("own_reward" in checked.err) == bool(words)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_a_fault_with_a_remedy(
    texts: Path, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Path(__file__).parents[1] / "pipeline" / "tiny.toml"
    fits = call("recipe", "check", tiny, "--text", texts, "--out", tmp_path / "run", "--json")
    assert fits.code == 0, fits.err
    found = json.loads(fits.out)
    pretrain = next(step for step in found["steps"] if step["name"] == "pretrain")
    assert (pretrain["tokens"], pretrain["steps"], pretrain["tokens_per_step"]) == (7680, 40, 192)
    assert pretrain["basis"] == "measured"
    assert found["memory_bytes"] < found["free_memory_bytes"]
    monkeypatch.setattr(totals, "available_memory", lambda: 1 << 20)
    small = call("recipe", "check", tiny, "--text", texts, "--out", tmp_path / "run", "--device", "cpu")
    assert small.code == 2
    assert "of memory and 1.05 MB are free; lower train.batch.micro_batch_size" in small.err
    assert "passes" in small.out


LEAVES_OUT = """
name = "short"

[model]
name = "tiny"
family = "%s"
hidden_size = 48
num_hidden_layers = 2
intermediate_size = 64

[model.attention]
kind = "mla"
num_heads = 4
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8

[[steps]]
kind = "corpus"
manifest = "never-read.toml"

[[steps]]
kind = "tokenizer"
vocab_size = 384

[[steps]]
kind = "shards"

[[steps]]
kind = "train"
train = { sequence_length = 48, total_tokens = 768, batch = { size = 2 }, optimizer = { lr = 1e-3 } }
"""


def test_what_came_by_default_and_what_cannot_be_exported_is_said(texts: Path, tmp_path: Path, call) -> None:
    recipe = tmp_path / "short.toml"
    for family in ("deepseek_v2", "llama"):
        recipe.write_text(LEAVES_OUT % family)
        said = call("recipe", "check", recipe, "--text", texts, "--out", tmp_path / "run")
        assert said.code == 0, said.err
        assert "  model.vocab_size = 384\n  model.max_position_embeddings = 48\n" in said.out
        assert ("the model cannot be exported with --to hf: " in said.out) == (family == "llama")
        assert ('  model.rope = { layout = "interleaved" }\n' in said.out) == (family == "deepseek_v2")
    found = json.loads(call("recipe", "check", recipe, "--text", texts, "--out", tmp_path / "run", "--json").out)
    assert found["defaults"]["model.vocab_size"] == "384"
    assert any("cannot be exported with --to hf" in note for note in found["notes"])
