"""The tasks step end to end: a tiny model answers problems of a file, and every figure follows from the records."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import ContextError, RewardError, SpecError
from fathom.evals.pass_at_k import normalize_answer, paired_difference
from fathom.inference.language_model import LanguageModel
from fathom.pipeline.context import RunPlan
from fathom.pipeline.run import run
from fathom.pipeline.steps import tasks as tasks_module
from fathom.pipeline.trust import Trust
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.extract import final_answer
from fathom.spec.problem import FileProblems, GymProblems, Problem
from fathom.spec.recipe import OpenStep, Recipe, ReportStep, TasksStep
from fathom.spec.rewards import AccuracyReward, FormatReward, FunctionReward
from fathom.spec.rollout import ChatPrompt, TextPrompt
from fathom.spec.sampling import SamplingParams
from tests.recording_progress import RecordingProgress

PROMPT = TextPrompt(text="the {question} see", stop=())
EXACT = (AccuracyReward(method="exact"),)
QUESTIONS = [f"river {a} {b}" for a in ("tower", "road", "sea") for b in ("one", "two", "three", "four")]
Publish = Callable[[str], Path]


def asked(**fields: Any) -> TasksStep:
    given: dict[str, Any] = {
        "problems": (FileProblems(name="rivers", path="rivers.jsonl"),),
        "stages": ("before", "after"),
        "max_tokens": 6,
        "prompt": PROMPT,
        "rewards": EXACT,
    }
    return TasksStep(**(given | fields))


def said(path: Path, question: str) -> tuple[str, int, bool]:
    """What the model says greedily, alone: text, tokens, finished."""
    model = LanguageModel.open(path, device="cpu", dtype="float32")
    prompt_formatter = PromptFormatter(model.tokenizer, PROMPT)
    ids = prompt_formatter.encode(Problem(id="x", task="x", question=question, answer=""))
    (completion,) = model.engine.sample([ids], SamplingParams(max_tokens=6, temperature=0.0))
    return prompt_formatter.read(completion.token_ids), len(completion.token_ids), completion.finish_reason == "stop"


@pytest.fixture(scope="session")
def base(publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks, some of whose answers one of two models gives."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = []
    for index, question in enumerate(QUESTIONS):
        speaker = (None, "tiny-llama", "tiny-qwen2")[index % 3]
        answer = "never said" if speaker is None else final_answer(said(publish(speaker), question)[0])
        rows.append({"question": question, "answer": answer or "nothing", "id": f"r{index}", "split": "held_out"})
    (folder / "rivers.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (folder / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows[1:3]) + "\n")
    return folder


def plan_of(base: Path, publish: Publish, *steps: Any) -> RunPlan:
    opened = [
        OpenStep(name=name, model=str(publish(model)))
        for name, model in (("before", "tiny-llama"), ("after", "tiny-qwen2"))
    ]
    return RunPlan(recipe=Recipe(name="rivers", steps=(*opened, *steps)), manifests={}, base=base)


def measure(plan: RunPlan, directory: Path, **options: Any) -> Any:
    run(plan, directory, cache_dir=directory / "cache", **options)
    return json.loads((directory / "tasks.json").read_text(encoding="utf-8"))


def records_of(directory: Path, stage: str, task: str = "rivers") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / "tasks" / stage / f"{task}.json").read_text())["records"]
    return found


def wilson(right: int, n: int) -> tuple[float, float]:
    z, share = 1.959963984540054, right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - reach, centre + reach


def plurality(record: dict[str, Any]) -> float:
    """The chance that the most frequent answer is right, where ties are drawn by lot."""
    votes = Counter(normalize_answer(final_answer(answer["text"]) or "") for answer in record["answers"])
    best = [vote for vote, count in votes.items() if count == max(votes.values())]
    return best.count(normalize_answer(record["expected"])) / len(best)


@pytest.fixture(scope="module")
def greedy(base: Path, publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("run") / "greedy"
    few = FileProblems(name="few", path="few.jsonl")
    step = asked(problems=(FileProblems(name="rivers", path="rivers.jsonl"), few), count=50)
    return directory, measure(plan_of(base, publish, step, ReportStep()), directory)


def test_greedy_answers_are_those_the_model_gives_alone(greedy: tuple[Path, Any], publish: Publish) -> None:
    directory, _ = greedy
    for stage, name in (("before", "tiny-llama"), ("after", "tiny-qwen2")):
        for record in records_of(directory, stage)[:4]:
            (answer,) = record["answers"]
            assert (answer["text"], answer["tokens"], answer["finished"]) == said(publish(name), record["question"])
            expected = final_answer(answer["text"]) == record["expected"]
            assert answer["correct"] == expected


def test_every_figure_follows_from_the_records(greedy: tuple[Path, Any]) -> None:
    directory, document = greedy
    assert list(document["tasks"]) == ["rivers", "few"]
    verdicts: dict[str, list[bool]] = {}
    for stage, score in document["tasks"]["rivers"].items():
        answers = [record["answers"][0] for record in records_of(directory, stage)]
        verdicts[stage] = [
            (final_answer(a["text"]) or "").split() == r["expected"].split()
            for a, r in zip(answers, records_of(directory, stage), strict=True)
        ]
        right = sum(verdicts[stage])
        assert right >= 4
        assert score["n"] == len(QUESTIONS) == len(answers)
        assert score["accuracy"] == right / 12
        assert (score["low"], score["high"]) == pytest.approx(wilson(right, 12))
        assert score["tokens"] == pytest.approx(sum(a["tokens"] for a in answers) / 12)
        assert score["finished"] == pytest.approx(sum(a["finished"] for a in answers) / 12)
        assert score["failures"] == {}
        assert score["rewards"] == {"accuracy": right / 12}
        assert not any("@" in name for name in score)
    change = document["tasks"]["rivers"]["after"]["change"]
    difference = paired_difference(verdicts["before"], verdicts["after"])
    assert change["before"] == "before"
    assert change["value"] == pytest.approx((sum(verdicts["after"]) - sum(verdicts["before"])) / 12)
    assert (change["low"], change["high"]) == pytest.approx((difference.low, difference.high))
    assert "change" not in document["tasks"]["rivers"]["before"]


def test_examples_show_the_first_problems_as_every_stage_answered_them(greedy: tuple[Path, Any]) -> None:
    directory, document = greedy
    shown = document["examples"]["rivers"]
    assert [example["question"] for example in shown] == QUESTIONS[:3]
    for index, example in enumerate(shown):
        for stage in ("before", "after"):
            answer = records_of(directory, stage)[index]["answers"][0]
            assert example["answers"][stage]["text"] == answer["text"]
            assert example["answers"][stage]["correct"] == answer["correct"]


def test_the_report_gives_accuracy_low_high_n_by_task_and_stage(greedy: tuple[Path, Any]) -> None:
    directory, document = greedy
    report = json.loads((directory / "report.json").read_text())
    for task, stages in document["tasks"].items():
        assert list(report["tasks"][task]) == ["before", "after"]
        for stage, score in stages.items():
            for name in ("accuracy", "low", "high", "n"):
                assert report["tasks"][task][stage][name] == score[name]
    page = (directory / "report.html").read_text()
    assert "Thinking, before and after" in page
    assert "river tower one" in page


def test_several_answers_give_pass_and_majority_at_k(base: Path, publish: Publish, tmp_path: Path) -> None:
    step = asked(samples=4, temperature=0.3, count=6)
    document = measure(plan_of(base, publish, step), tmp_path / "run")
    for stage, score in document["tasks"]["rivers"].items():
        records = records_of(tmp_path / "run", stage)
        assert score["n"] == 6
        assert score["samples"] == 4
        verdicts = [[answer["correct"] for answer in record["answers"]] for record in records]
        assert score["accuracy"] == pytest.approx(sum(map(sum, verdicts)) / 24)
        for k in (1, 2, 4):
            subsets = [any(drawn) for each in verdicts for drawn in itertools.combinations(each, k)]
            assert score[f"pass@{k}"]["value"] == pytest.approx(sum(subsets) / len(subsets))
        votes = [Counter(final_answer(a["text"]) for a in record["answers"]) for record in records]
        assert any(len(each) > 1 for each in votes)
        assert set(score) >= {"majority@2", "majority@4"}
        assert "majority@1" not in score
        for estimate in (score["pass@4"], score["majority@4"]):
            assert 0 <= estimate["low"] <= estimate["value"] + 1e-9
            assert estimate["value"] - 1e-9 <= estimate["high"] <= 1


def test_an_answer_depends_on_its_problem_and_number_only(base: Path, publish: Publish, tmp_path: Path) -> None:
    many, few = asked(samples=3, temperature=1.0), asked(samples=2, temperature=1.0, count=2)
    measure(plan_of(base, publish, many), tmp_path / "many")
    measure(plan_of(base, publish, few), tmp_path / "few")
    for stage in ("before", "after"):
        more = [record["answers"][:2] for record in records_of(tmp_path / "many", stage)[:2]]
        assert more == [record["answers"] for record in records_of(tmp_path / "few", stage)]
        assert more[0][0]["text"] != more[0][1]["text"]


def test_a_stage_that_is_measured_is_not_measured_again(
    base: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = tasks_module.sample_answers

    def failing(model: LanguageModel, *arguments: Any) -> Any:
        opened.append(model.path.parents[1].name)
        if opened == ["before", "after"]:
            raise KeyboardInterrupt
        return real(model, *arguments)

    monkeypatch.setattr(tasks_module, "sample_answers", failing)
    plan, directory = plan_of(base, publish, asked(count=3)), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        measure(plan, directory)
    first = records_of(directory, "before")
    document = measure(plan, directory, resume=True)
    assert opened == ["before", "after", "after"]
    assert records_of(directory, "before") == first
    assert list(document["tasks"]["rivers"]) == ["before", "after"]


def test_kept_records_of_other_problems_or_settings_do_not_count(base: Path, publish: Publish, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    measure(plan_of(base, publish, asked(count=2)), directory)
    (directory / "tasks.json").unlink()
    state = json.loads((directory / "state.json").read_text())
    state["steps"]["tasks"]["status"] = "interrupted"
    (directory / "state.json").write_text(json.dumps(state))
    document = measure(plan_of(base, publish, asked(count=3, max_tokens=2)), directory, resume=True)
    assert document["tasks"]["rivers"]["before"]["n"] == 3
    assert max(record["answers"][0]["tokens"] for record in records_of(directory, "before")) == 2


def test_kept_records_of_another_model_do_not_count(base: Path, publish: Publish, tmp_path: Path) -> None:
    directory, step = tmp_path / "run", asked(count=3, stages=("before",))
    measure(plan_of(base, publish, step), directory)
    former = records_of(directory, "before")
    (directory / "tasks.json").unlink()
    shutil.rmtree(directory / "before" / "checkpoints")
    shutil.copytree(directory / "after" / "checkpoints", directory / "before" / "checkpoints")
    measure(plan_of(base, publish, step, ReportStep()), directory, resume=True)
    assert records_of(directory, "before") != former


def test_an_answer_ends_at_its_stop_string(base: Path, publish: Publish, tmp_path: Path) -> None:
    whole, _, _ = said(publish("tiny-llama"), QUESTIONS[0])
    stop = whole[len(whole) // 2]
    step = asked(prompt=TextPrompt(text=PROMPT.text, stop=(stop,)), count=1, stages=("before",), max_tokens=40)
    measure(plan_of(base, publish, step), tmp_path / "run")
    (answer,) = records_of(tmp_path / "run", "before")[0]["answers"]
    assert stop in answer["text"]
    assert answer["finished"]
    assert answer["tokens"] < 6
    assert len(answer["text"]) <= len(whole)


def test_rewards_that_fail_are_counted_and_one_that_always_does_stops_the_step(
    base: Path, publish: Publish, tmp_path: Path
) -> None:
    (base / "fails_at_times.py").write_text(
        "calls = []\n\ndef odd(prompt, answer, reference):\n    calls.append(answer)\n    return 1 / (len(calls) - 2)\n"
        "\ndef always(prompt, answer, reference):\n    return {}[answer]\n"
    )
    step = asked(rewards=(*EXACT, FunctionReward(name="odd", target="fails_at_times:odd")), count=3, stages=("after",))
    document = measure(plan_of(base, publish, step), tmp_path / "run", trust=Trust(code=True))
    assert document["tasks"]["rivers"]["after"]["failures"] == {"odd: crashed": 1}
    always = asked(
        rewards=(*EXACT, FunctionReward(name="odd", target="fails_at_times:always")), count=3, stages=("after",)
    )
    with pytest.raises(RewardError, match=r"reward odd: failed at all 3 answers .* KeyError: .*line 8"):
        measure(plan_of(base, publish, always), tmp_path / "other", trust=Trust(code=True))


def test_problems_beyond_the_context_are_named_before_anything_is_drawn(
    base: Path, publish: Publish, tmp_path: Path
) -> None:
    row = {"question": "river " * 200, "answer": "x", "id": "endless", "split": "held_out"}
    (tmp_path / "rivers.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ContextError, match=r"rivers: endless \(\d+ tokens\) leave no tokens .* context of 128"):
        measure(plan_of(tmp_path, publish, asked()), tmp_path / "run")
    assert not (tmp_path / "run" / "tasks").exists()


def test_rewards_that_know_no_right_answer_are_refused(base: Path, publish: Publish, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"steps\.tasks\.rewards: none says .* rivers; add \{kind = \"accuracy\"\}"):
        measure(plan_of(base, publish, asked(rewards=(FormatReward(),))), tmp_path / "run")
    assert not (tmp_path / "run" / "tasks").exists()


def test_problems_of_reasoning_gym_are_asked_by_chat_and_judged(base: Path, publish: Publish, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    source = GymProblems(dataset="count_bits", options={"max_n": 50})
    step = asked(problems=(source,), count=400, prompt=ChatPrompt(), rewards=(AccuracyReward(),), stages=("before",))
    document = measure(plan_of(base, publish, step), tmp_path / "run")
    score = document["tasks"]["count_bits"]["before"]
    found = records_of(tmp_path / "run", "before", "count_bits")
    assert len({record["question"] for record in found}) == len(found) == score["n"] < 400
    assert score["failures"] == {}
    assert found[0]["answers"][0]["text"].startswith("<think>")


def test_progress_counts_all_answers_of_all_stages(base: Path, publish: Publish, tmp_path: Path) -> None:
    progress = RecordingProgress()
    step = asked(samples=3, temperature=1.0)
    measure(plan_of(base, publish, step), tmp_path / "run", progress=progress)
    answers = [update for update in progress.updates if update.unit == "answers"]
    assert [(update.done, update.total) for update in answers] == [(32, 72), (36, 72), (68, 72), (72, 72)]
    assert [update.phase for update in answers] == ["before rivers"] * 2 + ["after rivers"] * 2
