"""Random texts under a grammar always satisfy it, checked by json, re and a validator written out here."""

from __future__ import annotations

import json
import random
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from fathom.chat.grammar import GrammarCompiler, GrammarConstraint, GrammarLimits
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """A vocabulary as SentencePiece's, with holes: ids 430 to 432 have no token."""
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "[INST]"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    library.train_from_iterator(['the quick "fox": [1, 23] {"a": "天下大势"}\n'] * 5, trainer)
    parsed = json.loads(library.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if "<0x" not in token["content"]]
    parsed["model"]["vocab"]["late"] = 433
    return Tokenizer(json.dumps(parsed), {"eos_token": "</s>", "bos_token": "<s>"})


def allowed(constraint: GrammarConstraint, size: int) -> list[int]:
    bitmask_W = torch.full(((size + 31) // 32,), -1, dtype=torch.int32)
    assert constraint.fill_bitmask(bitmask_W)
    return np.unpackbits(bitmask_W.numpy().view(np.uint8), bitorder="little").nonzero()[0].tolist()


def drawn(constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, limit: int = 400) -> str | None:
    """Draw uniformly from what is allowed, until the end; None if it takes too long."""
    numbers, ids = random.Random(seed), []
    for _ in range(limit):
        if constraint.finished:
            break
        choices = allowed(constraint, tokenizer.vocab_size + 70)
        assert set(choices) & tokenizer.special_ids <= {tokenizer.eos_id}
        assert (tokenizer.eos_id in choices) == constraint.complete
        token = tokenizer.eos_id if tokenizer.eos_id in choices and numbers.random() < 0.3 else numbers.choice(choices)
        constraint.accept(token)
        ids += [token] if token != tokenizer.eos_id else []
    return tokenizer.decode(ids, skip_special=False, continues=True) if constraint.finished else None


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    kind = schema["type"]
    if kind == "integer":
        return type(value) is int and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema.get("maxLength", sys.maxsize)
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(satisfies(item, schema["items"]) for item in value)
        )
    if kind == "object":
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(schema["properties"])
            and all(satisfies(item, schema["properties"][name]) for name, item in value.items())
        )
    return {"boolean": bool, "null": type(None)}[kind] is type(value)


leaves = st.one_of(
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-9, 99),
        st.integers(0, 200),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 9)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.lists(st.sampled_from(["红楼梦", "👩‍🚀", "a\nb", 'say "no"', 1, -2.5, None, True]), min_size=1, max_size=3).map(
        lambda options: {"enum": options}
    ),
)


def branches(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    lists = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda fields, optional: {
            "type": "object",
            "properties": fields,
            "required": [name for name in fields if name != optional],
            "additionalProperties": False,
        },
        st.dictionaries(st.sampled_from(["a", "name", "势", 'q"', "x y"]), inner, max_size=3),
        st.sampled_from(["a", "势"]),
    )
    return st.one_of(lists, objects)


schemas = st.recursive(leaves, branches, max_leaves=5)


@given(schema=schemas, seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_whatever_is_drawn_under_a_schema_satisfies_it(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    text = drawn(compiler.json_schema(schema), tokenizer, seed, 2000)
    assert text is not None
    assert satisfies(json.loads(text), schema), text


@given(schema=schemas, seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_byte_fallback_vocabularies_do_the_same(byte_fallback: Tokenizer, schema: dict[str, Any], seed: int) -> None:
    text = drawn(GrammarCompiler(byte_fallback).json_schema(schema), byte_fallback, seed, 2000)
    assert text is not None
    assert satisfies(json.loads(text), schema), text


@pytest.mark.parametrize("seed", range(8))
def test_any_object_is_an_object(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    texts = [drawn(compiler.json_object(), tokenizer, 100 * seed + i, 60) for i in range(10)]
    finished = [text for text in texts if text is not None]
    assert finished
    assert all(isinstance(json.loads(text), dict) for text in finished)


PATTERNS = [
    r"(ab|c)*d{2,3}",
    r"[^\n]{1,6}/[0-9]",
    r"-?[0-9]+(\.[0-9]{1,2})?",
    r"天.大势?",
    r"a/b\\c",
    r"^(x|yy)$",
    r"[一-龥]{2}👍",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_is_drawn_under_a_pattern_matches_it_whole(
    compiler: GrammarCompiler, tokenizer: Tokenizer, byte_fallback: Tokenizer, pattern: str
) -> None:
    for kind in (compiler, GrammarCompiler(byte_fallback)):
        of = tokenizer if kind is compiler else byte_fallback
        texts = [text for seed in range(6) if (text := drawn(kind.regex(pattern), of, seed)) is not None]
        assert texts
        for text in texts:
            assert re.fullmatch(pattern, text), text


def test_a_grammar_counts_its_brackets(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    for seed in range(10):
        text = drawn(compiler.lark('start: "(" start ")" | WORD\nWORD: /[a-z]{1,3}/'), tokenizer, seed)
        assert text is not None
        match = re.fullmatch(r"(\(*)[a-z]{1,3}(\)*)", text)
        assert match
        assert len(match[1]) == len(match[2])


@pytest.mark.parametrize("text", ["红楼梦：第一回", "👩‍👩‍👧 ok", "é\u0301", "plain"])
def test_characters_are_followed_across_their_bytes(
    compiler: GrammarCompiler, tokenizer: Tokenizer, byte_fallback: Tokenizer, text: str
) -> None:
    schema = {"type": "object", "properties": {"t": {"const": text}}, "required": ["t"]}
    for kind, of in ((compiler, tokenizer), (GrammarCompiler(byte_fallback), byte_fallback)):
        constraint = kind.json_schema(schema)
        whole = json.dumps({"t": text}, ensure_ascii=False)
        single = [token for byte in whole.encode() for token in [_byte_token(of, byte)]]
        for token in single:  # one byte at a time, which cuts every character of several bytes
            constraint.accept(token)
        assert constraint.finished
        assert of.decode(single, continues=True) == whole


def _byte_token(tokenizer: Tokenizer, byte: int) -> int:
    table = tokenizer._pieces
    return next(i for i in range(tokenizer.vocab_size) if table.token_bytes(i, skip_special=True) == bytes([byte]))


def test_a_copy_goes_its_own_way(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    first = compiler.regex("ab|ac")
    first.accept(a)
    second = first.copy()
    first.accept(b)
    assert first.finished
    assert not second.finished
    assert set(allowed(second, 420)) == {b, c}
    second.accept(c)
    assert second.finished
    assert a in allowed(compiler.regex("ab|ac"), 420)  # a compiled form stays at its beginning


def test_a_forbidden_token_is_refused_and_changes_nothing(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint = compiler.regex("a+")
    for token in (b, tokenizer.eos_id, tokenizer.pad_id, 9_999, -1):
        with pytest.raises(DataError, match=f"token {token}: the grammar forbids it"):
            constraint.accept(token)
    constraint.accept(a)
    with pytest.raises(DataError, match="forbids"):
        constraint.accept(b)
    assert {a, tokenizer.eos_id} <= set(allowed(constraint, 420))
    assert constraint.complete
    assert not constraint.finished
    constraint.accept(tokenizer.eos_id)
    assert constraint.finished
    assert constraint.copy().finished
    assert allowed(constraint, 420) == [tokenizer.eos_id]
    with pytest.raises(DataError, match="forbids"):
        constraint.accept(a)


def test_only_tokens_with_text_are_ever_allowed(byte_fallback: Tokenizer) -> None:
    everything = set(allowed(GrammarCompiler(byte_fallback).regex(r"(?s:.)*"), 2000))
    known = {*json.loads(byte_fallback.tokenizer_json)["model"]["vocab"].values()}
    assert everything <= known
    assert not everything & (byte_fallback.special_ids - {byte_fallback.eos_id})
    assert 433 in everything
    narrow = torch.zeros(3, dtype=torch.int32)  # a model with fewer tokens than the tokenizer
    assert GrammarCompiler(byte_fallback).regex("a|b|<").fill_bitmask(narrow)


def test_any_of_the_given_end_tokens_ends(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, eos_ids=(tokenizer.eos_id, tokenizer.pad_id))
    constraint = compiler.regex("a?")
    assert {tokenizer.eos_id, tokenizer.pad_id} <= set(allowed(constraint, 420))
    constraint.accept(tokenizer.pad_id)
    assert constraint.finished
    for wrong in ((), (420_000,)):
        with pytest.raises(DataError, match="eos_ids"):
            GrammarCompiler(tokenizer, eos_ids=wrong)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"properties": {"a": {"minLengthy": 3}}},
            "json_schema#/properties/a/minLengthy: 'minLengthy' is not a keyword of JSON Schema; write minLength",
        ),
        ({"anyOf": [{}, {"items": {"not": {}}}]}, "json_schema#/anyOf/1/items/not: not cannot be enforced; list"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "(?=a)"}, "looks around"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "minLength"),
        ({"enum": ["x" * 70_000]}, "exceed the limit of 65,536"),
        ({"default": {1, 2}}, "not JSON"),
        ({"default": float("nan")}, "not JSON"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        compiler.json_schema(schema)
    assert "\n" not in str(error.value)


def test_annotations_and_fields_named_like_keywords_are_no_fault(compiler: GrammarCompiler) -> None:
    schema = {"title": "t", "x-order": 1, "type": "object", "properties": {"minLengthy": {"description": "d"}}}
    assert not compiler.json_schema(schema | {"default": {"any": "thing"}}).finished


def test_what_is_too_deep_or_too_long_is_refused_at_once(compiler: GrammarCompiler) -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(DataError, match="nested more than 64 deep"):
        compiler.json_schema(deep)
    for refused in (lambda: compiler.regex("a" * 5000), lambda: compiler.lark("x" * 70_000)):
        with pytest.raises(DataError, match="exceed the limit"):
            refused()
    for empty in (lambda: compiler.regex(""), lambda: compiler.lark("")):
        with pytest.raises(DataError, match="is empty"):
            empty()


@pytest.mark.parametrize("pattern", ["(a", "a(?!b)", r"(a)\1", r"\bword"])
def test_a_pattern_outside_the_syntax_is_refused(compiler: GrammarCompiler, pattern: str) -> None:
    with pytest.raises(DataError, match=r"^regex: .*; change it"):
        compiler.regex(pattern)


def test_grammars_cannot_name_special_tokens(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="special token"):
        compiler.lark('start: "a" <think>')
    with pytest.raises(DataError, match="special tokens only"):
        allowed(compiler.lark(f"start: <[{tokenizer.special_tokens['<think>']}]>"), 420)
    spelled = compiler.lark('start: "<think>"')  # its letters are ordinary text
    assert drawn(spelled, tokenizer, 0) == "<think>"


def test_a_form_that_grows_beyond_its_budget_fails_with_a_sentence(tokenizer: Tokenizer) -> None:
    constraint = GrammarCompiler(tokenizer, limits=GrammarLimits(lexer_states=20)).regex("(a|b)*c{200}x")
    with pytest.raises(DataError, match=r"cannot be followed further .*; use a simpler grammar"):
        _follow(constraint, tokenizer.encode("abab" + "c" * 200))
    with pytest.raises(DataError, match="json_schema"):
        GrammarCompiler(tokenizer, limits=GrammarLimits(symbols=50)).json_schema(
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(50)}}
        )


def test_text_without_a_choice_is_cut_into_the_tokenizers_own_tokens(
    compiler: GrammarCompiler, tokenizer: Tokenizer, byte_fallback: Tokenizer
) -> None:
    text = '{"quick": "fox"}'
    for kind, of in ((compiler, tokenizer), (GrammarCompiler(byte_fallback), byte_fallback)):
        constraint, ids = kind.lark('start: "{" "\\"quick\\"" ": " "\\"fox\\"" "}"'), []
        while not constraint.finished:
            (only,) = allowed(constraint, of.vocab_size + 70)
            constraint.accept(only)
            ids.append(only)
        inside = of.encode("\n" + text)
        assert ids == inside[-len(ids) :]
        assert of.decode(ids, continues=True) == text
        assert len(ids) < len(text)


def _follow(constraint: GrammarConstraint, tokens: list[int]) -> None:
    for token in tokens:
        allowed(constraint, 420)
        constraint.accept(token)


def test_forms_are_compiled_once_and_the_latest_are_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(tokenizer, limits=GrammarLimits(compiled=2))
    seen, original = [], compiler._library.compile

    def compile_and_note(kind: str, text: str, limits: GrammarLimits) -> Any:
        seen.append(text)
        return original(kind, text, limits)

    monkeypatch.setattr(compiler._library, "compile", compile_and_note)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        compiler.regex(pattern)
    assert seen == ["a", "b", "c", "b"]


def test_without_llguidance_the_extra_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DataError, match=r"pip install .*\[serve\]"):
        GrammarCompiler(tokenizer)
