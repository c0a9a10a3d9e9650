"""Long texts are encoded in pieces, in bounded memory, to the tokens of the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from fathom.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS
from fathom.errors import DataError, TooManyTokens
from fathom.tokenizer import Tokenizer, cutting
from tests.tokenizer.test_other_models import CORPUS, KINDS, SPECIAL
from tests.tokenizer.test_sentencepiece import legacy

GUARD = "\uf8f0"


def byte_level(pre: str) -> Library:
    """Return a byte-level tokenizer that splits text as a published family does."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre].patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([text * 3 for text in CORPUS] + ["a b a b", "\n\n  x\n\n", "a, b, c; d."], trainer)
    return library


def save(library: Library, folder: Path) -> Path:
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def llama(folder: Path) -> Path:
    legacy(folder)
    return folder


DISTINCT = sorted({rules.patterns: name for name, rules in PRE_TOKENIZERS.items()}.values())
MADE: dict[str, Callable[[Path], Path]] = {
    **{name: lambda folder, pre=name: save(byte_level(pre), folder) for name in DISTINCT},  # type: ignore[misc]
    **{name: lambda folder, kind=name: save(KINDS[kind](), folder) for name in KINDS},  # type: ignore[misc]
    "legacy llama": llama,
}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(MADE[request.param](tmp_path_factory.mktemp("tokenizer")))


words = st.sampled_from(
    [
        *(
            "the",
            " the",
            " fox",
            "\n",
            " ",
            "  ",
            "\n\n",
            "\r\n",
            "don't",
            "'s",
            ", ",
            ".",
            "天下",
            "，",
            "。\n",
            "é",
            "e\u0301",
        ),
        *(
            "123456",
            " 7",
            "!?",
            "_",
            "\t",
            "<|user|>",
            "<s>",
            "[INST]",
            "<",
            "a b ",
            "👩‍👩‍👧",
            '{"a":1}',
            "def f(x):\n    return x\n",
        ),
    ]
)
texts = st.lists(words, min_size=1, max_size=120).map(lambda parts: "".join(parts) * 2)


def in_all_ways(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    guarded = text.replace("<", f"<{GUARD}").replace("[", f"[{GUARD}")
    return [
        tokenizer.encode(text),
        tokenizer.encode(text, allow_special=True),
        tokenizer.encode(text, continues=True),
        tokenizer.encode_guarded(text, ""),
        tokenizer.encode_guarded(guarded, GUARD),
    ]


def check_pieces(tokenizer: Tokenizer, text: str) -> None:
    whole = in_all_ways(tokenizer, text)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "PIECE_CHARS", 24)
        patched.setattr(cutting, "_WINDOW", 40)
        assert in_all_ways(tokenizer, text) == whole


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_pieces_have_the_tokens_of_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    check_pieces(tokenizer, text)


@pytest.mark.parametrize("mark", ["<|user|>", "<s>", "</s>"])
def test_a_guarded_special_token_within_a_word_is_no_place_to_cut(tokenizer: Tokenizer, mark: str) -> None:
    check_pieces(tokenizer, ("the" * 6 + mark) * 4)


def test_no_cut_lies_within_a_special_token_longer_than_the_text_tried(tmp_path: Path) -> None:
    long = "<" + "the fox, " * 20 + ">"
    library = byte_level(DISTINCT[0])
    library.add_special_tokens([long])
    check_pieces(Tokenizer.load(save(library, tmp_path)), f"the fox{long} the fox" * 3)


def test_no_cut_lies_within_text_that_is_dropped_as_unknown(tmp_path: Path) -> None:
    library = Library(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    library.add_special_tokens(SPECIAL)
    tokenizer = Tokenizer.load(save(library, tmp_path))
    text = "a" + " x" * 100 + "b"
    assert tokenizer.encode(text) == [2]
    check_pieces(tokenizer, text)


@pytest.mark.parametrize(
    ("splitter", "splits"),
    [
        (pre_tokenizers.Whitespace(), True),
        (pre_tokenizers.ByteLevel(), True),
        (pre_tokenizers.WhitespaceSplit(), False),
        (pre_tokenizers.CharDelimiterSplit("-"), False),
        (pre_tokenizers.Split(" ", "merged_with_previous"), False),
        (pre_tokenizers.ByteLevel(use_regex=False), False),
    ],
)
def test_words_are_cut_at_punctuation_only_where_the_tokenizer_splits_them(
    splitter: pre_tokenizers.PreTokenizer, splits: bool, tmp_path: Path
) -> None:
    library = KINDS["words"]()
    library.pre_tokenizer = splitter
    tokenizer = Tokenizer.load(save(library, tmp_path))
    with pytest.MonkeyPatch.context() as patched:
        places: list[bool] = []

        def cut(text: str, *_: object, at_punctuation: bool, **__: object) -> list[str]:
            places.append(at_punctuation)
            return [text]

        patched.setattr("fathom.tokenizer.bpe.cut", cut)
        tokenizer.encode("the")
    assert places == [splits]


def test_ordinary_texts_are_cut(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox, and the lazy dog.\nIt is 12 o'clock; isn't it?\n" * 4000
    pieces = list(cutting.cut(text, tokenizer.encode, at_punctuation=False))
    assert max(map(len, pieces)) < 3 * cutting.PIECE_CHARS
    assert len(pieces) > 3
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    assert ids == tokenizer.encode(text)


def test_reading_stops_once_there_are_too_many_tokens(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox and the lazy dog\n" * 6_000
    count = len(tokenizer.encode(text))
    with pytest.raises(TooManyTokens, match="shorten it") as caught:
        tokenizer.encode(text, max_tokens=1000)
    assert count * 0.8 < caught.value.tokens < count * 1.2
    with pytest.raises(TooManyTokens):
        tokenizer.encode_guarded(text, "", max_tokens=1000)
    assert len(tokenizer.encode(text, max_tokens=count)) == count


def test_a_long_stretch_is_refused_where_tokens_are_limited(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="break them up") as caught:
        tokenizer.encode("a" * (cutting.MAX_STRETCH + 1), max_tokens=1000)
    assert "\n" not in str(caught.value)
    tokenizer.encode("a" * 1000, max_tokens=2000)
