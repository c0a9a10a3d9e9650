"""Which chat template a model's files bring, in any form; transformers is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fathom.chat import encode_chat
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}]
NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path)
    put(tmp_path, None)
    return tmp_path


def put(folder: Path, template: Any) -> None:
    """Set what tokenizer_config.json has as chat_template."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    path.write_text(json.dumps(config | ({} if template is None else {"chat_template": template})))


def add(folder: Path, name: str, text: str) -> None:
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)


def ours(folder: Path, tools: Any) -> str:
    tokenizer = Tokenizer.load(folder)
    return tokenizer.decode(encode_chat(tokenizer, HELLO, **({"tools": tools} if tools else {})))


def theirs(folder: Path, tools: Any) -> str:
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(HELLO, tools=tools, tokenize=False)
    return str(text)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    ("config", "files", "additional"),
    [
        ("text", {}, {}),
        (NAMED, {}, {}),
        (NAMED[:1], {}, {}),
        ([*NAMED, {"name": "rag", "template": "documents"}], {}, {}),
        ("text", {"chat_template.jinja": "file"}, {}),
        (NAMED, {"chat_template.jinja": "file"}, {}),
        (None, {"chat_template.jinja": "file"}, {"tool_use": "folder"}),
        ("text", {"chat_template.jinja": "file"}, {"rag": "folder", "tool_use": "use"}),
        ("text", {"chat_template.json": '{"chat_template": "processor"}'}, {}),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    folder: Path, config: Any, files: dict[str, str], additional: dict[str, str], tools: Any
) -> None:
    put(folder, config)
    for name, text in files.items():
        (folder / name).write_text(text)
    for name, text in additional.items():
        add(folder, name, text)
    if config == NAMED and files:  # transformers forgets tool_use then, which the model brings all the same
        assert ours(folder, tools) == ("tools" if tools else "file")
    else:
        assert ours(folder, tools) == theirs(folder, tools)


def test_a_processors_file_counts_where_there_is_no_other(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert ours(folder, None) == "processor"
    (folder / "chat_template.json").write_text("[]")
    assert not Tokenizer.load(folder).chat_templates
    (folder / "chat_template.json").write_text("{")
    with pytest.raises(DataError, match=r"chat_template\.json: cannot be read .*; download the file again"):
        Tokenizer.load(folder)


def test_a_list_without_a_default_names_the_templates_and_the_remedy_works(folder: Path) -> None:
    put(folder, [{"name": "rag", "template": "documents"}, {"name": "tool_use", "template": "tools"}])
    with pytest.raises(ValueError, match="no default"):
        theirs(folder, None)
    with pytest.raises(
        DataError, match="the model has rag, tool_use and no default; choose one with --chat-template rag"
    ):
        ours(folder, None)
    assert ours(folder, TOOLS) == "tools"
    chosen = Tokenizer.load(folder).with_template("rag")
    assert chosen.decode(encode_chat(chosen, HELLO)) == "documents"
    assert Tokenizer.load(folder).shown_template == "documents"


def test_a_template_is_chosen_by_name_or_text(folder: Path) -> None:
    put(folder, NAMED)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.with_template("tool_use").chat_template == "tools"
    assert tokenizer.with_template("{{ 1 }}").chat_template == "{{ 1 }}"
    with pytest.raises(DataError, match="'other' is neither a file nor one of default, tool_use; give a file"):
        tokenizer.with_template("other")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "chat_template is int; give a text, or a list of named templates"),
        ([{"name": "default"}], "chat_template holds an entry without name and template; give both as text"),
        (["text"], "chat_template holds an entry without name and template"),
    ],
)
def test_what_is_no_template_is_refused(folder: Path, value: Any, words: str) -> None:
    put(folder, value)
    with pytest.raises(DataError, match=f"tokenizer_config.json: {words}"):
        Tokenizer.load(folder)


def test_saving_keeps_all_templates_and_transformers_reads_them(folder: Path, tmp_path: Path) -> None:
    put(folder, "text")
    add(folder, "tool_use", "folder")
    Tokenizer.load(folder).save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").chat_templates == {"default": "text", "tool_use": "folder"}
    assert theirs(tmp_path / "again", TOOLS) == "folder"
    assert theirs(tmp_path / "again", None) == "text"


def test_templates_get_the_tokens_that_transformers_gives_them(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {
        "unk_token": {"content": "<think>", "__type": "AddedToken"},
        "chat_template": (
            "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ sep_token is defined }}"
            "|{{ tools is defined }}{{ tools is none }}{{ documents is none }}"
        ),
    }
    path.write_text(json.dumps(config))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(encode_chat(tokenizer, HELLO), skip_special=False) == theirs(folder, None)
