"""Steps learn from files as people have them: every form, JSON and Parquet, through whole runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fathom.errors import DataError, TrainError
from fathom.spec.alignment import (
    ConversationFile,
    DpoStep,
    GrpoStep,
    PairFile,
    RewardModelStep,
    SftStep,
    WorkedProblems,
)
from fathom.spec.answering import TasksStep
from fathom.spec.posttrain import PairwiseLoss
from fathom.spec.problem import FileProblems
from fathom.spec.rewards import AccuracyReward
from fathom.spec.rollout import ChatPrompt, PolicySpec, RolloutSpec
from fathom.spec.train import AdamWSpec
from fathom.train.metrics import read_json_lines

Passes = Callable[..., Any]
ASKED, SAID, WRONG = "two plus three?", "It is.", "two three"
USER, RIGHT, OTHER = (
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": SAID},
    {"role": "assistant", "content": WRONG},
)


def parquet(bench: Any, name: str, rows: list[Any]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), bench.base / name)
    return name


def test_sft_learns_the_same_from_every_form(bench: Any, passes: Passes) -> None:
    forms = {
        "messages.jsonl": {"messages": [USER, RIGHT]},
        "sharegpt.jsonl": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
        "alpaca.jsonl": {"instruction": ASKED, "input": "", "output": SAID},
        "completion.jsonl": {"prompt": ASKED, "completion": SAID},
        "weights.jsonl": {"messages": [USER, {**OTHER, "weight": 0}, USER, {**RIGHT, "weight": 1}]},
    }
    data = [ConversationFile(path=bench.write(name, [row])) for name, row in forms.items()]
    data.append(ConversationFile(path=parquet(bench, "p.parquet", [{"messages": [USER, RIGHT], "tools": None}])))
    qa = bench.write("qa.jsonl", [{"question": ASKED, "answer": SAID}])
    data.append(ConversationFile(path=qa, format="question_answer"))
    fields = {"prompt": "asked", "completion": "said"}
    data.append(ConversationFile(path=bench.write("own.jsonl", [{"asked": ASKED, "said": SAID}]), fields=fields))
    out = bench.run("out", SftStep(train=passes(4, sequence_length=32), data=tuple(data)))
    document = json.loads((out / "sft" / "data.json").read_text())
    assert document["samples"] == len(data)
    assert [source["used"] for source in document["sources"]] == [1] * len(data)
    learned = bench.tokenizer.encode(SAID, continues=True)
    assert document["learned"] == len(data) * (len(learned) + 1)


def test_an_ambiguous_file_is_refused_before_anything_is_learned(bench: Any, passes: Passes) -> None:
    path = bench.write("qa.jsonl", [{"question": ASKED, "answer": SAID}])
    refused = r'steps.sft.data\[0\]: .*qa.jsonl: the columns question, answer .* set format = "question_answer"'
    with pytest.raises(DataError, match=refused):
        bench.run("out", SftStep(train=passes(1), data=(ConversationFile(path=path),)))
    assert not (bench.base / "out").exists()


def test_every_steps_files_are_recognised_before_the_first_step_runs(bench: Any, passes: Passes) -> None:
    path = bench.write("odd.jsonl", [{"a": 1}])
    unknown, training = FileProblems(path=path), passes(1)
    rollout = RolloutSpec(questions=1, group_size=2, max_tokens=4)
    policy = PolicySpec(optimizer=AdamWSpec(lr=3e-3), rollouts=1, rollout=rollout)
    for step, field in (
        (SftStep(train=training, data=(WorkedProblems(problems=unknown, count=1),)), "sft.data[0].problems"),
        (DpoStep(train=training, pairs=(PairFile(path=path),)), "dpo.pairs[0]"),
        (GrpoStep(policy=policy, problems=(unknown,), rewards=(AccuracyReward(),)), "grpo.problems[0]"),
        (TasksStep(problems=(unknown,), max_tokens=4), "tasks.problems[0]"),
    ):
        with pytest.raises(DataError, match=f"steps.{re.escape(field)}: .*odd.jsonl: no known form in the columns a"):
            bench.run("out", step)
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        bench.run("out", DpoStep(train=training, pairs=(PairFile(path="gone.jsonl"),)))
    assert not (bench.base / "out").exists()


def test_dpo_and_reward_models_learn_from_every_form(bench: Any, passes: Passes) -> None:
    forms: dict[str, Any] = {
        "trl.jsonl": {"prompt": ASKED, "chosen": SAID, "rejected": WRONG},
        "implicit.jsonl": {"chosen": [USER, RIGHT], "rejected": [USER, OTHER]},
        "openai.jsonl": {
            "input": {"messages": [USER]},
            "preferred_output": [RIGHT],
            "non_preferred_output": [OTHER],
        },
        "uf.jsonl": {
            "instruction": ASKED,
            "completions": [{"response": SAID, "overall_score": 9}, {"response": WRONG, "overall_score": 1}],
        },
        "hh.jsonl": {
            "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}",
            "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {WRONG}",
        },
    }
    pairs = [PairFile(path=bench.write(name, [row, "{"])) for name, row in forms.items()]
    rows = [{"prompt": ASKED, "chosen": [USER, RIGHT], "rejected": [USER, OTHER], "score_chosen": 9.0}]
    pairs.append(PairFile(path=parquet(bench, "uf.parquet", rows)))
    training = passes(1, sequence_length=64)
    out = bench.run(
        "out",
        DpoStep(train=training, pairs=tuple(pairs)),
        RewardModelStep(train=training, loss=PairwiseLoss(), pairs=tuple(pairs)),
    )
    told = "\n".join(bench.watching.messages)
    for name in forms:
        assert f"{name}: 1 of 2 pairs are used" in told
    assert "uf.parquet: 1 of 1 pairs are used" in told
    assert read_json_lines(out / "dpo" / "metrics.jsonl")


def test_tasks_and_grpo_compare_with_the_final_value_of_every_form(bench: Any) -> None:
    forms: dict[str, Any] = {
        "gsm8k": {"question": ASKED, "answer": "Two and three.\n#### 5"},
        "math": {"problem": ASKED, "solution": "It is $\\boxed{5}$.", "level": "Level 1"},
        "open_r1": {"prompt": ASKED, "answer": 5},
        "verl": {"prompt": [USER], "reward_model": {"ground_truth": "5", "style": "rule"}, "data_source": "x"},
    }
    problems = [
        FileProblems(path=bench.write(f"{name}.jsonl", [{**row, "split": "test"}, "{"])) for name, row in forms.items()
    ]
    problems.append(FileProblems(path=parquet(bench, "pq.parquet", [{**forms["gsm8k"], "split": "test"}])))
    train = [{**row, "split": "train"} for row in (forms["gsm8k"], {"question": "one?", "answer": "1"})]
    policy = PolicySpec(
        optimizer=AdamWSpec(lr=3e-3, weight_decay=0.0),
        rollouts=1,
        rollout=RolloutSpec(questions=2, group_size=2, max_tokens=4, prompt=ChatPrompt(thinking="closed")),
    )
    learned = FileProblems(path=parquet(bench, "learned.parquet", train))
    out = bench.run(
        "out",
        TasksStep(problems=tuple(problems), count=1, max_tokens=4),
        GrpoStep(policy=policy, problems=(learned,), rewards=(AccuracyReward(),)),
    )
    for name in (*forms, "pq"):
        (record,) = json.loads((out / "tasks" / "base" / f"{name}.json").read_text())["records"]
        assert record["expected"] == "5"
    assert "gsm8k: 1 of 2 problems are used" in "\n".join(bench.watching.messages)
    assert len(read_json_lines(out / "grpo" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("rollouts", [2, 3])
def test_grpo_whose_rewards_never_differ_is_said_and_then_refused(rollouts: int, bench: Any) -> None:
    asked = FileProblems(path=bench.write("asked.jsonl", [{"question": ASKED, "answer": "5", "split": "train"}]))
    policy = PolicySpec(
        optimizer=AdamWSpec(lr=3e-3, weight_decay=0.0),
        rollouts=rollouts,
        rollout=RolloutSpec(questions=1, group_size=2, max_tokens=1),
    )
    step = GrpoStep(policy=policy, problems=(asked,), rewards=(AccuracyReward(),))
    said = f"step 'grpo': none of its {rollouts} rollouts changed the model: all answers to a problem were rewarded"
    if rollouts < 3:
        bench.run("out", step)
        assert any(line.startswith(said) for line in bench.watching.messages)
        return
    with pytest.raises(TrainError, match=said):
        bench.run("out", step)


def test_a_run_says_that_a_file_named_as_a_held_out_split_is_trained_on(bench: Any, passes: Passes) -> None:
    names = ("chat-test.jsonl", "train.jsonl")
    data = tuple(ConversationFile(path=bench.write(name, [{"messages": [USER, RIGHT]}])) for name in names)
    bench.run("out", SftStep(train=passes(4, sequence_length=32), data=data))
    told = [line for line in bench.watching.messages if "is trained on" in line]
    assert told == ["chat-test.jsonl: is trained on, although its name says test; name another file to hold it out"]


def test_data_in_the_users_own_folder_is_read_by_every_step(
    bench: Any, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = bench.base / "home"
    monkeypatch.setenv("HOME", str(home))
    bench.write("home/chats.jsonl", [{"messages": [USER, RIGHT]}])
    bench.write("home/pairs.jsonl", [{"prompt": ASKED, "chosen": SAID, "rejected": WRONG}] * 8)
    bench.write("home/worked.jsonl", [{"question": "one?", "answer": "It is one.\n#### 1", "split": "train"}])
    training, pairs = passes(8, sequence_length=64), (PairFile(path="~/pairs.jsonl"),)
    worked = WorkedProblems(problems=FileProblems(path="~/worked.jsonl"), count=1)
    out = bench.run(
        "out",
        SftStep(train=training, data=(ConversationFile(path="~/chats.jsonl"), worked)),
        DpoStep(train=training, pairs=pairs),
        RewardModelStep(train=training, loss=PairwiseLoss(), pairs=pairs),
    )
    assert json.loads((out / "sft" / "data.json").read_text())["samples"] == 2
    assert [line for line in bench.watching.messages if "pairs are used" in line] == [
        "~/pairs.jsonl: 8 of 8 pairs are used"
    ] * 2
