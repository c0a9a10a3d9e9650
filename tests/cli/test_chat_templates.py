"""``fathom chat`` on directories whose chat templates are as released models have them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import fathom
from fathom.inference.chat_session import ChatStream
from fathom.inference.request_preparation import prepare_chat
from tests.chat.conversations import R1
from tests.published import Publish

NAMED = [{"name": "rag", "template": "{{ 1 }}"}, {"name": "plain", "template": "{{ messages[-1].content }}"}]


@pytest.fixture
def directory(publish: Publish, tmp_path: Path) -> Path:
    return Path(shutil.copytree(publish("tiny-qwen2"), tmp_path / "model"))


def put(directory: Path, template: Any) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")


def test_the_distills_template_chats_over_several_turns(directory: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    put(directory, R1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nmore\n"))
    done = call("chat", directory, "--temperature", "0", "--max-tokens", "6", "--system", "Be brief.")
    assert done.code == 0, done.err
    model = fathom.load(directory)
    first = model.chat("hello", temperature=0, max_tokens=6)
    assert first.thinking or first.content
    theirs = AutoTokenizer.from_pretrained(directory)
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\n4"},
        {"role": "user", "content": "2 < 3?"},
    ]
    expected = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert list(prepare_chat(model, turns).prompt_ids) == expected


def test_a_template_is_chosen_by_name_or_file(
    directory: Path, call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(directory, NAMED)
    prompts: list[str] = []
    init = ChatStream.__init__

    def recording(stream: ChatStream, prepared: Any, outputs: Any) -> None:
        prompts.append(prepared.tokenizer.decode(prepared.prompt_ids))
        init(stream, prepared, outputs)

    monkeypatch.setattr(ChatStream, "__init__", recording)
    file = tmp_path / "own.jinja"
    file.write_text("own {{ messages[-1].content }}", encoding="utf-8")
    for chosen in ("plain", str(file)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        assert call("chat", directory, "--max-tokens", "2", "--chat-template", chosen).code == 0
    assert prompts == ["hello", "own hello"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    call("chat", directory).refused("plain, rag and no default; choose one with --chat-template plain")
    assert fathom.load(directory, chat_template="plain").tokenizer.chat_template == "{{ messages[-1].content }}"
    assert "chat templates" in (shown := call("inspect", directory).out)
    assert "rag, plain" in shown
    call("chat", directory, "--chat-template", "other").refused("'other' is neither a file nor one of plain, rag")
    call("chat", directory, "--chat-template", "x" * 5000).refused("is neither a file nor one of plain, rag")


def test_a_template_without_end_is_refused_in_one_line(directory: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    put(directory, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    done = call("chat", directory)
    assert done.code == 2
    assert done.err.splitlines()[1:] == [
        "error: chat template: takes over 0.4 s of processor time; use another template or shorten the messages"
    ]
