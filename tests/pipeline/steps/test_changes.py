"""Resuming a run under a recipe that changed: what is accepted, with leave or without, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint import store
from fathom.errors import Interrupted, SpecError
from fathom.inference.run_record import read_json, read_state
from fathom.spec.alignment import ConversationFile, SftStep
from fathom.spec.answering import AnswersStep
from fathom.spec.epochs import EpochBatch
from fathom.spec.problem import FileProblems
from fathom.spec.recipe import SampleStep
from fathom.spec.sampling import SamplingParams
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.train.metrics import read_changes, read_json_lines

Passes = Callable[..., Any]
ASKED = ("two plus three?", "three plus three?", "two plus two?", "one plus two?")
SAMPLE = SampleStep(prompts=("two",), sampling=SamplingParams(max_tokens=4, temperature=0.0))
ADAM = AdamWSpec(lr=4e-3, weight_decay=0.0)
DROPPING = Checkpointing(every_steps=5, every_seconds=None)


@pytest.fixture
def sft(bench: Any, passes: Passes) -> Callable[..., SftStep]:
    said = [{"role": "assistant", "content": "It is five."}]
    rows = [{"messages": [{"role": "user", "content": asked}, *said]} for asked in ASKED]
    data = (ConversationFile(path=bench.write("talks.jsonl", rows), repeat=2),)

    def step(epochs: float = 10, name: str = "sft", **fields: Any) -> SftStep:
        return SftStep(name=name, train=passes(epochs, **({"sequence_length": 32} | fields)), data=data)

    return step


@pytest.fixture
def cut(bench: Any, sft: Callable[..., SftStep]) -> Path:
    """A run stopped after the eighth step of training."""
    with pytest.raises(Interrupted):
        bench.run("out", sft(), stop_at=8)
    return Path(bench.base / "out")


def status(out: Path) -> dict[str, str]:
    return {name: state.status for name, state in read_state(out).items()}


def test_rounding_is_accepted_and_recorded_everywhere(bench: Any, sft: Callable[..., SftStep], cut: Path) -> None:
    before = read_state(cut)["sft"].inputs
    changed = sft(batch=EpochBatch(size=2, micro_batch_size=2), activation_checkpointing=True)
    bench.run("out", changed, resume=True)
    assert read_changes(cut / "sft" / "metrics.jsonl") == [
        {"step": 8, "field": "activation_checkpointing", "old": False, "new": True},
        {"step": 8, "field": "batch.micro_batch_size", "old": 1, "new": 2},
    ]
    assert any("resumes after step 8 with activation_checkpointing True instead of False" in line
               for line in bench.watching.messages)  # fmt: skip
    assert read_state(cut)["sft"].inputs != before
    recorded = read_json(cut / "recipe.json")["recipe"]["steps"][1]["train"]
    assert recorded["batch"]["micro_batch_size"] == 2
    assert all("loss" in line for line in read_json_lines(cut / "sft" / "metrics.jsonl"))


def test_what_changes_learning_is_refused_by_the_name_of_the_flag(
    bench: Any, sft: Callable[..., SftStep], cut: Path
) -> None:
    changed = sft(optimizer=AdamWSpec(lr=1e-3, weight_decay=0.0))
    state = (cut / "state.json").read_bytes()
    with pytest.raises(SpecError, match=r"steps\.sft\.train\.optimizer\.lr: was 0\.004 .* --allow-changes to continue"):
        bench.run("out", changed, resume=True)
    assert (cut / "state.json").read_bytes() == state
    bench.run("out", changed, resume=True, allow_changes=True)
    assert read_changes(cut / "sft" / "metrics.jsonl") == [
        {"step": 8, "field": "optimizer.lr", "old": 0.004, "new": 0.001}
    ]
    rates = {line["step"]: line["lr"] for line in read_json_lines(cut / "sft" / "metrics.jsonl")}
    assert (rates[8], rates[9]) == (0.004, 0.001)
    bench.run("out", changed, resume=True)


def test_an_accepted_change_needs_no_leave_again(bench: Any, sft: Callable[..., SftStep], cut: Path) -> None:
    changed = sft(optimizer=AdamWSpec(lr=1e-3, weight_decay=0.0))
    with pytest.raises(Interrupted):
        bench.run("out", changed, resume=True, allow_changes=True, stop_at=9)
    bench.run("out", changed, resume=True)
    assert status(cut)["sft"] == "done"


@pytest.mark.parametrize("fields", [{"seed": 5}, {"packing": "joined"}, {"sequence_length": 40}])
def test_data_stays_as_it_was(bench: Any, sft: Callable[..., SftStep], cut: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        bench.run("out", sft(**fields), resume=True, allow_changes=True)
    assert f"steps.sft.train.{next(iter(fields))}: was" in str(caught.value)
    assert "give another --out, or --restart" in str(caught.value)
    assert "--allow-changes" not in str(caught.value)


def test_without_a_checkpoint_everything_may_change(bench: Any, sft: Callable[..., SftStep]) -> None:
    with pytest.raises(SpecError, match="do not fill one batch"):
        bench.run("out", sft(0.1))
    bench.run("out", sft(2, seed=5, sequence_length=40), resume=True)
    assert status(bench.base / "out")["sft"] == "done"


def test_a_finished_step_becomes_longer_and_the_steps_after_it_run_again(
    bench: Any, sft: Callable[..., SftStep], same: Callable[..., bool]
) -> None:
    out = bench.run("out", sft(4), SAMPLE)
    bench.run("out", sft(10), SAMPLE, resume=True)
    assert bench.watching.stages == ["sft", "sample"]
    assert read_changes(out / "sft" / "metrics.jsonl")[0]["field"] == "total_tokens"
    assert set(status(out).values()) == {"done"}
    assert same(bench.run("whole", sft(10)) / "sft", out / "sft")


def test_a_finished_step_keeps_weights_alone_unless_all_is_kept(bench: Any, sft: Callable[..., SftStep]) -> None:
    whole, out = bench.run("whole", sft(4)), bench.run("out", sft(4, checkpoint=DROPPING))
    (said,) = [line for line in bench.watching.messages if line.startswith("dropped")]
    assert "the optimizer's state of sft" in said
    assert "freed (train.checkpoint.keep_optimizer = true keeps it)" in said
    (last,) = store.list_checkpoints(out / "sft" / "checkpoints")
    kept = store.list_checkpoints(whole / "sft" / "checkpoints")
    assert (len(kept), kept[-1].name) == (2, last.name)
    files = [{path.name: path.stat().st_size for path in folder.iterdir()} for folder in (kept[-1], last)]
    assert files[0].keys() - files[1].keys() == {"optimizer.safetensors"}
    assert sum(files[1].values()) < 0.4 * sum(files[0].values())
    weights = [store.Checkpoint.open(folder).tensors("model") for folder in (kept[-1], last)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_stopped_step_keeps_its_optimizer(bench: Any, sft: Callable[..., SftStep], same: Callable[..., bool]) -> None:
    whole = bench.run("whole", sft(4, checkpoint=DROPPING))
    with pytest.raises(Interrupted):
        bench.run("out", sft(4, checkpoint=DROPPING), stop_at=8)
    last = store.latest(bench.base / "out" / "sft" / "checkpoints")
    assert last is not None
    assert (last / "optimizer.safetensors").exists()
    assert same(whole / "sft", bench.run("out", sft(4, checkpoint=DROPPING), resume=True) / "sft")


def test_a_finished_step_without_optimizer_refuses_to_become_longer_and_its_remedies_work(
    bench: Any, sft: Callable[..., SftStep]
) -> None:
    short, longer = sft(2, checkpoint=DROPPING), sft(4, checkpoint=DROPPING)
    out = bench.run("out", short)
    state = (out / "state.json").read_bytes()
    with pytest.raises(SpecError) as caught:
        bench.run("out", longer, resume=True)
    assert 'train its model further in a step of its own, with start = "sft"' in str(caught.value)
    assert "in a new run, set train.checkpoint.keep_optimizer = true" in str(caught.value)
    assert (out / "state.json").read_bytes() == state
    bench.run("out", short, replace(sft(2, name="more"), start="sft"), resume=True)
    assert bench.watching.stages == ["more"]
    bench.run("again", sft(2))
    bench.run("again", sft(4), resume=True)
    assert status(bench.base / "again")["sft"] == "done"


def test_a_finished_step_that_others_trained_on_stays(bench: Any, sft: Callable[..., SftStep]) -> None:
    bench.run("out", sft(2), sft(2, name="more"))
    with pytest.raises(SpecError, match=r"train\.epochs: was 2\.0 .* step 'more' has trained since"):
        bench.run("out", sft(4), sft(2, name="more"), resume=True)
    bench.run("out", sft(2), sft(4, name="more"), resume=True)


def test_a_finished_step_learns_nothing_else(bench: Any, sft: Callable[..., SftStep]) -> None:
    out = bench.run("out", sft(2))
    with pytest.raises(SpecError) as caught:
        bench.run("out", sft(2, optimizer=replace(ADAM, lr=1.0)), resume=True, allow_changes=True)
    assert "--allow-changes" not in str(caught.value)
    bench.run("out", sft(2, batch=EpochBatch(size=2, micro_batch_size=2)), resume=True)
    assert bench.watching.stages == []
    assert read_json(out / "recipe.json")["recipe"]["steps"][1]["train"]["batch"]["micro_batch_size"] == 2


def rename(value: Any, names: dict[str, str]) -> Any:
    """Give fields their former names, wherever they are."""
    if isinstance(value, dict):
        return {names.get(name, name): rename(item, names) for name, item in value.items()}
    return [rename(item, names) for item in value] if isinstance(value, list) else value


FORMER = {"micro_batch_size": "micro_size", "reward_timeout_seconds": "judge_seconds"}


def with_former_names(out: Path, step: str) -> None:
    """Make a run what an earlier version left: former names in its recipe and checkpoint, and other fingerprints."""
    recipe = read_json(out / "recipe.json")
    (out / "recipe.json").write_text(json.dumps(rename(recipe, FORMER)))
    state = read_json(out / "state.json")
    for name in state["steps"]:
        state["steps"][name]["inputs"] = "0123456789abcdef"
    (out / "state.json").write_text(json.dumps(state))
    checkpoint = store.latest(out / step / "checkpoints")
    assert checkpoint is not None
    opened = store.Checkpoint.open(checkpoint)
    files = [path for path in checkpoint.iterdir() if path.name in ("tokenizer.json", "tokenizer_config.json")]
    copies = [out / path.name for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    documents = {"spec": rename(opened.document("spec"), FORMER), "state": opened.document("state")}
    tensors = {stem: opened.tensors(stem) for stem in ("model", "optimizer")}
    store.save(checkpoint, tensors=tensors, documents=documents, files=copies)
    for copy in copies:
        copy.unlink()


def test_a_run_with_former_field_names_resumes(
    bench: Any, sft: Callable[..., SftStep], same: Callable[..., bool]
) -> None:
    rows = [{"id": str(i), "question": asked, "answer": "?", "split": "train"} for i, asked in enumerate(ASKED)]
    problems = (FileProblems(name="sums", path=bench.write("sums.jsonl", rows)),)
    answers = AnswersStep(name="drawn", problems=problems, count=2, samples=2, max_tokens=4)
    with pytest.raises(Interrupted):
        bench.run("out", answers, sft(), stop_at=8)
    out = bench.base / "out"
    with_former_names(out, "sft")
    text = (out / "recipe.json").read_text()
    assert "micro_size" in text
    assert "judge_seconds" in text
    bench.run("out", answers, sft(), resume=True)
    assert bench.watching.stages == ["sft"]
    assert read_changes(out / "sft" / "metrics.jsonl") == []
    assert "micro_size" not in (out / "recipe.json").read_text()
    assert same(bench.run("whole", answers, sft()) / "sft", out / "sft")


def test_a_change_is_found_under_a_former_name_too(bench: Any, sft: Callable[..., SftStep], cut: Path) -> None:
    with_former_names(cut, "sft")
    with pytest.raises(SpecError, match=r"steps\.sft\.train\.seed: was 1 when .* is now 5"):
        bench.run("out", sft(seed=5), resume=True)
    bench.run("out", sft(batch=EpochBatch(size=2, micro_batch_size=2)), resume=True)
    assert [each["old"] for each in read_changes(cut / "sft" / "metrics.jsonl")] == [1]
