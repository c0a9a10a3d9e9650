"""What the report says of the steps after pretraining, from files as those steps leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.pipeline.report import RunData, render_page
from fathom.pipeline.report.data import Change, TaskScore
from fathom.pipeline.report.posttraining import example_problems, online_curves, sft_loss_curves, task_scores
from fathom.spec.alignment import ConversationFile, EpochsSpec
from fathom.spec.epochs import EpochBatch
from fathom.spec.problem import GymProblems
from fathom.spec.recipe import GrpoStep, OpenStep, SftStep, Step, TasksStep
from fathom.spec.rewards import AccuracyReward
from fathom.spec.rollout import PolicySpec, RolloutSpec
from fathom.spec.train import AdamWSpec
from tests.json_lines import write_json_lines

PROBLEMS = (GymProblems(dataset="chain_sum"),)
UPDATE: dict[str, Any] = {"optimizer": AdamWSpec(lr=1e-3)}
SFT = SftStep(
    train=EpochsSpec(sequence_length=64, epochs=1, batch=EpochBatch(size=2, micro_batch_size=2), **UPDATE),
    data=(ConversationFile(path="x.jsonl"),),
)
POLICY = PolicySpec(rollouts=3, rollout=RolloutSpec(questions=2, group_size=2, max_tokens=8), **UPDATE)
RL = GrpoStep(name="rl", policy=POLICY, problems=PROBLEMS, rewards=(AccuracyReward(),))
STEPS: tuple[Step, ...] = (
    OpenStep(model="somewhere"),
    SFT,
    RL,
    TasksStep(name="late", stages=("rl",), problems=PROBLEMS, max_tokens=8),
    TasksStep(name="early", stages=("base", "sft"), problems=PROBLEMS, max_tokens=8),
    TasksStep(name="never-run", problems=PROBLEMS, max_tokens=8),
)
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \x00\x1b[31m 山"


def score(accuracy: float, **more: Any) -> dict[str, Any]:
    figures = {"accuracy": accuracy, "low": accuracy / 2, "high": (1 + accuracy) / 2, "n": 200, "samples": 1}
    return figures | {"tokens": 12.5, "finished": 0.75, "seconds": 1.0, "failures": {}} | more


def example(stages: dict[str, str], name: str = "p1") -> dict[str, Any]:
    answers = {
        stage: {"text": text, "correct": stage == "rl", "finished": stage != "base", "tokens": 3}
        for stage, text in stages.items()
    }
    return {"id": name, "question": f"What is {name} & 2?", "expected": "4", "answers": answers}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    change = {"before": "base", "value": 0.39, "low": 0.3, "high": 0.45}
    early = {
        "tasks": {"chain_sum": {"base": score(0.01), "sft": score(0.4, change=change)}, "zeros": {"sft": score(0.2)}},
        "examples": {"chain_sum": [example({"base": HOSTILE, "sft": "<think>2+2</think> 5"})]},
    }
    late = {
        "tasks": {"chain_sum": {"rl": score(0.8, **{"pass@4": {"value": 0.9, "low": 0.8, "high": 1.0}})}},
        "examples": {"chain_sum": [example({"rl": "<think>2 and 2 is 4</think> 4"}), example({"rl": "no"}, "p2")]},
    }
    for name, document in (("early", early), ("late", late)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = {
        "sft": [{"step": s, "tokens": 100 * s, "lm_loss": 3.0 - s / 10} for s in (1, 2, 3)]
        + [{"step": 4, "tokens": 9}],
        "rl": [
            {"step": 1, "reward": 0.1, "accuracy": 0.0, "length": 9.0, "length_wrong": 9.0, "length_right": None},
            {"step": 2, "reward": 0.6, "accuracy": 0.5, "length": 11.0, "length_wrong": 10.0, "length_right": 12.0},
            {"step": 3, "reward": None, "kl": 0.1, "step_score": 0.75},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        write_json_lines(tmp_path / name / "metrics.jsonl", lines)
    return tmp_path


def data_of(directory: Path) -> RunData:
    return RunData(
        name="aligned",
        facts={},
        stages=[("sft", 3.0)],
        origin="smol<b>lm",
        sft_loss_curves=sft_loss_curves(STEPS, directory),
        online=online_curves(STEPS, directory),
        tasks=task_scores(STEPS, directory),
        problems=example_problems(STEPS, directory),
    )


def test_tasks_steps_are_merged_with_stages_in_the_order_of_the_recipe(directory: Path) -> None:
    tasks = task_scores(STEPS, directory)
    assert {task: list(stages) for task, stages in tasks.items()} == {
        "chain_sum": ["base", "sft", "rl"],
        "zeros": ["sft"],
    }
    assert tasks["chain_sum"]["sft"] == TaskScore(
        accuracy=0.4,
        low=0.2,
        high=0.7,
        n=200,
        tokens=12.5,
        finished=0.75,
        change=Change(before="base", value=0.39, low=0.3, high=0.45),
    )
    assert tasks["chain_sum"]["rl"].more == {"pass@4": 0.9}


def test_the_later_of_two_measurements_counts(directory: Path) -> None:
    again = json.dumps({"tasks": {"chain_sum": {"sft": score(0.5)}}, "examples": {}})
    (directory / "never-run.json").write_text(again)
    tasks = task_scores(STEPS, directory)
    assert tasks["chain_sum"]["sft"].accuracy == 0.5
    assert list(tasks["chain_sum"]) == ["base", "sft", "rl"]


def test_report_json_holds_tasks_by_stage(directory: Path) -> None:
    document = json.loads(json.dumps(data_of(directory).to_json()))
    assert document["tasks"]["chain_sum"]["base"] == {"accuracy": 0.01, "low": 0.005, "high": 0.505, "n": 200}
    assert document["tasks"]["chain_sum"]["sft"]["change"]["value"] == 0.39
    assert "tasks" not in RunData(name="bare", facts={}, stages=[]).to_json()


def test_answers_to_one_problem_stand_together_stage_by_stage(directory: Path) -> None:
    first, second = example_problems(STEPS, directory)
    assert [answer.stage for answer in first.answers] == ["base", "sft", "rl"]
    assert [answer.correct for answer in first.answers] == [False, False, True]
    assert first.answers[0].text == HOSTILE
    assert [answer.stage for answer in second.answers] == ["rl"]


def test_curves_leave_out_what_was_not_measured(directory: Path) -> None:
    (online,) = online_curves(STEPS, directory)
    lengths = {curve.name: (list(curve.x), list(curve.y)) for curve in online.panels["tokens per answer"]}
    assert lengths == {"all": ([1, 2], [9.0, 11.0]), "right": ([2], [12.0]), "wrong": ([1, 2], [9.0, 10.0])}
    rewards = {curve.name: list(curve.y) for curve in online.panels["mean of a rollout"]}
    assert rewards == {"reward": [0.1, 0.6], "accuracy": [0.0, 0.5], "step": [0.75]}
    assert len(online.panels) == 2
    (loss,) = sft_loss_curves(STEPS, directory)
    assert (loss.name, list(loss.x)) == ("sft", [100, 200, 300])
    assert list(loss.y) == pytest.approx([2.9, 2.8, 2.7])


def test_the_page_shows_scores_curves_and_thinking(directory: Path) -> None:
    page = render_page(data_of(directory))
    assert page.count("<svg") == 3
    for words in ("Loss of fine-tuning", "Learning from its own answers: rl", "Tasks", "Thinking, before and after"):
        assert words in page
    for value in ("40.0% (20.0 to 70.0)", "+39.0 (+30.0 to +45.0)", "90.0%", "pass@4", "What is p1 &amp; 2?"):
        assert value in page
    assert "from smol&lt;b&gt;lm to this page" in page
    assert "wrong, cut off" in page


def test_answers_cannot_write_into_the_page(directory: Path) -> None:
    page = render_page(data_of(directory))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "\ufffd[31m 山" in page


def test_an_endless_answer_is_shown_by_its_two_ends(directory: Path) -> None:
    document = json.loads((directory / "late.json").read_text())
    document["examples"]["chain_sum"][0]["answers"]["rl"]["text"] = "BEGIN" + "x" * 1_000_000 + "END"
    (directory / "late.json").write_text(json.dumps(document))
    page = render_page(data_of(directory))
    assert len(page) < 200_000
    assert "BEGINxxx" in page
    assert "xxxEND" in page
    assert "996,008 characters left out" in page


def test_intervals_that_rounding_put_beside_their_value_are_drawn() -> None:
    scores = {"t": {"s": TaskScore(accuracy=0.0, low=3e-17, high=0.01, n=400, tokens=1.0, finished=1.0)}}
    assert "<svg" in render_page(RunData(name="zero", facts={}, stages=[], tasks=scores))
