from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from fathom.errors import DataError
from fathom.tokenizer import Tokenizer
from fathom.tokenizer.named_tokens import CLASS_DEFAULTS

VOCAB = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
VOCAB |= {"<s>": 256, "</s>": 257, "<pad>": 258, "<|im_end|>": 259, "<|endoftext|>": 260}


def publish(folder: Path, **files: Any) -> Path:
    """Write a tokenizer.json whose special tokens are in its vocabulary, and other files by their stems."""
    library = Library(models.BPE(VOCAB, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(["<s>"])
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


END = {"content": "</s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
NEAR: dict[str, dict[str, Any]] = {
    "text in the config": {"tokenizer_config": {"eos_token": "</s>"}},
    "table in the config": {"tokenizer_config": {"eos_token": {"__type": "AddedToken", **END}}},
    "text in the map only": {"special_tokens_map": {"eos_token": "</s>"}},
    "table in the map only": {"tokenizer_config": {"model_max_length": 5}, "special_tokens_map": {"eos_token": END}},
    "null in the config": {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": END}},
}


@pytest.mark.parametrize("files", NEAR.values(), ids=NEAR)
def test_the_end_is_found_where_transformers_finds_it(files: dict[str, Any], tmp_path: Path) -> None:
    loaded = Tokenizer.load(publish(tmp_path, **files))
    assert loaded.eos_id == 257
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 257
    assert 257 not in loaded.encode("a</s>")
    loaded.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").eos_id == 257


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
def test_what_a_class_leaves_out_means_transformers_default(name: str, tmp_path: Path) -> None:
    theirs = getattr(transformers, name)()
    for field, content in CLASS_DEFAULTS[name].items():
        assert getattr(theirs, field) == content
    loaded = Tokenizer.load(
        publish(tmp_path, tokenizer_config={"tokenizer_class": f"{name}Fast", "pad_token": "<pad>"})
    )
    assert loaded.id_to_token(loaded.eos_id) == CLASS_DEFAULTS[name]["eos_token"]


@pytest.mark.parametrize("name", ["generation_config", "config", "spec"])
@pytest.mark.parametrize("value", [259, [259, 257]])
def test_ids_of_the_model_name_the_end_where_no_token_does(name: str, value: Any, tmp_path: Path) -> None:
    files = {
        "tokenizer_config": {"eos_token": None},
        name: {"eos_token_ids" if name == "spec" else "eos_token_id": value},
    }
    assert Tokenizer.load(publish(tmp_path, **files)).eos_id == 259


def test_contradictions_are_named_once_and_settled_as_in_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, special = {"eos_token": "<|im_end|>"}, {"eos_token": "</s>"}
    publish(tmp_path, tokenizer_config=config, special_tokens_map=special)
    for _ in range(2):
        loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_id == AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 257
    said = "eos_token is '<|im_end|>' in tokenizer_config.json and '</s>' in special_tokens_map.json; '</s>' is used"
    assert caplog.messages == [f"{tmp_path}: {said}"]
    listed = config | {"added_tokens_decoder": {"259": {**END, "content": "<|im_end|>", "special": True}}}
    publish(tmp_path, tokenizer_config=listed, special_tokens_map=special)
    assert Tokenizer.load(tmp_path).eos_id == AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 259


def test_tokens_of_older_files_are_added(tmp_path: Path) -> None:
    files = {"tokenizer_config": {"eos_token": "</s>"}, "added_tokens": {"<new>": 261, "<s>": 256}}
    loaded = Tokenizer.load(publish(tmp_path, **files))
    assert loaded.encode("a<new>", allow_special=True) == AutoTokenizer.from_pretrained(tmp_path).encode("a<new>")
    assert loaded.encode("a<new>", allow_special=True)[-1] == 261


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": "{"}, r"tokenizer_config.json: cannot be read .*; get the file again"),
        ({"tokenizer_config": "[]"}, r"tokenizer_config.json: is no JSON object; get the file again"),
        (
            {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"3": "<x>"}}},
            r"tokenizer_config.json: added_tokens_decoder.3 is '<x>'; give a table with content and flags",
        ),
        ({"special_tokens_map": "{"}, r"special_tokens_map.json: cannot be read"),
        ({"tokenizer_config": {"eos_token": 3}}, r"tokenizer_config.json: eos_token is 3; give the text of a token"),
        ({"special_tokens_map": {"eos_token": ["</s>"]}}, r"special_tokens_map.json: eos_token is \['</s>'\]; give"),
        (
            {"special_tokens_map": {"eos_token": "<end>"}},
            r"special_tokens_map.json: eos_token is '<end>', which is not in the vocabulary; name a token that is",
        ),
        ({"tokenizer": {"model": {"type": "Trie", "vocab": {}}}}, r"model.type is 'Trie', which is not supported; use"),
        ({"tokenizer": "{"}, r"tokenizer.json: not a usable tokenizer \(.*\); get the file again"),
        ({"tokenizer": {"model": 3}}, r"tokenizer.json: not a usable tokenizer \(model.vocab is missing\)"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_field_value_and_remedy(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(publish(tmp_path, **files))
    assert "\n" not in str(caught.value)


def test_a_character_that_pads_stays_text(tmp_path: Path) -> None:
    loaded = Tokenizer.load(publish(tmp_path, tokenizer_config={"eos_token": "</s>", "pad_token": "!"}))
    assert loaded.pad_id == VOCAB["!"]
    assert loaded.decode(loaded.encode("hey!")) == "hey!"
    parsed = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    parsed["added_tokens"].append({"id": VOCAB["!"], "content": "!", "special": True, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode("hey!"), skip_special=False) == "hey!"


def test_an_absent_padding_token_is_named_and_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = Tokenizer.load(publish(tmp_path, tokenizer_config={"eos_token": "</s>", "pad_token": "<nothing>"}))
    assert loaded.pad_id == 257
    assert caplog.messages == [
        f"{tmp_path}/tokenizer_config.json: pad_token is '<nothing>', which is not in the vocabulary; it is not used"
    ]


@pytest.mark.slow
def test_the_command_that_makes_a_tokenizer_from_other_files_makes_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB | {"ab": 261}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        DataError, match=r"no such tokenizer; only vocab.json and merges.txt; make tokenizer.json from it"
    ) as caught:
        Tokenizer.load(tmp_path)
    python = shlex.split(str(caught.value).split(" && ")[1])
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *python[1:]], cwd=tmp_path, check=True, env=environment, capture_output=True)
    assert Tokenizer.load(tmp_path).encode("ab") == [261]
