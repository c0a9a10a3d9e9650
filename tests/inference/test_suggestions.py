"""What a run directory says its model can be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.inference.suggestions import MAX_SUGGESTIONS, Suggestions, suggestions_for
from fathom.posttrain.prompts import R1_ZERO
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.recipe import Recipe
from fathom.tokenizer import Tokenizer, train_bpe

MODEL = {
    "name": "tiny",
    "family": "llama",
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "attention": {"kind": "gqa", "num_heads": 2, "num_kv_heads": 2, "head_dim": 8},
    "max_position_embeddings": 64,
    "intermediate_size": 16,
}
BATCH = {"size": 2, "micro_batch_size": 2}
TRAIN = {"sequence_length": 32, "total_tokens": 64, "batch": BATCH, "optimizer": {"lr": 1e-3}}
GYM = {"kind": "reasoning_gym", "dataset": "chain_sum"}
POLICY = {"rollout": {"questions": 1, "group_size": 2, "max_tokens": 8}, "rollouts": 1, "optimizer": {"lr": 1e-4}}
STARTS = [f"The city of {name}\n" for name in ("Ulm", "Rome", "Bonn", "Oslo", "Bern")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the river finds the road " * 9], vocab_size=400)


def recipe(*, tasks: dict[str, Any] | None = None, sample: bool = True) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"kind": "corpus", "manifest": "sources.toml"},
        {"kind": "tokenizer", "vocab_size": 400},
        {"kind": "shards"},
        {"kind": "train", "name": "pretrain", "train": TRAIN},
        *([{"kind": "sample", "prompts": STARTS}] if sample else []),
        {"kind": "grpo", "policy": POLICY, "problems": [GYM], "rewards": [{"kind": "accuracy"}]},
        *([] if tasks is None else [{"kind": "tasks", "problems": [GYM], "max_tokens": 8, **tasks}]),
    ]
    return {"name": "tiny", "model": MODEL, "steps": steps}


def run_directory(path: Path, document: dict[str, Any], examples: Any = None, samples: str = "") -> Path:
    (path / "grpo" / "checkpoints" / "step-1").mkdir(parents=True)
    (path / "pretrain" / "checkpoints" / "step-1").mkdir(parents=True)
    written = to_mapping(from_mapping(Recipe, document))
    (path / "recipe.json").write_text(json.dumps({"recipe": written}))
    (path / "state.json").write_text(json.dumps({"steps": {}}))
    if examples is not None:
        (path / "tasks.json").write_text(json.dumps({"tasks": {}, "examples": examples}))
    if samples:
        (path / "grpo" / "samples.jsonl").write_text(samples)
    return path


def example(question: str, **correct: bool) -> dict[str, Any]:
    return {"question": question, "answers": {stage: {"correct": right} for stage, right in correct.items()}}


def shown(found: Suggestions) -> list[str]:
    return [prompt.text for prompt in found.prompts]


def test_a_pretrained_model_continues_the_texts_its_run_sampled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = run_directory(tmp_path, recipe(tasks={}), {"sums": [example("1 + 1?", pretrain=True)]})
    found = suggestions_for(run / "pretrain" / "checkpoints" / "step-1", tokenizer)
    assert found.kind == "completion"
    assert shown(found) == STARTS[:MAX_SUGGESTIONS]
    assert [prompt.label for prompt in found.prompts] == [text.strip() for text in STARTS[:MAX_SUGGESTIONS]]


def test_a_post_trained_model_gets_its_runs_own_problems_each_task_in_turn_solved_ones_first(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    examples = {
        "sums": [example("1 + 1?", grpo=False), example("1 + 2?", grpo=True, pretrain=False), example("1 + 3?")],
        "legs": [example("Legs of a cat?", grpo=True), example("1 + 2?", grpo=True)],
    }
    run = run_directory(tmp_path, recipe(tasks={}), examples)
    found = suggestions_for(run / "grpo" / "checkpoints" / "step-1", tokenizer)
    assert found.kind == "chat"
    assert shown(found) == ["1 + 2?", "Legs of a cat?", "1 + 1?", "1 + 3?"]


def test_problems_that_were_put_as_a_text_are_suggested_as_that_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = run_directory(tmp_path, recipe(tasks={"prompt": {"kind": "text"}}), {"sums": [example("1 + 1?")]})
    found = suggestions_for(run / "grpo" / "checkpoints" / "step-1", tokenizer)
    assert (found.kind, [prompt.label for prompt in found.prompts]) == ("completion", ["1 + 1?"])
    assert shown(found) == [R1_ZERO.replace("{question}", "1 + 1?")]


def test_without_measured_tasks_its_latest_rollouts_are_suggested(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = "".join(json.dumps({"step": i, "question": f"1 + {i}?"}) + "\n" for i in range(9))
    run = run_directory(tmp_path, recipe(tasks={}), samples=lines)
    assert shown(suggestions_for(run / "grpo" / "checkpoints" / "step-1", tokenizer)) == [
        f"1 + {i}?" for i in range(5, 9)
    ]


@pytest.mark.parametrize("damage", [[], {"sums": 3}, {"sums": [{}]}, {"sums": [{"question": "a", "answers": []}]}])
def test_a_model_without_a_record_has_neutral_ones(tmp_path: Path, tokenizer: Tokenizer, damage: Any) -> None:
    run = run_directory(tmp_path / "run", recipe(tasks={}, sample=False), damage)
    neutral = Suggestions("chat")
    assert suggestions_for(run / "grpo" / "checkpoints" / "step-1", tokenizer) == neutral
    assert suggestions_for(tmp_path, tokenizer) == neutral
    assert suggestions_for(run / "pretrain", tokenizer) == Suggestions("completion")
    (run / "tasks.json").write_text("{")
    assert suggestions_for(run / "grpo", tokenizer) == neutral


def test_a_vocabulary_that_cannot_chat_is_asked_to_continue_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    definition = json.loads(tokenizer.tokenizer_json)
    for token in definition["added_tokens"]:
        if token["content"] in ("<｜User｜>", "<｜Assistant｜>"):
            token["content"] = f"other {token['id']}"
    base = Tokenizer(json.dumps(definition))
    assert not base.can_chat
    assert suggestions_for(tmp_path, base) == Suggestions("completion")
