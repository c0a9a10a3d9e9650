"""``generate``, ``chat``, ``evaluate`` and ``fathom.load`` on a finished run."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fathom
from fathom.errors import CheckpointError, ContextError, SpecError
from fathom.evals.task_cases import ChoiceCase
from fathom.spec import SamplingParams
from fathom.tokenizer.bpe import Tokenizer


def pipe(text: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from fathom.cli.main import main; main()"
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment)


def test_generate_reads_a_pipe_and_agrees_with_the_handle(finished: Path, call) -> None:
    done = pipe("The river", "generate", finished, "--max-tokens", "8", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "tiny: MLA-16+8, context 192, cache 192 bytes per token\n"
    model = fathom.load(finished)
    prompt = [model.tokenizer.bos_id, *model.tokenizer.encode("The river")]
    params = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.95, seed=3)
    ids = model.generate(prompt, params)
    assert done.stdout == model.tokenizer.decode(ids) + "\n"
    assert list(model.stream(prompt, params)) == ids
    same = call("generate", finished, "--prompt", "The river", "--max-tokens", "8", "--seed", "3", "--echo")
    assert same.out == "The river" + done.stdout


def test_chat_takes_lines_until_the_input_ends(finished: Path) -> None:
    done = pipe(
        "hello\n\n/reset\nhello\nmore\n/exit\nnever read\n", "chat", finished, "--temperature", "0", "--max-tokens", "4"
    )
    assert done.returncode == 0, done.stderr
    assert f"trained on texts, not on conversations; continue a text with: fathom generate {finished}" in done.stderr
    model = fathom.load(finished)
    from fathom.chat import encode_chat

    first = encode_chat(model.tokenizer, [{"role": "user", "content": "hello"}])
    answer = model.tokenizer.decode(model.generate(first, SamplingParams(max_tokens=4, temperature=0)))
    assert done.stdout.startswith(answer + "\n" + answer + "\n")
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "more"},
    ]
    last = model.generate(encode_chat(model.tokenizer, turns), SamplingParams(max_tokens=4, temperature=0))
    assert done.stdout == answer + "\n" + answer + "\n" + model.tokenizer.decode(last) + "\n"


def test_chat_forgets_its_oldest_turns_when_the_context_is_full(
    finished: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"the river sees the garden of window number {i}\n" for i in range(8))
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    done = call("chat", finished, "--max-tokens", "20", "--seed", "0")
    assert done.code == 0, done.err
    assert "oldest 1 turns are forgotten" in done.err


def test_evaluate_measures_the_runs_held_out_text(finished: Path, call) -> None:
    done = call("evaluate", finished, "--json", "--max-tokens", "1024")
    (result,) = json.loads(done.out)["bits_per_byte"].values()
    recorded = json.loads((finished / "evaluate.json").read_text())
    assert result["bits_per_byte"] == pytest.approx(recorded["end"]["texts"], rel=1e-4)
    assert result["tokens"] == recorded["tokens"]["texts"]
    assert "texts" in call("evaluate", finished / "pretrain").out


def test_evaluate_measures_any_folder(finished: Path, texts: Path, tmp_path: Path, call) -> None:
    done = call("evaluate", finished, "--text", texts, "--json", "--max-tokens", "300", "--context", "32")
    result = json.loads(done.out)["bits_per_byte"]["texts"]
    assert result["tokens"] == 299
    assert 0.2 < result["bits_per_byte"] < 2
    nats_per_token = result["bits_per_byte"] * math.log(2) * result["bytes"] / result["tokens"]
    assert result["token_perplexity"] == pytest.approx(math.exp(nats_per_token))
    assert (
        f"{result['token_perplexity']:.2f}"
        in call("evaluate", finished, "--text", texts, "--max-tokens", "300", "--context", "32").out
    )
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.jsonl").write_text('{"story": "The river runs down to the sea and is deep."}\nno JSON\n')
    call("evaluate", finished, "--text", rows).refused("no column of text", "'story'", "--text-column")
    measured = call("evaluate", finished, "--text", rows, "--text-column", "story")
    assert "rows: left out unreadable records: 1, e.g. " in measured.err
    call("evaluate", finished, "--text-column", "story").refused("--text-column", "give --text FOLDER")
    (tmp_path / "empty").mkdir()
    call("evaluate", finished, "--text", tmp_path / "empty").refused("empty")
    call("evaluate", finished, "--text", texts, "--context", "500").refused(
        "context: 500 tokens, but the model has 192"
    )


def test_chat_needs_a_template_and_says_what_to_use_instead(
    finished: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "can_chat", False)
    call("chat", finished).refused("has no chat template", f"fathom generate {finished} --prompt")


def test_a_template_that_fails_is_one_line(finished: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = "{{ raise_exception('no such\nrole') }}"
    monkeypatch.setattr(Tokenizer, "chat_template", refusing)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    done = call("chat", finished)
    assert done.code == 2
    assert done.err.splitlines()[2:] == ["error: chat template: no such role; fix the messages"]


def test_evaluate_runs_tasks_and_writes_every_answer(
    finished: Path, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [ChoiceCase(f"c{i}", "The river sees the", ("garden.", "of of of"), 0) for i in range(4)]
    monkeypatch.setattr("fathom.inference.comparison.read_cases", lambda task, cache_dir: cases)
    out = tmp_path / "answers.jsonl"
    done = call(
        "evaluate", finished, "--task", "hellaswag", "--task", "hellaswag", "--limit", "3", "--out", out, "--json"
    )
    result = json.loads(done.out)["tasks"]["hellaswag"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]
    assert (result["n"], result["accuracy"]) == (3, sum(row["correct"] for row in rows) / 3)
    assert "[1/1] hellaswag" in done.err
    call("evaluate", finished, "--task", "hellaswag", "--out", out).refused("already exists")
    table = call("evaluate", finished, "--task", "truthfulqa_mc1", "--limit", "2").out
    assert "truthfulqa_mc1" in table
    assert f"{result['accuracy']:.1%}" in table


def test_options_of_tasks_that_make_no_sense(finished: Path, tmp_path: Path, call) -> None:
    call("evaluate", finished, "--task", "mmlu").refused("there is no task 'mmlu'", "gsm8k, hellaswag")
    call("evaluate", finished, "--limit", "3").refused("--limit: is about tasks; name one with --task")
    call("evaluate", finished, "--out", tmp_path / "x.md").refused("--out: is about tasks; name one with --task")


def test_a_mistyped_name_is_told_what_was_meant(call) -> None:
    for arguments in (("generate", "--prompt", "x"), ("chat",), ("evaluate",)):
        call(arguments[0], "smolm2-135m", *arguments[1:]).refused("did you mean smollm2-135m?", "a .gguf file")


def test_load_opens_a_run_a_stage_and_a_checkpoint(finished: Path) -> None:
    ids = [1, 5, 9, 200]
    logits = fathom.load(str(finished)).logits(ids)
    assert logits.shape == (4, 384)
    assert logits.dtype == torch.float32
    stage = finished / "stretch"
    (checkpoint,) = (stage / "checkpoints").iterdir()
    for place in (stage, checkpoint):
        opened = fathom.load(place)
        assert torch.equal(opened.logits(ids), logits)
        assert opened.tokenizer.vocab_size <= opened.spec.vocab_size


def test_load_refuses_what_it_cannot_use(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file, directory or model"):
        fathom.load(tmp_path / "none")
    with pytest.raises(SpecError, match="unknown value 'float8'"):
        fathom.load(finished, dtype="float8")
    model = fathom.load(finished)
    with pytest.raises(ContextError, match="exceed the model's context of 192"):
        model.logits([1] * 193)
    with pytest.raises(ContextError, match="no tokens"):
        model.logits([])
    with pytest.raises(SpecError, match="384 is outside the vocabulary"):
        model.logits([384])
