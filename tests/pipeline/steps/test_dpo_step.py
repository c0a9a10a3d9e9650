"""The dpo step: preferences from files and judged answers, one reference for a whole run, and an exact resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import DataError, Interrupted
from fathom.spec.alignment import ConversationFile, DpoStep, JudgedPairs, PairFile, SftStep
from fathom.spec.answering import AnswersStep
from fathom.spec.posttrain import DpoLoss
from fathom.spec.problem import GymProblems
from fathom.train.metrics import read_json_lines

Passes = Callable[..., Any]
ASKED = ("two plus three?", "three plus three?", "two plus two?", "one plus two?")


def pair(question: str, chosen: str = "It is.", rejected: str = "two three") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "chosen": chosen, "rejected": rejected}


def make_step(path: str, passes: Passes, count: int = 20) -> DpoStep:
    return DpoStep(train=passes(count, sequence_length=32), loss=DpoLoss(beta=0.3), pairs=(PairFile(path=path),))


def test_preferences_are_learned_and_told(bench: Any, passes: Passes) -> None:
    path = bench.write("pairs.jsonl", [*(pair(asked) for asked in ASKED), "{", pair("same?", "a", "a")])
    out = bench.run("out", make_step(path, passes))
    lines = read_json_lines(out / "dpo" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["accuracy"] == 1
    assert lines[-1]["loss"] < 0.1
    assert lines[-1]["chosen_reward"] > lines[-1]["rejected_reward"]
    result = "\n".join(bench.watching.messages)
    assert "pairs.jsonl: 4 of 6 pairs are used" in result
    assert "pairs.jsonl, line 5: not JSON" in result


def test_a_stopped_step_keeps_its_reference_and_ends_as_one_that_was_not(
    bench: Any, passes: Passes, same: Callable[..., bool], monkeypatch: Any
) -> None:
    step = make_step(bench.write("pairs.jsonl", [pair(asked) for asked in ASKED]), passes)
    whole = bench.run("whole", step)
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=7)
    written = (bench.base / "cut" / "dpo" / "reference.safetensors").read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr("fathom.pipeline.steps.dpo.reference_logprobs", never)
    bench.run("cut", step, resume=True)
    assert (bench.base / "cut" / "dpo" / "reference.safetensors").read_bytes() == written
    assert same(whole / "dpo", bench.base / "cut" / "dpo")


def test_it_starts_from_the_model_before_it_which_is_the_reference(bench: Any, passes: Passes) -> None:
    talks = [{"messages": [*pair(asked)["messages"], {"role": "assistant", "content": "It is."}]} for asked in ASKED]
    sft = SftStep(train=passes(10, sequence_length=32), data=(ConversationFile(path=bench.write("t.jsonl", talks)),))
    out = bench.run("out", sft, make_step(bench.write("pairs.jsonl", [pair(asked) for asked in ASKED]), passes, 2))
    lines = read_json_lines(out / "dpo" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[0]["chosen_logprob"] > lines[0]["rejected_logprob"] + 10


def test_judged_answers_make_pairs_of_the_very_tokens_drawn(
    bench: Any, passes: Passes, monkeypatch: Any, seen_pairs: list[Any]
) -> None:
    def answer(step: AnswersStep, context: Any) -> None:
        context.path(step).mkdir()
        rows = [
            {
                "id": str(problem),
                "task": "sums",
                "question": ASKED[problem],
                "prompt": "?",
                "answer": str(total),
                "prompt_ids": [0, 40 + problem],
                "answer_ids": [50 + total, 1],
                "total": total,
                "correct": total > 0,
                "parts": {},
            }
            for problem in range(4)
            for total in ((0, 2, 1) if problem else (1, 1))
        ]
        (context.path(step) / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    from fathom.pipeline.steps import RUNNERS

    monkeypatch.setattr("fathom.pipeline.steps.RUNNERS", {**RUNNERS, "answers": answer})
    drawn = AnswersStep(name="drawn", problems=(GymProblems(dataset="chain_sum"),), count=1, max_tokens=8)
    step = DpoStep(train=passes(30, sequence_length=8), pairs=(JudgedPairs(step="drawn"),))
    bench.run("out", drawn, step)
    assert [(each.chosen.tokens, each.rejected.tokens) for each in seen_pairs] == [
        ([0, 40 + problem, 52, 1], [0, 40 + problem, 50, 1]) for problem in (1, 2, 3)
    ]
    assert all(each.chosen.learned == [False, False, True, True] for each in seen_pairs)
    assert "drawn: 3 of 3 pairs are used" in bench.watching.messages


@pytest.fixture
def seen_pairs(monkeypatch: Any) -> list[Any]:
    from fathom.pipeline.steps import dpo

    found: list[Any] = []
    made = dpo.pair_groups
    monkeypatch.setattr(dpo, "pair_groups", lambda pairs, reference: (found.extend(pairs), made(pairs, reference))[1])
    return found


def test_no_pair_at_all_is_refused(bench: Any, passes: Passes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"steps\.dpo\.pairs: none can be used"):
        bench.run("out", make_step(bench.write("pairs.jsonl", [pair("same?", "a", "a")]), passes))
