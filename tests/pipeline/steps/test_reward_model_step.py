"""The reward_model step: trained on some prompts, measured on others, and asked by the judge of a later step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.checkpoint import store
from fathom.errors import DataError, Interrupted, SpecError
from fathom.inference.run_record import read_json
from fathom.pipeline.context import RunPlan, StepContext
from fathom.pipeline.reward_models import external_scorers
from fathom.posttrain.rewards.base import RewardInput
from fathom.progress import NULL_PROGRESS
from fathom.spec.alignment import JudgedPairs, OpenStep, PairFile, RewardModelStep
from fathom.spec.answering import AnswersStep, TasksStep
from fathom.spec.posttrain import PairwiseLoss, PointwiseLoss
from fathom.spec.problem import GymProblems, Problem
from fathom.spec.recipe import Recipe
from fathom.spec.rewards import AccuracyReward, ModelReward
from fathom.train.metrics import read_json_lines

Passes = Callable[..., Any]
WORDS = ("two", "three", "five", "one", "plus", "user")
GOOD, BAD = "It is so.", "What? What?"


def pair(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "chosen": GOOD, "rejected": BAD}


PAIRS = [pair(f"{a} {b} {c}?") for a in WORDS[:4] for b in WORDS[:5] for c in WORDS[:2]]


def make_step(path: str, passes: Passes, **fields: Any) -> RewardModelStep:
    given: dict[str, Any] = {"loss": PairwiseLoss(), "pairs": (PairFile(path=path),)}
    return RewardModelStep(train=passes(fields.pop("epochs", 3), sequence_length=48), **(given | fields))


def context_of(bench: Any, out: Path, *steps: Any) -> StepContext:
    recipe = Recipe(name="bench", steps=(OpenStep(model=str(bench.published)), *steps))
    plan = RunPlan(recipe=recipe, manifests={}, base=bench.base)
    return StepContext(plan=plan, directory=out, cache_dir=bench.base / "cache", device="cpu", progress=NULL_PROGRESS)


def answered(question: str, answer: str) -> RewardInput:
    return RewardInput(prompt="", answer=answer, problem=Problem(id="1", task="t", question=question, answer=""))


@pytest.mark.parametrize("loss", [PairwiseLoss(), PointwiseLoss(form="mse")])
def test_it_tells_held_out_pairs_apart_and_scores_for_a_judge(bench: Any, passes: Passes, loss: Any) -> None:
    step = make_step(bench.write("pairs.jsonl", [*PAIRS, "{"]), passes, loss=loss)
    out = bench.run("out", step)
    result = read_json(out / "reward-model" / "reward.json")
    assert result["score_token"] == bench.tokenizer.pad_id
    assert result["held_out"] == result["held_out_prompts"] == 4
    assert result["learned"] == 36 * (1 if isinstance(loss, PairwiseLoss) else 2)
    assert result["after"]["accuracy"] == 1
    assert result["after"]["low"] < 1 == result["after"]["high"]
    assert result["before"]["n"] == 4
    assert "pairs.jsonl: 40 of 41 pairs are used" in bench.watching.messages
    later = TasksStep(
        problems=(GymProblems(dataset="chain_sum"),),
        max_tokens=4,
        rewards=(AccuracyReward(), ModelReward(step="reward-model", name="helpful")),
    )
    scorers = external_scorers(context_of(bench, out, step, later), later, later.rewards)
    assert set(scorers) == {"helpful"}
    good, bad = scorers["helpful"]([answered("a new question?", GOOD), answered("a new question?", BAD)])
    assert good > bad + 0.3
    stepwise = [ModelReward(step="reward-model", steps=True)]
    by_steps = external_scorers(context_of(bench, out, step, later), later, stepwise)
    (steps,) = by_steps["model"]([answered("a new question?", f"One two;\n{GOOD}")])
    assert [each.end for each in steps] == [len("One two"), len(f"One two;\n{GOOD}")]
    with pytest.raises(SpecError, match=r"rewards\.step: no step 'nobody' before it"):
        external_scorers(context_of(bench, out, step, later), later, [ModelReward(step="nobody")])
    with pytest.raises(SpecError, match="reason in both or in neither"):
        external_scorers(
            context_of(bench, out, step, later), later, [ModelReward(step="reward-model", reasoning_tokens=4)]
        )


def test_a_stopped_step_ends_as_one_that_was_not(bench: Any, passes: Passes, same: Callable[..., bool]) -> None:
    step = make_step(bench.write("pairs.jsonl", PAIRS), passes, epochs=1)
    whole = bench.run("whole", step)
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=6)
    assert not (bench.base / "cut" / "reward-model" / "reward.json").exists()
    bench.run("cut", step, resume=True)
    assert same(whole / "reward-model", bench.base / "cut" / "reward-model")
    first, second = (read_json(out / "reward-model" / "reward.json") for out in (whole, bench.base / "cut"))
    assert first == second


def test_judged_answers_teach_pairs_or_single_scores(bench: Any, passes: Passes, monkeypatch: Any) -> None:
    def answer(step: AnswersStep, context: Any) -> None:
        context.path(step).mkdir()
        rows = [
            {
                "id": str(number),
                "task": "sums",
                "question": each["messages"][0]["content"],
                "answer": said,
                "prompt_ids": [0, 40],
                "answer_ids": [50, 1],
                "total": total,
            }
            for number, each in enumerate(PAIRS)
            for said, total in ((BAD, 0.0), (GOOD, 0.75), ("user " * 60, 0.1))
        ]
        (context.path(step) / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    from fathom.pipeline.steps import RUNNERS

    monkeypatch.setattr("fathom.pipeline.steps.RUNNERS", {**RUNNERS, "answers": answer})
    drawn = AnswersStep(name="drawn", problems=(GymProblems(dataset="chain_sum"),), count=1, max_tokens=8)
    judged = (JudgedPairs(step="drawn"),)
    pairwise = make_step("", passes, name="pairwise", pairs=judged)
    pointwise = make_step("", passes, name="pointwise", pairs=judged, loss=PointwiseLoss())
    out = bench.run("out", drawn, pairwise, pointwise)
    one, other = (read_json(out / name / "reward.json") for name in ("pairwise", "pointwise"))
    assert (one["learned"], other["learned"]) == (36, 72)
    assert one["after"]["accuracy"] == other["after"]["accuracy"] == 1
    last = read_json_lines(out / "pointwise" / "metrics.jsonl")[-1]
    assert last["error"] < 0.2
    assert "drawn: 80 of 120 answers are used" in bench.watching.messages


def test_with_reasoning_the_model_writes_before_it_scores(bench: Any, passes: Passes, monkeypatch: Any) -> None:
    step = make_step(bench.write("pairs.jsonl", PAIRS[:20]), passes, epochs=1, reasoning_tokens=4)
    with pytest.raises(Interrupted):
        bench.run("out", step, stop_at=3)
    written = (bench.base / "out" / "reward-model" / "reasoning.safetensors").read_bytes()

    def never(*_: Any) -> None:
        raise AssertionError("the reasoning was written again")

    with monkeypatch.context() as patched:
        patched.setattr("fathom.posttrain.reward_model.ReasoningGenerator.extend", never)
        out = bench.run("out", step, resume=True)
    assert (out / "reward-model" / "reasoning.safetensors").read_bytes() == written
    assert read_json(out / "reward-model" / "reward.json")["reasoning_tokens"] == 4
    reward = ModelReward(step="reward-model", reasoning_tokens=4)
    later = TasksStep(problems=(GymProblems(dataset="chain_sum"),), max_tokens=4, rewards=(AccuracyReward(), reward))
    scorers = external_scorers(context_of(bench, out, step, later), later, later.rewards)
    scores = scorers["model"]([answered("two?", GOOD), answered("two?", BAD)])
    assert all(score == score for score in scores)
    assert store.latest(out / "reward-model" / "checkpoints") is not None


def test_no_pair_at_all_is_refused(bench: Any, passes: Passes) -> None:
    with pytest.raises(DataError, match=r"steps\.reward-model\.pairs: none is left to learn from"):
        bench.run("out", make_step(bench.write("pairs.jsonl", ["{"]), passes))
