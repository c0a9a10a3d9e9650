"""The post-training recipes, each end to end in little: the file as it is, but for sizes, the model and the problems.

Problems have one of two answers, without reason, which a tiny model learns to give in a few steps: so there are right
answers to keep and wrong ones to tell from them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import recipes
from fathom.checkpoint.hf import save_hf
from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.pipeline.context import RunPlan, base_model
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.posttrain.prompts import R1_ZERO
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec, RopeSpec
from fathom.tokenizer import train_bpe
from fathom.train.metrics import read_json_lines
from tests.json_lines import write_json_lines

RECIPES = Path(__file__).parents[2] / "recipes"
POST_TRAINING = ("r1-zero", "r1", "v2-chat", "math", "distill")
SPEC = ModelSpec(
    name="tiny",
    family="deepseek_v2",
    vocab_size=512,
    hidden_size=48,
    num_hidden_layers=2,
    attention=LatentAttention(num_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8),
    max_position_embeddings=512,
    intermediate_size=64,
    first_k_dense_replace=1,
    initializer_range=0.1,
    rope=RopeSpec(layout="interleaved"),
    moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1),
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for index in range(30):
        (folder / f"{index}.txt").write_text(f"What is {index} and {index * 3}? A user asks, the answer is five. " * 5)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the place of the quickstart's."""
    root = tmp_path_factory.mktemp("base")
    text = R1_ZERO + "How many times? What is 2 plus 3, one and four? So it is 5. Five. The answer.\n"
    train_bpe([text * 3], vocab_size=SPEC.vocab_size).save(root / "tokenizer")
    save_hf(root / "model", SPEC, build(SPEC, seed=3).state_dict(), tokenizer=root / "tokenizer")
    return root / "model"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    for a in range(24):
        for b, split in ((0, "train"), (1, "train"), (2, "held_out")):
            answer = str(5 + 2 * ((a * 7 + b * 5) % 11 % 2))
            asked = {"question": f"What is {a} plus {b}?", "answer": answer, "split": split}
            rows.append({**asked, "details": {"solution": f"so {answer}"}})
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    write_json_lines(path, rows)
    return path


def passes(*steps: str, epochs: float = 12.0, length: int = 128, size: int = 1) -> list[str]:
    """Make steps that pass over samples small."""
    sizes = {"sequence_length": length, "batch.size": size, "batch.micro_batch_size": size}
    given = sizes | {"epochs": epochs, "optimizer.lr": 4e-3}
    return [f"{step}.train.{name}={value}" for step in steps for name, value in given.items()]


def pretrained(step: str) -> list[str]:
    """Make a train step small."""
    few = {"sequence_length": 64, "total_tokens": 1024, "batch.size": 2, "batch.micro_batch_size": 2}
    return [f"{step}.train.{name}={value}" for name, value in few.items()]


def online(*steps: str, group: int = 4, questions: int = 2, rollouts: int = 2) -> list[str]:
    """Make steps that learn from their own answers small."""
    sizes = {
        "rollouts": rollouts,
        "rollout.questions": questions,
        "rollout.group_size": group,
        "rollout.max_tokens": 12,
    }
    return [f"{step}.policy.{name}={value}" for step in steps for name, value in sizes.items()]


def drawn(*steps: str, count: int = 8) -> list[str]:
    return [f"{step}.{name}={value}" for step in steps for name, value in (("count", count), ("max_tokens", 12))]


def sums(problems: Path, *names: str) -> list[str]:
    """Put the problems with two answers in the places of others."""
    return [f'problems.{name}={{kind="problems", path="{problems}"}}' for name in names]


def plan_of(recipe: str, model: Path, overrides: Sequence[str], texts: Path) -> RunPlan:
    small = [f"open.model={model}", *drawn("tasks", count=4), *overrides]
    text = [texts] if recipe in ("distill", "r1-zero") else []
    return load_run_plan(RECIPES / f"{recipe}.toml", overrides=small, text=text)


def finish(plan: RunPlan, out: Path) -> Any:
    """Run a recipe; returns its tasks document."""
    torch.set_num_threads(1)
    run(plan, out, cache_dir=out.parent / "cache")
    assert "<html" in (out / "report.html").read_text()
    found = json.loads((out / "tasks.json").read_text())["tasks"]
    assert json.loads((out / "report.json").read_text())["tasks"].keys() == found.keys()
    return found


def lines(out: Path, step: str) -> list[dict[str, Any]]:
    return [dict(line) for line in read_json_lines(out / step / "metrics.jsonl")]


def kept(out: Path, step: str) -> int:
    summary = json.loads((out / step / "summary.json").read_text())
    rows = (out / step / "conversations.jsonl").read_text().splitlines()
    assert sum(task["kept"] for task in summary["tasks"].values()) == len(rows)
    return len(rows)


def told_apart(out: Path, step: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / step / "reward.json").read_text())
    return document


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    plan = load_run_plan(path)
    assert plan.recipe.name == path.stem
    assert f"fathom train recipes/{path.name} --out runs/{path.stem}" in path.read_text()
    assert plan.recipe.steps[-1].kind in ("report", "captions")


@pytest.mark.parametrize(("name", "base"), [("quickstart", "long-context"), ("smollm2", "base"), ("v3-tiny", None)])
def test_texts_are_continued_by_the_base_and_talked_with_the_last(name: str, base: str | None) -> None:
    found = base_model(load_run_plan(RECIPES / f"{name}.toml").recipe)
    assert (None if found is None else found.name) == base


def test_r1_zero_learns_from_two_rules_alone(base: Path, texts: Path, tmp_path: Path) -> None:
    plan = plan_of("r1-zero", base, [*pretrained("textbooks"), *online("r1-zero", questions=3)], texts)
    found = finish(plan, tmp_path / "run")
    assert set(found) == {"leg_counting", "leg_counting_3"}
    assert all(set(stages) == {"base", "textbooks", "r1-zero"} for stages in found.values())
    (first, _) = lines(tmp_path / "run", "r1-zero")
    assert set(first["rewards"]) == {"accuracy", "format"}
    assert first["failures"] == {}
    assert first["logprob_difference"] < 1e-4


@pytest.mark.slow
def test_what_a_run_reached_is_collected_and_drawn(base: Path, texts: Path, tmp_path: Path) -> None:
    overrides = [*pretrained("textbooks"), *online("r1-zero")]
    found = finish(plan_of("r1-zero", base, overrides, texts), tmp_path / "run")
    result = recipes.collect(tmp_path / "run")
    assert result["tasks"].keys() == found.keys()
    assert result["tasks"]["leg_counting"]["r1-zero"]["n"] == 4
    policy = result["policies"]["r1-zero"]
    assert policy["rollouts"] == len(policy["curves"]["reward"]) == 2
    assert policy["largest_logprob_difference"] == pytest.approx(
        max(line["logprob_difference"] for line in lines(tmp_path / "run", "r1-zero"))
    )
    change = 100 * found["leg_counting"]["r1-zero"]["change"]["value"]
    assert recipes.rises([result, result])["leg_counting"]["r1-zero"] == [round(change, 1)] * 2
    recipes.picture([result, result], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_r1_goes_its_whole_way(base: Path, texts: Path, problems: Path, tmp_path: Path) -> None:
    tasks = ("simple_equations", "leg_counting", "number_filtering", "spell_backward")
    overrides = [
        *sums(problems, *tasks),
        *passes("cold-start"),
        *passes("mix", epochs=8),
        *passes("helpful", epochs=1, size=2),
        *online("reasoning", "scenarios", "preferences"),
        *drawn("samples", "general", count=16),
        "general.temperature=1.5",
        'cold-start.data=[{kind="worked", problems="leg_counting", count=16}]',
        'mix.data=[{kind="answers", step="samples", repeat=2}, {kind="worked", problems="leg_counting", count=16}]',
    ]
    out = tmp_path / "run"
    found = finish(plan_of("r1", base, overrides, texts), out)
    assert set(found) == set(tasks)
    stages = found["leg_counting"]
    assert list(stages) == ["cold-start", "reasoning", "mix", "scenarios", "preferences"]
    assert min(stages[name]["finished"] for name in ("cold-start", "mix")) > 0.5
    assert kept(out, "samples") > 0
    sources = json.loads((out / "mix" / "data.json").read_text())["sources"]
    assert sources[0]["used"] + sources[0].get("held_out", 0) == kept(out, "samples")
    assert (sources[0]["source"], sources[0]["repeat"], sources[0]["left_out"]) == ("samples", 2, {})
    assert set(lines(out, "reasoning")[0]["rewards"]) == {"accuracy", "format", "language"}
    assert set(lines(out, "preferences")[0]["rewards"]) == {"accuracy", "format", "language", "helpful"}
    assert "kl" in lines(out, "reasoning")[0]


@pytest.mark.slow
def test_v2_chat_weighs_reward_models_and_a_rule(base: Path, texts: Path, problems: Path, tmp_path: Path) -> None:
    overrides = [
        *sums(problems, "simple_equations", "leg_counting"),
        *passes("sft"),
        *passes("reasoning-reward", epochs=1, size=2),
        *passes("helpful", "safety", epochs=1, length=256, size=2),
        *online("reasoning", "preferences"),
        *drawn("reasoning-answers"),
        "sft.data=["
        '{kind="worked", problems="simple_equations", count=16},'
        '{kind="file", path="preferences/conversations.jsonl"}]',
    ]
    out = tmp_path / "run"
    found = finish(plan_of("v2-chat", base, overrides, texts), out)
    assert set(found["simple_equations"]) == {"sft", "reasoning", "preferences"}
    assert told_apart(out, "reasoning-reward")["loss"] == told_apart(out, "helpful")["loss"] == "pairwise"
    assert told_apart(out, "safety")["loss"] == "pointwise"
    assert told_apart(out, "helpful")["held_out_prompts"] == 2
    last = lines(out, "preferences")[-1]
    assert set(last["rewards"]) == {"helpful", "safety", "rule"}
    assert last["failures"] == {}


@pytest.mark.slow
def test_math_trains_its_reward_model_anew_with_a_tenth_of_old_answers(
    base: Path, texts: Path, problems: Path, tmp_path: Path
) -> None:
    overrides = [
        *sums(problems, "simple_equations", "leg_counting"),
        *passes("instruct"),
        *passes("reward-1", "reward-2", epochs=1, size=2),
        *online("grpo-1", "grpo-2"),
        *drawn("answers-1", "answers-2", count=12),
        "tasks.samples=2",
        'instruct.data=[{kind="worked", problems="leg_counting", count=16}]',
    ]
    out = tmp_path / "run"
    found = finish(plan_of("math", base, overrides, texts), out)
    assert set(found["leg_counting"]) == {"instruct", "grpo-1", "grpo-2"}
    assert "majority@2" in found["leg_counting"]["grpo-2"]
    first = lines(out, "grpo-1")[0]
    assert set(first["rewards"]) == {"model", "accuracy"}
    assert first["reward"] == pytest.approx(first["rewards"]["model"])
    assert "accuracy" in first
    started = [LanguageModel.open(out / name, device="cpu").model for name in ("grpo-1", "grpo-2")]
    moved = [(a - b).abs().max() for a, b in zip(*(model.parameters() for model in started), strict=True)]
    assert 0 < max(moved) < 0.05


def test_math_supervises_steps_as_its_comment_says(base: Path, texts: Path, problems: Path, tmp_path: Path) -> None:
    said = (RECIPES / "math.toml").read_text().partition("fathom train recipes/math.toml --out runs/math-process")[2]
    command = said.partition("[[steps]]")[0].replace("\\\n#", "")
    words = shlex.split(command.strip())
    assert words[::2] == ["--set", "--set"]
    overrides = [
        *sums(problems, "simple_equations", "leg_counting"),
        *passes("instruct"),
        *passes("reward-1", epochs=1, size=2),
        *online("grpo-1"),
        *drawn("answers-1", count=12),
        'instruct.data=[{kind="worked", problems="leg_counting", count=16}]',
        *words[1::2],
    ]
    out = tmp_path / "run"
    torch.set_num_threads(1)
    run(plan_of("math", base, overrides, texts), out, cache_dir=tmp_path / "cache", until="grpo-1")
    assert all("scored_steps" in line and line["failures"] == {} for line in lines(out, "grpo-1"))
    assert {name for line in lines(out, "grpo-1") for name in line["rewards"]} >= {"accuracy"}


@pytest.mark.slow
def test_a_student_is_taught_by_samples_and_by_distributions(
    base: Path, texts: Path, problems: Path, tmp_path: Path
) -> None:
    own = sums(problems, "simple_equations", "leg_counting")
    taught = ['cold-start.data=[{kind="worked", problems="leg_counting", count=16}]', *passes("cold-start")]
    teacher = tmp_path / "teacher"
    run(plan_of("r1", base, [*own, *taught], texts), teacher, cache_dir=tmp_path / "cache", until="cold-start")
    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    overrides = [
        *own,
        *sums(problems, "leg_counting_3"),
        *(f"pretrain.model.{name}={value}" for name, value in shape.items()),
        *pretrained("pretrain"),
        *passes("without", "with-samples"),
        *online("on-policy", group=1, questions=8, rollouts=8),
        "on-policy.policy.optimizer.lr=4e-3",
        *drawn("samples", count=8),
        "samples.max_tokens=20",  # the model opens its thinking itself
        "tasks.max_tokens=20",
        'without.data=[{kind="worked", problems="leg_counting", count=16}]',
    ]
    out = tmp_path / "run"
    found = finish(plan_of("distill", teacher, overrides, texts), out)
    assert list(found["leg_counting"]) == ["base", "with-samples", "without", "on-policy"]
    assert found["leg_counting"]["base"]["finished"] > 0.5
    assert kept(out, "samples") > 0
    curve = [line["divergence"] for line in lines(out, "on-policy")]
    assert len(curve) == 8
    assert curve[-1] < curve[0]
    student = LanguageModel.open(out, device="cpu")
    assert (student.spec.name, student.spec.hidden_size, student.spec.moe) == ("student", 32, None)
    assert student.tokenizer.fingerprint == LanguageModel.open(teacher, device="cpu").tokenizer.fingerprint
