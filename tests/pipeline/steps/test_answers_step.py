"""The answers step: what is drawn, judged and kept, and that the steps after it read just that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fathom.data.conversations.read import read_conversations
from fathom.data.row_report import RowReport
from fathom.errors import ContextError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.pipeline.steps.answers import _AnswerCounts, _conversations, _ScoredRollout
from fathom.posttrain.preferences import pair_best_with_worst, read_judged, subset_of_problems
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.rewards.extract import final_answer
from fathom.posttrain.rewards.judge import Judge
from fathom.posttrain.rollout import Rollout
from fathom.spec.alignment import DpoStep, JudgedPairs, KeptAnswers, RewardModelStep, SftStep
from fathom.spec.answering import AnswersStep
from fathom.spec.posttrain import PairwiseLoss
from fathom.spec.problem import FileProblems, Problem
from fathom.spec.rewards import AccuracyReward, FormatReward
from fathom.spec.rollout import ChatPrompt, TextPrompt
from fathom.train.metrics import read_json_lines

Passes = Callable[..., Any]
ASKED = ("two plus three?", "three plus three?", "two plus two?", "one plus two?", "one plus one?")
CLOSED = ChatPrompt(thinking="closed", system="Be brief.")


def drawing(path: str, **fields: Any) -> AnswersStep:
    given: dict[str, Any] = {
        "name": "drawn",
        "problems": (FileProblems(name="sums", path=path),),
        "rewards": (AccuracyReward(method="exact"), FormatReward(weight=0.5)),
        "count": 5,
        "samples": 6,
        "keep": 2,
        "max_tokens": 8,
        "prompt": CLOSED,
    }
    return AnswersStep(**(given | fields))


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def problems(bench: Any, answers: dict[str, str], name: str = "sums.jsonl") -> str:
    """Write training problems; those without a known answer are answered by no model."""
    written = [
        {"id": str(i), "question": q, "answer": answers.get(q, "?!?"), "split": "train"} for i, q in enumerate(ASKED)
    ]
    return str(bench.write(name, written))


@pytest.fixture
def known(bench: Any) -> str:
    """Problems whose answers the model gives: those of its own finished answers to three of five questions."""
    out = bench.run("first", drawing(problems(bench, {}), max_tokens=60))
    found = {
        line["question"]: final_answer(line["answer"])
        for line in rows(out / "drawn" / "answers.jsonl")
        if line["finished"] and final_answer(line["answer"])
    }
    chosen = {question: str(answer) for question, answer in list(found.items())[:3]}
    assert len(chosen) == 3
    return problems(bench, chosen, "known.jsonl")


def test_every_answer_is_written_with_what_it_is_worth(bench: Any, known: str) -> None:
    step = drawing(known, max_tokens=60)
    out = bench.run("out", step) / "drawn"
    lines = rows(out / "answers.jsonl")
    assert [line["id"] for line in lines] == [str(i) for i in range(5) for _ in range(6)]
    tokenizer = LanguageModel.open(bench.published, device="cpu").tokenizer
    prompt_formatter = PromptFormatter(tokenizer, CLOSED)
    with Judge(step.rewards, seconds=5.0) as judge:
        for line in lines:
            problem = Problem(id=line["id"], task="sums", question=line["question"], answer=_answer(bench, line))
            assert line["task"] == "sums"
            assert line["prompt_ids"] == prompt_formatter.encode(problem)
            assert line["prompt"] == tokenizer.decode(line["prompt_ids"], skip_special=False)
            assert line["answer"] == prompt_formatter.read(line["answer_ids"])
            assert line["finished"] == (line["answer_ids"][-1] == tokenizer.eos_id)
            (judged,) = judge.judge([RewardInput(prompt=line["prompt"], answer=line["answer"], problem=problem)])
            assert (line["total"], line["correct"], line["parts"]) == (judged.total, judged.correct, judged.parts)
    assert len({tuple(line["answer_ids"]) for line in lines}) > 20
    counts = json.loads((out / "summary.json").read_text())["tasks"]["sums"]
    right = [line for line in lines if line["correct"]]
    assert counts["problems"] == 5
    assert counts["answers"] == 30
    assert counts["correct"] == len(right)
    assert counts["solved"] == len({line["id"] for line in right}) == 3
    kept = rows(out / "conversations.jsonl")
    assert counts["kept"] == len(kept) >= 3
    for conversation in kept:
        system, user, assistant = conversation["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert any(line["question"] == user["content"] and line["correct"] for line in lines)
        assert set(assistant) == {"role", "content"}


def _answer(bench: Any, line: dict[str, Any]) -> str:
    return str(next(row["answer"] for row in rows(bench.base / "known.jsonl") if row["question"] == line["question"]))


def test_two_runs_draw_alike_whatever_is_drawn_together(bench: Any, known: str, monkeypatch: Any) -> None:
    whole = bench.run("whole", drawing(known))
    monkeypatch.setattr("fathom.pipeline.steps.answers.ANSWERS_AT_ONCE", 7)
    parts = bench.run("parts", drawing(known))
    for name in ("answers.jsonl", "conversations.jsonl", "summary.json"):
        assert (whole / "drawn" / name).read_bytes() == (parts / "drawn" / name).read_bytes()
    other = bench.run("other", drawing(known, seed=2))
    assert (whole / "drawn" / "answers.jsonl").read_bytes() != (other / "drawn" / "answers.jsonl").read_bytes()


def test_kept_and_judged_answers_are_what_later_steps_learn_from(bench: Any, known: str, passes: Passes) -> None:
    sft = SftStep(train=passes(2, sequence_length=256), data=(KeptAnswers(step="drawn"),), prompt=CLOSED)
    dpo = DpoStep(start="base", train=passes(2, sequence_length=256), pairs=(JudgedPairs(step="drawn", per_problem=2),))
    reward = RewardModelStep(
        start="base",
        train=passes(1, sequence_length=256),
        loss=PairwiseLoss(),
        pairs=(JudgedPairs(step="drawn", per_problem=2),),
    )
    out = bench.run("out", drawing(known, max_tokens=60), sft, dpo, reward)
    kept = len(rows(out / "drawn" / "conversations.jsonl"))
    result = "\n".join(bench.watching.messages)
    assert f"drawn: {kept} of {kept} conversations are used" in result
    assert json.loads((out / "sft" / "data.json").read_text())["samples"] == kept
    report = RowReport()
    judged = list(read_judged(out / "drawn" / "answers.jsonl", report))
    found = pair_best_with_worst(judged, 2)
    assert report.read == 0
    assert len(judged) == 30
    assert f"drawn: {len(found)} of {len(found)} pairs are used" in result
    assert len(list(read_conversations(out / "drawn" / "conversations.jsonl", report))) == kept
    assert read_json_lines(out / "dpo" / "metrics.jsonl")
    assert (out / "reward-model" / "reward.json").exists()


def test_a_share_of_the_problems_is_the_same_whatever_their_order(bench: Any, known: str) -> None:
    out = bench.run("out", drawing(known))
    judged = list(read_judged(out / "drawn" / "answers.jsonl", RowReport()))
    taken = {answer.problem for answer in subset_of_problems(judged, 0.4)}
    assert len(taken) == 2
    assert {answer.problem for answer in subset_of_problems(judged[::-1], 0.4)} == taken
    assert len(subset_of_problems(judged, 0.4)) == 12
    assert subset_of_problems(judged, 1.0) == judged
    with pytest.raises(SpecError, match="share"):
        JudgedPairs(step="drawn", share=1.5)


def test_a_file_that_is_shorter_is_asked_once(bench: Any, known: str) -> None:
    out = bench.run("out", drawing(known, count=12, samples=1))
    assert len(rows(out / "drawn" / "answers.jsonl")) == 5
    assert any("5 different problems, there are no more" in line for line in bench.watching.messages)


def test_a_question_without_room_is_refused_before_anything_is_drawn(bench: Any) -> None:
    long = bench.write("long.jsonl", [{"id": "0", "question": "plus " * 600, "answer": "1", "split": "train"}])
    with pytest.raises(ContextError, match="leave no tokens for an answer"):
        bench.run("out", drawing(long))


def test_without_a_verdict_nothing_is_kept_and_that_is_said(bench: Any, known: str) -> None:
    out = bench.run("out", drawing(known, rewards=(FormatReward(),)))
    assert rows(out / "drawn" / "conversations.jsonl") == []
    assert any("nothing is kept, for no reward says what is right" in line for line in bench.watching.messages)


def given(text: str, tokens: int, *, correct: bool = True, finished: bool = True, id: str = "0") -> _ScoredRollout:
    problem = Problem(id=id, task="sums", question="What?", answer="5")
    rollout = Rollout(
        problem=problem,
        group=0,
        prompt_ids=(1,),
        answer_ids=(2,) * tokens,
        logprobs=(0.0,) * tokens,
        text=text,
        finished=finished,
    )
    return _ScoredRollout(rollout, Judgement(total=float(correct), parts={}, correct=correct))


def kept(bench: Any, answers: list[_ScoredRollout], **fields: Any) -> tuple[list[Any], dict[str, int]]:
    step, tally = drawing("x.jsonl", **fields), _AnswerCounts()
    prompt_formatter = PromptFormatter(bench.tokenizer, step.prompt)
    asked = list({each.rollout.problem.id: each.rollout.problem for each in answers}.values())
    found: Iterator[Any] = _conversations(step, asked, answers, prompt_formatter, tally)
    return list(found), tally.tasks["sums"]


def test_the_shortest_different_right_answers_are_kept(bench: Any) -> None:
    answers = [
        given("<think> long way </think> <answer> 5 </answer>", 9),
        given("<think> no </think> <answer> 4 </answer>", 1, correct=False),
        given("<think> short </think> <answer> 5 </answer>", 4),
        given("<think>short</think><answer>5</answer>", 5),
        given("<think> middle </think> 5", 6),
        given("<think> cut", 3, finished=False),
        given("<answer> 5 </answer>", 7, id="1"),
    ]
    found, counts = kept(bench, answers, prompt=TextPrompt())
    assert found == [
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "5"} | reasoning]}
        for reasoning in ({"reasoning_content": "short"}, {"reasoning_content": "middle"}, {})
    ]
    expected = {"problems": 2, "answers": 7, "correct": 6, "solved": 2, "kept": 3, "alike": 1, "unfinished": 1}
    assert counts == expected


def test_mixed_languages_and_code_are_left_out_where_asked(bench: Any) -> None:
    answers = [
        given("<think> two and three make five </think> 5", 9),
        given("<think> two and 二加三 make five </think> 5", 3),
        given("<think> run ```2 + 3``` now </think> 5", 4),
    ]
    found, counts = kept(bench, answers, keep=3)
    assert len(found) == 3
    found, counts = kept(bench, answers, keep=3, min_language=0.9, code_blocks=False)
    assert [message["messages"][-1]["reasoning_content"] for message in found] == ["two and three make five"]
    assert (counts["mixed_language"], counts["code_blocks"]) == (1, 1)
