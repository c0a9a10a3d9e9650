"""The grpo step with process supervision: a recipe in which steps of the thinking are scored, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fathom.checkpoint import store
from fathom.errors import SpecError
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.train.metrics import read_json_lines

RECIPE = """
name = "process"

[problems.sums]
kind = "problems"
path = "sums.jsonl"

[[steps]]
kind = "open"
model = "{model}"

[[steps]]
kind = "sft"
data = [{{ kind = "worked", problems = "sums", count = 12 }}]

[steps.train]
sequence_length = 64
epochs = 20.0
batch = {{ size = 2, micro_batch_size = 1 }}
optimizer = {{ lr = 4e-3, weight_decay = 0.0 }}

[[steps]]
kind = "reward_model"
name = "judge"
start = "base"
loss = {{ kind = "pairwise" }}
pairs = [{{ kind = "file", path = "pairs.jsonl" }}]

[steps.train]
sequence_length = 64
epochs = 1.0
batch = {{ size = 2, micro_batch_size = 1 }}
optimizer = {{ lr = 4e-3 }}

[[steps]]
kind = "grpo"
start = "sft"
problems = ["sums"]
rewards = [
  {{ kind = "steps" }},
  {{ kind = "model", step = "judge", steps = true, weight = 0.1 }},
  {{ kind = "accuracy", method = "exact" }},
]

[steps.policy]
rollouts = 3
optimizer = {{ lr = 1e-3, weight_decay = 0.0 }}
loss = {{ advantage = {{ supervision = "process" }}, kl = {{}} }}

[steps.policy.rollout]
questions = 3
group_size = 4
max_tokens = 40
"""


@pytest.fixture
def recipe(bench: Any) -> Path:
    """Problems whose worked solutions a tiny model learns by heart: they are right as often as not."""
    rows = []
    for a in range(1, 5):
        for b in range(1, 4):
            worked = f"{a} + {b} = {a + b + b % 2}; {a + b} + 1 = {a + b + 1}"
            asked = {"question": f"What is {a} plus {b}?", "answer": str(a + b + 1), "split": "train"}
            rows.append(asked | {"details": {"solution": f"{worked}\nso {a + b + 1}"}})
    bench.write("sums.jsonl", rows)
    pairs = [
        {"messages": [{"role": "user", "content": row["question"]}], "chosen": row["answer"], "rejected": "What?"}
        for row in rows
    ]
    bench.write("pairs.jsonl", pairs)
    path = bench.base / "process.toml"
    path.write_text(RECIPE.format(model=bench.published))
    return Path(path)


def test_a_recipe_learns_from_the_steps_of_its_answers(bench: Any, recipe: Path) -> None:
    out = bench.base / "out"
    run(load_run_plan(recipe), out, cache_dir=bench.base / "cache")
    lines = read_json_lines(out / "grpo" / "metrics.jsonl")
    assert len(lines) == 3
    assert set(lines[0]["rewards"]) == {"steps", "model", "accuracy"}
    assert all(line["scored_steps"] > 2 for line in lines)  # the model scores the whole answer at least
    assert any(0 < line["rewards"]["steps"] < 1 for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)
    assert all(line["failures"] == {} for line in lines)
    assert store.latest(out / "grpo" / "checkpoints") is not None


@pytest.mark.parametrize(
    "rewards", ['[{kind="accuracy"}]', '[{kind="steps",weight=0.0},{kind="accuracy"}]', '[{kind="model",step="judge"}]']
)
def test_without_scores_of_steps_the_recipe_is_refused_by_name(recipe: Path, rewards: str) -> None:
    with pytest.raises(SpecError, match=r"steps\[3\]\.policy\.loss\.advantage\.supervision: process needs a reward"):
        load_run_plan(recipe, overrides=[f"grpo.rewards={rewards}"])
