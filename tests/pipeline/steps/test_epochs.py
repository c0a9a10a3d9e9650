"""Epochs in a user's units: batches of conversations, what is held out, and stopping at the best model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import fathom
from fathom.checkpoint import store
from fathom.data.conversations.loss_mask import encode_with_loss_mask
from fathom.data.records import read_records
from fathom.data.validation_split import FEWEST, MOST, choose_held_out, text_key
from fathom.errors import DataError, Interrupted, SpecError
from fathom.inference.run_record import read_json
from fathom.spec.alignment import ConversationFile, DpoStep, PairFile, SftStep
from fathom.spec.epochs import EpochBatch, ValidationSpec
from fathom.train.metrics import read_json_lines

Passes = Callable[..., Any]
WORDS = ("one", "two", "three", "four", "five", "six")
TALKS = [(f"{a} plus {b}?", f"{a} and {b}.") for a in WORDS for b in WORDS][:24]


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def file_of(bench: Any, talks: list[tuple[str, str]], name: str = "talks.jsonl") -> ConversationFile:
    return ConversationFile(path=bench.write(name, [talk(*each) for each in talks]))


def curve(step: Path) -> list[tuple[int, float]]:
    rows = read_json_lines(step / "metrics.jsonl")
    return [(row["step"], row["evaluation"]["validation_loss"]) for row in rows if "evaluation" in row]


def held_out_loss(model: Path, step: Path, tokenizer: Any) -> float:
    """The mean loss per learned token of what a step held out, one conversation at a time."""
    opened, nats, count = fathom.load(model, device="cpu", dtype="float32"), 0.0, 0
    for record in read_records(step / "held_out.jsonl"):
        sample = encode_with_loss_mask(tokenizer, record.value["messages"])
        logits = opened.logits(sample.tokens)
        losses = functional.cross_entropy(logits[:-1], torch.tensor(sample.tokens[1:]), reduction="none")
        learned = torch.tensor(sample.learned[1:])
        nats, count = nats + float(losses[learned].sum()), count + int(learned.sum())
    return nats / count


def test_a_batch_is_conversations_and_progress_counts_them(bench: Any, passes: Passes) -> None:
    train = passes(2, sequence_length=None, batch=EpochBatch(conversations=5), validation=ValidationSpec(fraction=0))
    out = bench.run("out", SftStep(train=train, data=(file_of(bench, TALKS),)))
    counted = [(u.done, u.total, u.unit, u.metrics["epoch"]) for u in bench.watching.updates if u.unit != "bytes"]
    ends = [5, 10, 15, 20, 24, 29, 34, 39, 44, 48]
    assert [each for each in counted if each[2] == "conversations"] == [
        (end, 48, "conversations", "1 of 2" if end <= 24 else "2 of 2") for end in ends
    ]
    data = read_json(out / "sft" / "data.json")
    assert data["samples"] == 24
    samples = [encode_with_loss_mask(bench.tokenizer, talk(*each)["messages"]) for each in TALKS]
    assert data["longest"] == max(len(sample.tokens) for sample in samples) - 1


def test_what_is_held_out_is_measured_and_never_learned(bench: Any, passes: Passes) -> None:
    data = file_of(bench, [*TALKS, *TALKS[:6]])  # some twice
    out = bench.run("out", SftStep(train=passes(3, batch=EpochBatch(conversations=8)), data=(data,)))
    kept = [record.value["messages"][0]["content"] for record in read_records(out / "sft" / "held_out.jsonl")]
    counts = read_json(out / "sft" / "data.json")
    twice = sum(question in dict(TALKS[:6]) for question in kept)
    assert len(kept) == 2
    assert (counts["held_out"], counts["samples"]) == (2 + twice, 28 - twice)
    measured = curve(out / "sft")
    assert measured[0][0] == 0
    assert len(measured) >= 4
    assert f"validation loss {measured[-1][1]:.3f} after {measured[-1][0]} steps" in bench.watching.messages
    if not twice:
        assert measured[0][1] == pytest.approx(held_out_loss(out / "base", out / "sft", bench.tokenizer), rel=1e-4)
        assert measured[-1][1] == pytest.approx(held_out_loss(out, out / "sft", bench.tokenizer), rel=1e-4)


def test_a_file_of_its_own_validates_and_what_is_in_it_is_not_learned(bench: Any, passes: Passes) -> None:
    held = bench.write("held.jsonl", [talk(*each) for each in TALKS[:3]])
    train = passes(1, batch=EpochBatch(conversations=8), validation=ValidationSpec(path=held))
    out = bench.run("out", SftStep(train=train, data=(file_of(bench, TALKS),)))
    counts = read_json(out / "sft" / "data.json")
    assert (counts["held_out"], counts["samples"]) == (3, 21)
    assert len(curve(out / "sft")) >= 2
    every = ValidationSpec(path=bench.write("all.jsonl", [talk(*each) for each in TALKS]))
    with pytest.raises(DataError, match="holds out all there is to learn"):
        bench.run("none", SftStep(train=passes(1, validation=every), data=(file_of(bench, TALKS),)))


def test_patience_stops_and_the_best_model_is_the_result(bench: Any, passes: Passes, same: Callable[..., bool]) -> None:
    other = bench.write("other.jsonl", [talk(f"{word} plus ten?", "six and six.") for word in WORDS])  # soon unlearned
    validation = ValidationSpec(path=other)
    train = passes(60, batch=EpochBatch(conversations=8), patience=2, evaluate_every_steps=2, validation=validation)
    step = SftStep(train=train, data=(file_of(bench, TALKS),))
    out = bench.run("whole", step)
    measured = curve(out / "sft")
    best = min(range(len(measured)), key=lambda place: measured[place][1])
    assert 0 < best == len(measured) - 3
    assert measured[best][1] == pytest.approx(held_out_loss(out, out / "sft", bench.tokenizer), rel=1e-4)
    assert any(line.startswith("stopped early after step") for line in bench.watching.messages)
    assert not (out / "sft" / "best").exists()
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=measured[best][0] + 1)
    assert same(out / "sft", bench.run("cut", step, resume=True) / "sft")


def test_pairs_are_counted_held_out_and_measured(bench: Any, passes: Passes) -> None:
    rows = [{"prompt": asked, "chosen": said, "rejected": "No."} for asked, said in TALKS]
    path = bench.write("pairs.jsonl", rows)
    step = DpoStep(train=passes(2, sequence_length=None, batch=EpochBatch(pairs=8)), pairs=(PairFile(path=path),))
    out = bench.run("out", step)
    assert {update.unit for update in bench.watching.updates if "epoch" in update.metrics} == {"pairs"}
    measured = curve(out / "dpo")
    assert measured[0][1] == pytest.approx(math.log(2), rel=1e-5)
    assert measured[-1][1] < measured[0][1]
    kept = [record.value["messages"] for record in read_records(out / "dpo" / "held_out.jsonl")]
    assert [talk[-1]["content"] for talk in kept] == [dict(TALKS)[talk[0]["content"]] for talk in kept]
    assert len(kept) == 2


def test_units_of_another_step_and_contradictions_are_refused(passes: Passes) -> None:
    with pytest.raises(SpecError, match=r"train.batch.pairs: this step has no pairs; write conversations instead"):
        SftStep(train=passes(1, batch=EpochBatch(pairs=2)), data=(ConversationFile(path="a"),))
    with pytest.raises(SpecError, match="size: contradicts conversations"):
        EpochBatch(conversations=2, size=2)
    with pytest.raises(SpecError, match="packing: joined samples have no rows"):
        passes(1, batch=EpochBatch(conversations=2), packing="joined")
    with pytest.raises(SpecError, match="patience: needs a validation loss"):
        passes(1, patience=2, validation=ValidationSpec(fraction=0))


def test_the_held_out_are_the_same_share_whatever_the_order() -> None:
    keys = [text_key(["x", number]) for number in range(1000)]
    assert choose_held_out(keys, None) == choose_held_out(reversed(keys), None)
    assert len(choose_held_out(keys, None)) == MOST
    assert len(choose_held_out([*keys, *keys], 0.1)) == 100
    assert not choose_held_out(keys[: FEWEST - 1], None)
    assert not choose_held_out(keys, 0.0)
    assert text_key({"a": " x ", "b": 1}) == text_key({"b": 1, "a": "x"})
    with pytest.raises(DataError, match="holds out all 1 different examples"):
        choose_held_out(keys[:1], 0.1)


def test_a_checkpoint_of_rows_cannot_be_taken_for_one_of_conversations(bench: Any, passes: Passes) -> None:
    step = SftStep(train=passes(1, batch=EpochBatch(size=4)), data=(file_of(bench, TALKS),))
    out = bench.run("out", step)
    found = store.latest(out / "sft" / "checkpoints")
    assert found is not None
    assert store.Checkpoint.open(found).document("state")["loader"]["unit"] == "rows"
