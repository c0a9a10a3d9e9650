"""``fathom recipe new``: every kind is written, passes ``recipe check`` and runs to its end in small."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint.hf import save_hf
from fathom.inference.run_record import read_state
from fathom.model import build
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.recipe_templates.sizes import FAMILIES, SHAPES, largest_shape, make_spec, model_table
from fathom.pipeline.recipe_templates.toml_text import value
from fathom.pipeline.run import run
from fathom.pipeline.trust import Trust
from fathom.plan.flops import training_flops_per_token
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.tokenizer import train_bpe
from tests.command_line import Call
from tests.json_lines import write_json_lines
from tests.slow_cases import fast

ASKED = ("What is two plus three?", "What is one plus one?", "What is two plus two?", "And three plus one?")
SMALL = {
    "pretrain": ("pretrain.train.total_tokens=2048", "evaluate.max_tokens=256"),
    "finetune": (),
    "dpo": (),
    "grpo": (
        'grpo.rewards=[{ kind = "function", target = "lengths:letters" }]',  # random answers are never right
        "grpo.policy.rollouts=1",
        "grpo.policy.rollout.max_tokens=8",
        "tasks.max_tokens=3",
        "tasks.count=1",
    ),
    "distill": (
        "distill.policy.rollouts=1",
        "distill.policy.rollout.max_tokens=4",
        "tasks.max_tokens=3",
        "tasks.count=1",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published model, texts, conversations, pairs and problems."""
    root = tmp_path_factory.mktemp("own")
    text = "What is two plus three? It is five, since three follows two. A user asks and the assistant answers.\n"
    spec = ModelSpec(
        name="tiny",
        family="llama",
        vocab_size=340,
        hidden_size=32,
        num_hidden_layers=1,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=16),
        max_position_embeddings=256,
        intermediate_size=64,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    train_bpe([text * 4], vocab_size=340).save(root / "tokenizer")
    save_hf(root / "model", spec, build(spec, seed=6).state_dict(), tokenizer=root / "tokenizer")
    (root / "texts").mkdir()
    for index in range(60):
        lines = (f"The {index + n} rivers run past {n * index} towers to the {n}th town." for n in range(14))
        (root / "texts" / f"{index}.txt").write_text("\n".join(lines))

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        write_json_lines(root / name, rows)

    (root / "lengths.py").write_text("def letters(prompt, answer, reference):\n    return len(answer) % 5\n")
    said = {"role": "assistant", "content": "It is five."}
    write("talks.jsonl", [{"messages": [{"role": "user", "content": asked}, said]} for asked in ASKED * 6])
    write("pairs.jsonl", [{"prompt": asked, "chosen": "It is five.", "rejected": "No."} for asked in ASKED * 6])
    asked = [(split, n) for split in ("train", "held_out") for n in range(4)]
    write("sums.jsonl", [{"question": f"{split} {ASKED[n]}", "answer": "5", "split": split} for split, n in asked])
    return root


OPTIONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("--text", "texts"),
    "finetune": ("--data", "talks.jsonl", "--model", "model"),
    "dpo": ("--data", "pairs.jsonl", "--model", "model"),
    "grpo": ("--problems", "sums.jsonl", "--model", "model"),
    "distill": ("--problems", "sums.jsonl", "--model", "model", "--teacher", "model"),
}


@pytest.mark.parametrize("kind", fast(list(OPTIONS), ("pretrain", "grpo")))
def test_a_written_recipe_passes_its_check_and_runs(
    kind: str, place: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(place)
    recipe = place / f"{kind}.toml"
    made = call("recipe", "new", kind, *OPTIONS[kind], "--out", recipe, "--hours", "0.01")
    assert made.code == 0, made.err
    assert f"fathom train {recipe}" in made.out
    tomllib.loads(recipe.read_text())
    assert recipe.read_text().count(" # ") >= 5
    assert "about 1 minute on" in recipe.read_text()
    assert ("count = 4 # all that are held out" in recipe.read_text()) == (kind in ("grpo", "distill"))
    checked = call("recipe", "check", recipe, "--json")
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    learning = next(step for step in found["steps"] if step["kind"] in ("train", "sft", "dpo", "grpo", "distill"))
    assert learning["parameters"] > learning["active_parameters"] > 0
    assert learning["steps"] > 0
    assert learning["seconds"] > 0
    assert learning["basis"] == "measured"
    assert not found["faults"]
    monkeypatch.chdir(tmp_path)  # its paths lead from where it lies
    ran = run(
        load_run_plan(recipe, overrides=SMALL[kind]), tmp_path / "run", cache_dir=tmp_path, trust=Trust(code=True)
    )
    assert ran[-1] == "report"
    assert all(state.status == "done" for state in read_state(tmp_path / "run").values())
    call("recipe", "new", kind, "--out", recipe).refused("exists already")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrain",), "--text: is missing"),
        (("finetune", "--model", "model"), "--data: is missing"),
        (("grpo",), "--model: is missing"),
        (("nothing",), "there is no template 'nothing'; use one of pretrain"),
        (("pretrain", "--text", "none"), "--text: none does not exist"),
        (("pretrain", "--text", "texts", "--family", "gpt"), "--family: no template is of 'gpt'"),
        (("pretrain", "--text", "texts", "--hours", "0"), "--hours: must be above 0"),
        (("grpo", "--model", "owner/absent"), "owner/absent is not on this machine yet"),
        (("pretrain", "--text", "sums.jsonl"), "no column of text"),
    ],
)
def test_what_a_template_lacks_is_said(
    arguments: tuple[str, ...],
    words: str,
    place: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    call("recipe", "new", *arguments, "--out", "never.toml").refused(words)
    assert not (place / "never.toml").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_models_of_every_size(family: str) -> None:
    sizes = [make_spec(model_table(s, family=family, name="x", vocab_size=512, context=64)) for s in SHAPES]
    flops = [training_flops_per_token(spec, 64) for spec in sizes]
    assert flops == sorted(flops)


def test_more_time_and_more_text_take_larger_models() -> None:
    def chosen(seconds: float, unique: float, memory: int = 1 << 40) -> tuple[int, float]:
        shape, tokens = largest_shape(
            lambda s: make_spec(model_table(s, family="llama", name="x", vocab_size=512, context=64)),
            seconds=seconds,
            flops=2e10,
            unique_tokens=unique,
            memory=memory,
            batch_tokens=512,
            length=64,
        )
        return SHAPES.index(shape), tokens

    assert chosen(60, 1e9)[0] < chosen(3600, 1e9)[0] < chosen(360000, 1e9)[0]
    assert chosen(3600, 1e4)[0] == 0
    assert chosen(3600, 1e4)[1] == 8e4
    assert chosen(360000, 1e9, memory=1 << 24)[0] == 0


def test_values_read_back() -> None:
    table = {"a": 12_345, "b": 1e-5, "c": 3.0, "d": 'a "b" \\ \x7f 画', "e": {"f": [True, "x"]}}
    assert tomllib.loads("\n".join(f"{name} = {value(item)}" for name, item in table.items())) == table
