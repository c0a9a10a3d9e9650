"""Options of ``generate`` and ``chat`` for an answer, and how reasoning is shown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

import fathom
from fathom.cli import sampling
from fathom.engine.request import Output
from fathom.inference.chat_session import ChatStream
from fathom.inference.request_preparation import ChatOptions, prepare_chat
from fathom.spec.sampling import TokenLogprob

GREEDY = ("--temperature", "0", "--max-tokens", "24")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(ids: Sequence[int]) -> Generator[Output, None, None]:
    for token in ids:
        yield Output(request_id=0, tokens=(TokenLogprob(token, 0.0),))
    yield Output(request_id=0, finish_reason="stop")


def test_a_stop_string_ends_a_text(finished: Path, call) -> None:
    whole = call("generate", finished, "--prompt", "The river", *GREEDY).out
    words = whole.split()
    stop = " " + words[2]
    done = call("generate", finished, "--prompt", "The river", *GREEDY, "--stop", stop, "--stop", "never")
    assert done.out == whole.partition(stop)[0] + "\n"


def test_a_middle_is_filled_in(finished: Path, call) -> None:
    before = call("generate", finished, "--prompt", "The river", *GREEDY).out
    done = call("generate", finished, "--prompt", "The river", "--suffix", " of the garden.", *GREEDY)
    assert done.code == 0, done.err
    assert done.out != before


def test_a_schema_is_obeyed(finished: Path, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    done = call("generate", finished, "--prompt", "The river", "--max-tokens", "60", "--seed", "1", "--schema", schema)
    assert len(json.loads(done.out)) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    done = call("chat", finished, "--max-tokens", "60", "--seed", "1", "--schema", schema)
    assert len(json.loads(done.out)) == 2
    for text, words in (("{", "is not JSON"), ("[]", "holds no object")):
        schema.write_text(text)
        call("chat", finished, "--schema", schema).refused(str(schema), words)
    call("chat", finished, "--schema", tmp_path / "none").refused("cannot be read")


def test_reasoning_is_opened_and_ends_with_its_budget(finished: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    done = call("chat", finished, "--think", "--thinking-budget", "3", *GREEDY)
    model = fathom.load(finished)
    answer = model.chat("hello", thinking=True, thinking_budget=3, temperature=0.0, max_tokens=24)
    assert answer.usage.thinking_tokens == 4
    assert done.out == answer.thinking + "\n\n" * bool(answer.thinking) + answer.text + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    done = call("chat", finished, "--no-think", *GREEDY)
    assert done.out == model.chat("hello", thinking=False, temperature=0.0, max_tokens=24).text + "\n"


@pytest.mark.parametrize(
    ("terminal", "colour", "shown"),
    [
        (True, True, "\x1b[2mso\x1b[22m\n\nYes\n"),
        (True, False, "so\n\nYes\n"),
        (False, True, "so\n\nYes\n"),
    ],
)
def test_reasoning_is_dimmed_on_a_terminal_only(
    finished: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, colour: bool, shown: str
) -> None:
    model = fathom.load(finished)
    ids = model.tokenizer.encode("<think>so</think>Yes", allow_special=True)
    prepared = prepare_chat(model, [{"role": "user", "content": "hello"}], ChatOptions())
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    if colour:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    answer = sampling.write_stream(ChatStream(prepared, drawn(ids)))
    assert out.getvalue() == shown
    assert (answer.thinking, answer.text) == ("so", "Yes")
    half = Terminal()
    monkeypatch.setattr(sys, "stdout", half)
    sampling.write_stream(ChatStream(prepared, drawn(ids[:2])))
    assert half.getvalue().count("\x1b[2m") == half.getvalue().count("\x1b[22m") == colour


@pytest.mark.parametrize("options", [("--weights", "int8"), ("--cache", "int8"), ("--draft", "ngram")])
def test_weights_cache_and_drafts_are_chosen_by_name(finished: Path, call, options: tuple[str, str]) -> None:
    done = call("generate", finished, "--prompt", "The river", *GREEDY, *options)
    assert done.code == 0, done.err
    assert done.out.strip()
    call("generate", finished, "--prompt", "x", options[0], "int5").refused("int5")
