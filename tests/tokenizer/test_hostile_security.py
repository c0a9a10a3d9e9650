"""Tokenizers of strangers: whatever a tokenizer.json asks for, it is harmless or ends in one of our errors."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fathom.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer, patterns
from fathom.tokenizer.limits import check_limits
from fathom.tokenizer.pattern_trial import check_pattern

END = {"id": 2, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BASE: Mapping[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{**END, "special": True}],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}


def opened(folder: Path, **changes: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps({**BASE, **changes}))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    return Tokenizer.load(folder)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def model(**fields: Any) -> dict[str, Any]:
    return {**BASE["model"], **fields}


def replacing(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def nested(depth: int) -> Any:
    inner: Any = {"type": "Lowercase"}
    for _ in range(depth):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


DOUBLING = replacing("aa", String="a")
WORDPIECE = {
    "type": "WordPiece",
    "vocab": {"a": 0, "[UNK]": 1},
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
}
REFUSED: Mapping[str, Mapping[str, Any]] = {
    "nested quantifiers": {"pre_tokenizer": split("(a+)+$")},
    "alternatives alike": {"pre_tokenizer": split("(a|a)*b")},
    "the square of a run": {"pre_tokenizer": split("a*b")},
    "look-arounds": {"pre_tokenizer": split("(?=(a+))\\1+b")},
    "a pattern of a normalizer": {"normalizer": replacing("", Regex="(x+x+)+y")},
    "a pattern in a sequence": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(b+)+$")]}},
    "no pattern": {"pre_tokenizer": split("(")},
    "a pattern of a megabyte": {"pre_tokenizer": split("a" * 2**20)},
    "doubling forty times": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}},
    "decoding that doubles": {"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 40}},
    "something for nothing": {"normalizer": replacing("a", String="")},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**7}},
    "a long prefix as a list": {"normalizer": [["a" * 10_000]]},
    "a long prefix in a list": {"normalizer": {"type": "Sequence", "normalizers": [["a" * 10_000]]}},
    "a replacement without a type": {"normalizer": {"pattern": {"String": "a"}, "content": "a" * 10_000}},
    "a pattern as a list": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [[{"Regex": "(a+)+$"}]]}},
    "a thousand steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 1000}},
    "deep": {"normalizer": nested(200)},
    "stripping for ever": {"decoder": {"type": "Strip", "content": "a", "start": 2**62, "stop": 0}},
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "no character map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a template of many tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"X": {"id": "X", "ids": [0] * 200_000, "tokens": ["a"] * 200_000}},
        }
    },
    "an id beyond any vocabulary": {"model": model(vocab={"a": 2**31, "b": 1})},
    "an id beyond 63 bits": {"model": model(vocab={"a": 2**63, "b": 1})},
    "an id below 0": {"model": model(vocab={"a": -1, "b": 1})},
    "an id that is none": {"model": model(vocab={"a": True, "b": "1"})},
    "merges to nowhere": {"model": model(merges=["a b"])},
    "merges that panic": {"model": model(vocab={"a": 0, "##": 1}, merges=["a a"], continuing_subword_prefix="####")},
    "added tokens of megabytes": {"added_tokens": [{**END, "content": "x" * 10**7, "special": True}]},
    "added tokens that are none": {"added_tokens": [7]},
    "an added id beyond any": {"added_tokens": [{**END, "id": 2**40, "special": True}]},
    "scores that are none": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")]]}},
    "an unknown id beyond": {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}},
    "no pieces": {"model": {"type": "Unigram", "unk_id": 0, "vocab": []}},
    "words without bound": {
        "model": {**WORDPIECE, "continuing_subword_prefix": "##", "max_input_chars_per_word": 2**62}
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_at_little_cost(what: str, tmp_path: Path) -> None:
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(DataError) as caught:
            opened(tmp_path, **REFUSED[what])
        assert time.process_time() - begin < 5
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
        {"normalizer": replacing("▁", String=" ")},
        {"pre_tokenizer": split(r"\p{N}{1,3}")},
    ],
)
def test_what_is_harmless_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    padding = {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    changes = {name: {**value, **padding} if name == "padding" else value for name, value in changes.items()}
    assert opened(tmp_path, **changes).encode("abba", allow_special=True) == [0, 1, 1, 0]


def test_a_text_that_the_library_cannot_encode_is_refused(tmp_path: Path) -> None:
    word = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    tokenizer = opened(tmp_path, model=word)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(DataError, match="UNK"):
        tokenizer.encode("b")


def test_a_panic_while_encoding_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.tokenizer.limits.check_pattern", lambda section, pattern: None)
    tokenizer = opened(tmp_path, pre_tokenizer=split("(a+)+$"))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_guarded(text, "")):
        with pytest.raises(DataError, match="fails on it"):
            encode("a" * 40 + "!")


def test_published_patterns_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.run", started)
    for rules in PRE_TOKENIZERS.values():
        for pattern in rules.patterns:
            check_pattern("pre_tokenizer", pattern)
            check_pattern("pre_tokenizer", pattern.replace(r"\r", "\r").replace(r"\n", "\n"))


@pytest.mark.parametrize("pattern", [patterns.LLAMA3, patterns.TEKKEN, patterns.DEEPSEEK_V3, r"(?i:[a-z]+)|\d+"])
def test_harmless_patterns_pass_the_trial(pattern: str) -> None:
    check_pattern("pre_tokenizer", pattern + "|\N{SNOWMAN}\N{SNOWMAN}")


def test_the_limits_cost_little_beside_reading(tmp_path: Path) -> None:
    words = {f"w{number}": number for number in range(128_000)}
    parsed = {**BASE, "model": model(vocab=words)}
    text = json.dumps(parsed)
    reading = min(_seconds(lambda: json.loads(text)) for _ in range(5))
    checking = min(_seconds(lambda: check_limits(parsed)) for _ in range(5))
    assert checking < reading  # a tenth, and the library takes many times as long as the parser


def _seconds(run: Any) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin
