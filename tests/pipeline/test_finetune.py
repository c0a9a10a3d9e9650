"""The recipe of a fine-tuning: its defaults by data and model, the data it takes, and what it leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

import fathom
from fathom.data.forms import Columns
from fathom.errors import DataError, ResourceError, SpecError
from fathom.inference.run_record import read_json
from fathom.pipeline.finetune import (
    Finetuning,
    TuningData,
    TuningMemory,
    check_memory,
    finetuning_plan,
    read_tuning_data,
    tuning_memory,
)
from fathom.pipeline.run import run
from fathom.plan import training_memory
from fathom.spec.adapter import LoraSpec
from fathom.spec.alignment import DpoStep, SftStep
from tests.json_lines import write_json_lines
from tests.published import SPECS, copy_without_template

Publish = Callable[[str], Path]
SPEC = SPECS["tiny-qwen2"]
PAIRS = [(f"the river {n}?", f"see the sea {n}") for n in range(6)]


def chats(path: Path) -> Path:
    return write_json_lines(
        path, [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS]
    )


def learning(data: TuningData, wanted: Finetuning, *overrides: str) -> SftStep | DpoStep:
    step = finetuning_plan("somewhere", SPEC, data, wanted, overrides).recipe.steps[1]
    assert isinstance(step, SftStep | DpoStep)
    return step


def test_defaults_follow_the_number_of_examples_and_what_is_trained() -> None:
    few, many = (TuningData(Path("chats.jsonl"), "conversations", rows) for rows in (8, 30_000))
    small, large, adapted = (
        learning(few, Finetuning()),
        learning(many, Finetuning()),
        learning(few, Finetuning(lora=True)),
    )
    assert small.train.epochs > large.train.epochs
    assert (small.train.batch.conversations, large.train.batch.conversations) == (4, 32)
    assert (small.train.validation.fraction, large.train.validation.fraction) == (1 / 8, None)
    assert adapted.train.adapter == LoraSpec(rank=16, alpha=32.0)
    assert adapted.train.optimizer.lr > small.train.optimizer.lr
    tiny = learning(TuningData(Path("x.jsonl"), "conversations", 2), Finetuning())
    assert (tiny.train.validation.fraction, tiny.train.patience) == (0.0, None)


def test_what_a_user_says_takes_the_place_of_defaults() -> None:
    data = TuningData(Path("pairs.jsonl"), "preferences", 50)
    wanted = Finetuning(epochs=7.0, rate=3e-3, batch=2, max_length=99, lora=True, rank=5, quantize="int4")
    step = learning(data, wanted, "dpo.train.patience=9")
    assert isinstance(step, DpoStep)
    train = step.train
    assert (train.epochs, train.optimizer.lr, train.batch.pairs) == (7.0, 3e-3, 2)
    assert (train.sequence_length, train.patience) == (99, 9)
    assert train.adapter == LoraSpec(rank=5, alpha=10.0, quantize_base="int4")
    with pytest.raises(SpecError, match="--rank: is about an adapter; add --lora"):
        Finetuning(rank=4).adapter()


def test_data_is_read_in_every_form_and_own_columns_are_named(tmp_path: Path) -> None:
    assert (read_tuning_data(chats(tmp_path / "a.jsonl")).kind) == "conversations"
    both = write_json_lines(tmp_path / "b.jsonl", [{"prompt": q, "chosen": a, "rejected": "no"} for q, a in PAIRS])
    assert (read_tuning_data(both).kind, read_tuning_data(both).rows) == ("preferences", 6)
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Question", "Answer"), *PAIRS])
    table = read_tuning_data(tmp_path / "c.csv")
    assert (table.rows, table.columns.format) == (6, "question_answer")
    own = write_json_lines(tmp_path / "d.jsonl", [{"ask": q, "say": a} for q, a in PAIRS])
    with pytest.raises(DataError, match=r"no known form in the columns ask, say.*rename columns or use --field"):
        read_tuning_data(own)
    columns = Columns(fields={"prompt": "ask", "completion": "say"})
    read = read_tuning_data(own, columns)
    step = learning(read, Finetuning())
    assert isinstance(step, SftStep)
    assert read.rows == 6
    assert step.data[0].fields == columns.fields  # type: ignore[union-attr]


def test_memory_is_that_of_the_plan_and_too_much_is_refused_with_what_takes_less() -> None:
    lora = LoraSpec(quantize_base="int4")
    memory = tuning_memory(SPEC, 64, lora)
    assert memory.full == training_memory(SPEC, tokens=64).total
    assert memory.needed == training_memory(SPEC, tokens=64, adapter=lora).total < memory.full
    tight = TuningMemory(full=9_000_000_000, adapter=None, limit=8_000_000_000)
    with pytest.raises(ResourceError, match=r"9 GB, and this machine has 8 GB; add --lora"):
        check_memory(tight, Finetuning())


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path: Path, publish: Publish) -> None:
    data = read_tuning_data(chats(tmp_path / "chats.jsonl"))
    plan = finetuning_plan(str(publish("tiny-qwen2")), SPEC, data, Finetuning())
    with pytest.raises(ResourceError, match=r"^--out: .*run cannot be made: .*; choose another folder"):
        run(plan, tmp_path / "chats.jsonl" / "run", cache_dir=tmp_path / "cache")


def test_a_model_without_a_chat_template_can_chat_afterwards(tmp_path: Path, publish: Publish) -> None:
    base = copy_without_template(publish("tiny-qwen2"), tmp_path / "base")
    assert not fathom.load(base).tokenizer.can_chat
    data = read_tuning_data(chats(tmp_path / "chats.jsonl"))
    run(finetuning_plan(str(base), SPEC, data, Finetuning(epochs=1.0)), tmp_path / "run", cache_dir=tmp_path / "cache")
    tuned = fathom.load(tmp_path / "run")
    assert tuned.tokenizer.can_chat
    (reply,) = read_json(tmp_path / "run" / "replies.json")["replies"]
    asked = {"max_tokens": 96, "temperature": 0.0}
    assert reply["answers"]["sft"] == tuned.chat(reply["messages"], **asked).text
    assert not any(answer.startswith("(") for answer in reply["answers"].values()), reply


def test_pairs_are_learned_and_their_curves_are_in_the_report(tmp_path: Path, publish: Publish) -> None:
    rows = [{"prompt": q, "chosen": a, "rejected": "find the road"} for q, a in PAIRS]
    data = read_tuning_data(write_json_lines(tmp_path / "pairs.jsonl", rows))
    plan = finetuning_plan(str(publish("tiny-qwen2")), SPEC, data, Finetuning(epochs=2.0, rate=1e-2, lora=True))
    run(plan, tmp_path / "run", cache_dir=tmp_path / "cache")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Learning from pairs of answers: dpo" in page
    for label in ("implied reward", "better answer", "worse answer", "margin", "accuracy", "validation"):
        assert f">{label}<" in page.replace("\n", ""), label
    assert "by dpo." in page
