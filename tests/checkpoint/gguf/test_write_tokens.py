from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from fathom.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer
from fathom.checkpoint.gguf.tokens import tokenizer_from_metadata
from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer, tokenizer_warnings
from fathom.errors import CheckpointError
from fathom.spec import ModelSpec
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe

SpecOf = Callable[[str], ModelSpec]
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog barks back.\n",
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14))\r\n",
    "天下大势，分久必合，合久必分。2024年 こんにちは 안녕하세요\n",
    "in 2024, 1,000.50 – «да» … it's ½ \u00a0 ١٢٣ 👩‍👩‍👧 e\u0301  \t x",
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_bpe(TEXTS * 6, vocab_size=420)


@pytest.fixture
def spec(spec_of: SpecOf) -> ModelSpec:
    return replace(spec_of("llama"), vocab_size=450)


def _changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    return Tokenizer(json.dumps({**json.loads(tokenizer.tokenizer_json), **parts}), tokenizer.config)


def _plain(tokenizer: Tokenizer, spec: ModelSpec) -> dict[str, Any]:
    return {key: value for key, (_, value) in metadata_from_tokenizer(tokenizer, spec).items()}


def test_our_tokenizers_come_back_with_the_same_ids(ours: Tokenizer, spec: ModelSpec) -> None:
    metadata = _plain(ours, spec)
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", "deepseek-v3")
    again = tokenizer_from_metadata(metadata)
    assert again is not None
    for text in [*TEXTS, "".join(TEXTS), "<｜User｜>hi<think>"]:
        for special in (False, True):
            assert again.encode(text, allow_special=special) == ours.encode(text, allow_special=special)
    assert (again.bos_id, again.eos_id, again.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert again.prefix_ids == ours.prefix_ids == (0,)
    assert again.chat_template == ours.chat_template
    assert tokenizer_warnings(ours) == ()


def test_named_templates_are_carried_as_llama_cpp_has_them(ours: Tokenizer, spec: ModelSpec) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool use", "template": "b"}]
    metadata = _plain(Tokenizer(ours.tokenizer_json, {**ours.config, "chat_template": named}), spec)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_chat_template(named)
    theirs = {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer.chat")}
    assert {key: value for key, value in metadata.items() if key.startswith("tokenizer.chat")} == theirs
    again = tokenizer_from_metadata(metadata)
    assert again is not None
    assert again.chat_templates == {"default": "a", "tool_use": "b"}


def test_ids_without_a_token_are_unused_and_special_ones_are_control(ours: Tokenizer, spec: ModelSpec) -> None:
    metadata = _plain(ours, spec)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == 450
    assert tokens[ours.vocab_size :] == [f"[PAD{index}]" for index in range(ours.vocab_size, 450)]
    assert set(types[ours.vocab_size :]) == {5}
    assert tokens[: len(SPECIAL_TOKENS)] == list(SPECIAL_TOKENS)
    assert set(types[: len(SPECIAL_TOKENS)]) == {3}
    assert set(types[len(SPECIAL_TOKENS) : ours.vocab_size]) == {1}


def test_ids_without_a_token_have_none_when_read_back(ours: Tokenizer, spec: ModelSpec) -> None:
    again = tokenizer_from_metadata(_plain(ours, spec))
    assert again is not None
    assert again.unused_ids(450) == ours.unused_ids(450) == tuple(range(ours.vocab_size, 450))


def test_added_tokens_are_the_users_own_unless_special_or_spelled_like_a_marker(
    ours: Tokenizer, spec: ModelSpec
) -> None:
    parsed = json.loads(ours.tokenizer_json)
    for token in parsed["added_tokens"]:
        token["special"] = False
    types = _plain(_changed(ours, added_tokens=parsed["added_tokens"]), spec)["tokenizer.ggml.token_type"]
    kinds = {name: types[index] for index, name in enumerate(SPECIAL_TOKENS)}
    assert kinds["<｜User｜>"] == 3
    assert kinds["<think>"] == 4


def test_a_vocabulary_larger_than_the_model_is_refused(ours: Tokenizer, spec: ModelSpec) -> None:
    with pytest.raises(CheckpointError, match="has token 419, but the model only 400"):
        metadata_from_tokenizer(ours, replace(spec, vocab_size=400))


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder"])
def test_published_splits_are_written_by_name(name: str, ours: Tokenizer, spec: ModelSpec) -> None:
    split = PRE_TOKENIZERS[name]
    model = json.loads(ours.tokenizer_json)["model"] | {"ignore_merges": split.ignore_merges}
    known = _changed(ours, pre_tokenizer=pre_tokenizer(split), model=model)
    assert _plain(known, spec)["tokenizer.ggml.pre"] == name
    assert tokenizer_warnings(known) == ()


def test_an_unknown_split_takes_the_nearest_name_and_says_so(ours: Tokenizer, spec: ModelSpec) -> None:
    parts = json.loads(ours.tokenizer_json)["pre_tokenizer"]["pretokenizers"]
    parts[0]["pattern"]["Regex"] = r"\p{N}{1,2}"
    unknown = _changed(ours, pre_tokenizer={"type": "Sequence", "pretokenizers": parts})
    assert _plain(unknown, spec)["tokenizer.ggml.pre"] == "deepseek-v3"
    (sentence,) = tokenizer_warnings(unknown)
    assert "no name for how it splits text; 'deepseek-v3' is nearest" in sentence
    composed = _changed(ours, normalizer={"type": "NFC"})
    assert tokenizer_warnings(composed) == ("tokenizer: llama.cpp does not normalise text (NFC)",)


def _sentence_piece(path: Path) -> Tokenizer:
    bytes_ = {f"<0x{i:02X}>": i + 3 for i in range(256)}
    pieces = ["▁", "t", "h", "e", "c", "a", "th", "▁t", "▁th", "he", "the", "▁the", "at", "cat", "▁c", "▁cat", "ca"]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in ["th", "▁t", "he", "▁th", "the", "▁the", "at", "ca", "cat", "▁c", "▁cat"]
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_} | {piece: 259 + i for i, piece in enumerate(pieces)}
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>", "<unk>"])
    library.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    return Tokenizer.load(path)


def test_sentence_piece_tokenizers_come_back_with_the_same_ids(tmp_path: Path, spec: ModelSpec) -> None:
    tokenizer = _sentence_piece(tmp_path)
    metadata = _plain(tokenizer, spec)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert metadata["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    assert scores["th"] > scores["▁t"] > scores["he"] > scores["▁cat"] > scores["▁"]
    assert tokenizer_warnings(tokenizer) == ()
    again = tokenizer_from_metadata(metadata)
    assert again is not None
    for text in ("the cat", "cathe  the", "天 é the\n", "tthh", ""):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert again.prefix_ids == tokenizer.prefix_ids == (1,)


def test_merges_that_sentence_piece_would_not_know_are_named(tmp_path: Path) -> None:
    tokenizer = _sentence_piece(tmp_path)
    model = json.loads(tokenizer.tokenizer_json)["model"]
    fewer = _changed(tokenizer, model={**model, "merges": model["merges"][:-1]})
    assert tokenizer_warnings(fewer) == (
        "tokenizer: llama.cpp joins every pair that makes a token, also pairs its merges leave out",
    )


def test_other_kinds_of_tokenizer_are_refused(
    ours: Tokenizer, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = json.loads(ours.tokenizer_json)
    parsed["model"] = {"type": "WordPiece", **parsed["model"]} | {"type": "WordPiece"}
    monkeypatch.setattr(Tokenizer, "tokenizer_json", property(lambda self: json.dumps(parsed)))
    with pytest.raises(CheckpointError, match=r"WordPiece is not one llama\.cpp has a name for"):
        metadata_from_tokenizer(ours, spec)
