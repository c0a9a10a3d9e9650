"""The sft step: what it learns and what it does not, where its samples come from, and how it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import fathom
from fathom.data.conversations import loss_mask as mask
from fathom.data.conversations.read import Conversation, RowReport
from fathom.errors import DataError, Interrupted, SpecError
from fathom.inference.run_record import read_json
from fathom.pipeline.context import RunPlan, StepContext
from fathom.pipeline.steps.sft import _source_key, as_texts
from fathom.posttrain.prompts import PromptFormatter
from fathom.progress import NULL_PROGRESS
from fathom.spec.alignment import ConversationFile, KeptAnswers, OpenStep, SftStep, WorkedProblems
from fathom.spec.answering import AnswersStep
from fathom.spec.epochs import EpochBatch
from fathom.spec.problem import FileProblems, GymProblems, Problem
from fathom.spec.recipe import Recipe
from fathom.spec.rollout import ChatPrompt, TextPrompt
from fathom.spec.train import BatchSpec
from fathom.tokenizer import train_bpe
from fathom.train.metrics import read_json_lines
from fathom.train.preflight import ExampleSet, epoch_lines, unfilled_batch

Passes = Callable[..., Any]
ASKED = ("two plus three?", "three plus three?", "two plus two?", "one plus two?")
ANSWERS = ("It is five.", "It is six.", "It is four.", "It is three.")


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": answer, **more}
    return {"messages": [{"role": "user", "content": question}, said]}


def losses(model: Any, tokens: list[int]) -> torch.Tensor:
    return F.cross_entropy(model.logits(tokens)[:-1], torch.tensor(tokens[1:]), reduction="none")


@pytest.mark.parametrize("packing", ["masked", "joined"])
def test_answers_are_learned_by_heart_and_questions_are_not(bench: Any, passes: Passes, packing: str) -> None:
    rows = [talk(*each) for each in zip(ASKED, ANSWERS, strict=True)]
    path = bench.write("talks.jsonl", rows)
    train = passes(90, packing=packing, sequence_length=32)
    step = SftStep(train=train, data=(ConversationFile(path=path),))
    out = bench.run("out", step)
    lines = read_json_lines(out / "sft" / "metrics.jsonl")
    assert lines[0]["loss"] > 4
    assert lines[-1]["loss"] < (0.02 if packing == "masked" else 0.3)  # windows may begin inside an answer
    model = fathom.load(out, device="cpu", dtype="float32")
    if packing == "masked":
        for row in rows:
            sample = mask.encode_with_loss_mask(bench.tokenizer, row["messages"])
            learned = torch.tensor(sample.learned[1:])
            of_token = losses(model, sample.tokens)
            assert of_token[learned].max() < 0.1
            assert of_token[~learned].mean() > 3
    written = read_json(out / "sft" / "data.json")
    assert written["samples"] == 4
    assert written["sources"] == [{"source": "talks.jsonl", "used": 4, "repeat": 1, "left_out": {}}]


def test_a_stopped_step_ends_as_one_that_was_not(bench: Any, passes: Passes, same: Callable[..., bool]) -> None:
    path = bench.write("talks.jsonl", [talk(*each) for each in zip(ASKED, ANSWERS, strict=True)])
    step = SftStep(train=passes(20, sequence_length=32), data=(ConversationFile(path=path, repeat=2),))
    whole = bench.run("whole", step)
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=8)
    assert not same(whole / "sft", bench.base / "cut" / "sft")
    bench.run("cut", step, resume=True)
    assert same(whole / "sft", bench.base / "cut" / "sft")
    assert read_json(whole / "sft" / "data.json")["samples"] == 8


def test_bad_conversations_are_told_and_the_run_goes_on(bench: Any, passes: Passes) -> None:
    rows = [
        talk("two?", "It is."),
        "{",
        {"messages": [{"role": "sage", "content": "?"}]},
        talk("two?", "five " * 90),
        {"messages": [{"role": "user", "content": "?"}]},
    ]
    step = SftStep(train=passes(40), data=(ConversationFile(path=bench.write("talks.jsonl", rows)),))
    out = bench.run("out", step)
    (source,) = read_json(out / "sft" / "data.json")["sources"]
    assert source["used"] == 1
    assert source["left_out"] == {"malformed": 1, "unknown_role": 1, "too_long": 1, "nothing_learned": 1}
    result = "\n".join(bench.watching.messages)
    assert "talks.jsonl: 1 of 5 conversations are used" in result
    assert "talks.jsonl, line 2: not JSON" in result


def test_a_resume_opens_the_samples_that_were_encoded(
    bench: Any, passes: Passes, same: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is called again only when the cache is damaged, and the reports are those of the first start."""
    encoded: list[Any] = []
    encode = fathom.pipeline.steps.sft.encode_conversations  # type: ignore[attr-defined]

    def counted(*arguments: Any, **options: Any) -> Any:
        encoded.append(arguments)
        return encode(*arguments, **options)

    monkeypatch.setattr("fathom.pipeline.steps.sft.encode_conversations", counted)
    path = bench.write("talks.jsonl", [*(talk(*each) for each in zip(ASKED, ANSWERS, strict=True)), "{", "{"])
    worked = WorkedProblems(problems=worked_file(bench), count=3)
    train = passes(20, sequence_length=64)
    step = SftStep(train=train, data=(ConversationFile(path=path, repeat=2), worked))
    whole = bench.run("whole", step)
    first_lines = [line for line in bench.watching.messages if "used" in line or "malformed" in line]
    assert len(encoded) == 2
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=8)
    assert len(encoded) == 4
    written = (bench.base / "cut" / "sft" / "data.json").read_bytes()
    with pytest.raises(Interrupted):
        bench.run("cut", step, resume=True, stop_at=12)
    assert len(encoded) == 4
    assert [line for line in bench.watching.messages if "used" in line or "malformed" in line] == first_lines
    assert (bench.base / "cut" / "sft" / "data.json").read_bytes() == written
    damaged = bench.base / "cut" / "sft" / "samples-0.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    bench.run("cut", step, resume=True)
    assert len(encoded) == 5
    assert same(whole / "sft", bench.base / "cut" / "sft")


@pytest.mark.parametrize("change", ["data", "tokenizer", "settings", "nothing"])
def test_samples_are_encoded_anew_when_what_they_depend_on_changes(bench: Any, passes: Passes, change: str) -> None:
    path = bench.write("talks.jsonl", [talk(*each) for each in zip(ASKED, ANSWERS, strict=True)])
    source = ConversationFile(path=path)
    step = SftStep(train=passes(1, sequence_length=64), data=(source,))
    tokenizer, longest = bench.tokenizer, 64
    recipe = Recipe(name="bench", steps=(OpenStep(model=str(bench.published)), step))
    plan = RunPlan(recipe=recipe, manifests={}, base=bench.base)
    context = StepContext(plan=plan, directory=bench.base, cache_dir=bench.base, device="cpu", progress=NULL_PROGRESS)
    before = _source_key(source, step, context, tokenizer, longest)
    match change:
        case "data":
            bench.write("talks.jsonl", [talk("two?", "It is.")])
        case "tokenizer":
            tokenizer = train_bpe(["another text, another vocabulary"] * 9, vocab_size=300)
        case "settings":
            longest = 65
    assert (_source_key(source, step, context, tokenizer, longest) == before) == (change == "nothing")


def test_nothing_to_learn_or_too_little_is_refused(bench: Any, passes: Passes) -> None:
    with pytest.raises(DataError, match="none of 1 can be used"):
        bench.run("a", SftStep(train=passes(1), data=(ConversationFile(path=bench.write("bad.jsonl", ["{"])),)))
    good = bench.write("good.jsonl", [talk("two?", "It is.")])
    step = SftStep(train=passes(1, batch=EpochBatch(size=8, micro_batch_size=8)), data=(ConversationFile(path=good),))
    with pytest.raises(
        SpecError, match=r"batch\.size: 1 x 1 conversations of \d+ tokens do not fill .* = 512"
    ) as caught:
        bench.run("b", step)
    assert "--set sft.train.batch={conversations=8}" in str(caught.value)
    data = (ConversationFile(path=good),)
    bench.run("b", SftStep(train=passes(1, batch=EpochBatch(conversations=8)), data=data), resume=True)
    assert any(line.startswith("1 epoch over 1 conversations of") for line in bench.watching.messages)
    enough = re.search(r"--set sft\.train\.epochs=(\d+)", str(caught.value))
    if enough is not None:
        longer = passes(int(enough[1]), batch=EpochBatch(size=8, micro_batch_size=8))
        bench.run("c", SftStep(train=longer, data=data))


def test_examples_read_very_often_are_said() -> None:
    data = ExampleSet(unit="conversations", examples=3, tokens=90)
    assert epoch_lines("sft.train", data, 3, 9) == ["3 epochs over 3 conversations of 90 tokens = 9 steps"]
    often = epoch_lines("sft.train", data, 200, 600)
    assert "read 200 times and learned by heart" in often[1]
    assert "--set sft.train.epochs=3" in often[1]


@given(
    examples=st.integers(1, 50),
    each=st.integers(2, 64),
    size=st.integers(2, 64),
    epochs=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_every_way_to_fill_a_batch_works(examples: int, each: int, size: int, epochs: float) -> None:
    data, length = ExampleSet(unit="conversations", examples=examples, tokens=examples * each), 64
    batch = BatchSpec(size=size, micro_batch_size=1)
    assume(round(epochs * data.tokens) < size * length)
    remedy = unfilled_batch("sft.train", data, epochs, batch, length).remedy
    found = {name: int(value) for name, value in re.findall(r"--set sft\.train\.([a-z_.]+)=(\d+)", remedy)}
    if "epochs" in found:
        assert found["epochs"] * data.tokens >= size * length
    if "batch.size" in found:
        assert 1 <= found["batch.size"] * length <= round(epochs * data.tokens)


def worked_file(bench: Any) -> FileProblems:
    rows = [
        {
            "id": str(number),
            "question": question,
            "answer": str(number + 3),
            "split": "train",
            "details": {"solution": f"count on from {number}: {number + 3}"} if number else {},
        }
        for number, question in enumerate(ASKED)
    ]
    return FileProblems(path=bench.write("sums.jsonl", rows))


@pytest.mark.parametrize("prompting", [ChatPrompt(), ChatPrompt(system="Be short."), TextPrompt()])
def test_worked_problems_are_asked_as_they_will_be(
    bench: Any, passes: Passes, prompting: Any, monkeypatch: Any
) -> None:
    seen: list[Any] = []
    loader = fathom.pipeline.steps.sft.ConversationLoader  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "fathom.pipeline.steps.sft.ConversationLoader",
        lambda samples, **options: (
            seen.extend(zip(samples.tokens, samples.learned, strict=True)) or loader(samples, **options)
        ),
    )
    source = WorkedProblems(problems=worked_file(bench), count=4)
    step = SftStep(
        train=passes(6, sequence_length=400, batch=EpochBatch(size=1, micro_batch_size=1)),
        data=(source,),
        prompt=prompting,
    )
    out = bench.run("out", step)
    (counted,) = read_json(out / "sft" / "data.json")["sources"]
    assert counted == {"source": "sums", "used": 3, "repeat": 1, "left_out": {"nothing_learned": 1}}
    prompt_formatter = PromptFormatter(bench.tokenizer, prompting)
    for number, (tokens, learned) in enumerate(seen, start=1):
        prompt = prompt_formatter.encode(Problem(id="1", task="sums", question=ASKED[number], answer=""))
        assert tokens[: len(prompt)].tolist() == prompt
        written = tokens[learned].tolist()
        text = bench.tokenizer.decode(written, skip_special=False)
        spelled = bench.tokenizer.id_to_token(bench.tokenizer.eos_id)
        worked = f"count on from {number}: {number + 3}"
        if isinstance(prompting, TextPrompt):
            assert text == f" <think> {worked} </think> <answer> {number + 3} </answer>{spelled}"
            assert tokens.tolist() == prompt + written
            assert not set(written[:-1]) & bench.tokenizer.special_ids
        else:
            assert text == f"<think>\n{worked}\n</think>\n\n{number + 3}{spelled}"


def test_generated_problems_bring_their_solutions(bench: Any, passes: Passes) -> None:
    source = WorkedProblems(problems=GymProblems(dataset="chain_sum"), count=6)
    out = bench.run("out", SftStep(train=passes(1, sequence_length=150), data=(source,)))
    (counted,) = read_json(out / "sft" / "data.json")["sources"]
    assert counted["source"] == "chain_sum"
    assert counted["used"] == 6


def test_kept_answers_of_a_step_before_are_read(bench: Any, passes: Passes, monkeypatch: Any) -> None:
    def answer(step: AnswersStep, context: Any) -> None:
        context.path(step).mkdir()
        rows = [talk(*each, reasoning_content="I count.") for each in zip(ASKED, ANSWERS, strict=True)]
        lines = "\n".join(map(json.dumps, rows))
        (context.path(step) / "conversations.jsonl").write_text(lines, encoding="utf-8")

    runners = {**fathom.pipeline.steps.RUNNERS, "answers": answer}
    monkeypatch.setattr("fathom.pipeline.steps.RUNNERS", runners)
    drawn = AnswersStep(name="drawn", problems=(GymProblems(dataset="chain_sum"),), count=1, max_tokens=8)
    kept = SftStep(train=passes(10), data=(KeptAnswers(step="drawn", repeat=3),))
    out = bench.run("out", drawn, kept)
    written = read_json(out / "sft" / "data.json")
    assert written["samples"] == 12
    assert written["sources"] == [{"source": "drawn", "used": 4, "repeat": 3, "left_out": {}}]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", " <think> I count. </think> <answer> It is five. </answer>"),
        ("Q: {question}\nA: ", "<think> I count. </think> <answer> It is five. </answer>"),
        ("Q: {question}\nA: <think>", " I count. </think> <answer> It is five. </answer>"),
        ("Q: {question}\nA: <think>\n", "I count. </think> <answer> It is five. </answer>"),
    ],
)
def test_a_text_goes_on_where_its_prompt_ends(bench: Any, text: str, begins: str) -> None:
    prompting, tokenizer = TextPrompt(text=text), bench.tokenizer
    prompt_formatter = PromptFormatter(tokenizer, prompting)
    (whole,) = prompt_formatter.messages(Problem(id="1", task="t", question=ASKED[0], answer=""))
    for asked in (ASKED[0], whole["content"]):
        talked = Conversation(messages=tuple(talk(asked, ANSWERS[0], reasoning_content="I count.")["messages"]))
        (sample,) = as_texts(tokenizer, prompting, [talked], RowReport(), max_tokens=500)
        prompt = prompt_formatter.encode(Problem(id="1", task="t", question=ASKED[0], answer=""))
        assert sample.tokens[: len(prompt)] == prompt
        assert sample.learned == [False] * len(prompt) + [True] * (len(sample.tokens) - len(prompt))
        assert tokenizer.decode(sample.tokens[len(prompt) :]) == begins
        assert sample.tokens[-1] == tokenizer.eos_id
    report = RowReport()
    with pytest.raises(DataError, match="tokens exceed 9"):
        as_texts(tokenizer, prompting, [talked], report, max_tokens=8)
    assert dict(report.problems) == {"too_long": 1}


def test_paths_are_taken_from_the_recipes_folder(bench: Any, passes: Passes) -> None:
    path = bench.write("sub/talks.jsonl", [talk("two?", "It is.")])
    bench.run("out", SftStep(train=passes(40), data=(ConversationFile(path=path),)))
    with pytest.raises(DataError, match="gone"):
        bench.run("other", SftStep(train=passes(1), data=(ConversationFile(path=str(Path("gone") / "talks.jsonl")),)))


def test_a_share_of_worked_problems_answers_at_once(bench: Any, passes: Passes) -> None:
    sums = GymProblems(dataset="chain_sum", options={"max_terms": 2, "max_digits": 1})
    counts = {}
    for share in (0.0, 0.5, 1.0):
        data = (WorkedProblems(problems=sums, count=60, reasoned=share),)
        step = SftStep(train=passes(1, sequence_length=128), data=data, prompt=ChatPrompt(thinking="free"))
        out = bench.run(f"out-{share}", step)
        counts[share] = read_json(out / "sft" / "data.json")["learned"]
    assert counts[0.0] < counts[0.5] < counts[1.0]
    whole = counts[1.0] - counts[0.0]
    assert 0.3 < (counts[0.5] - counts[0.0]) / whole < 0.7
