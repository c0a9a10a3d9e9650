from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, GPT2TokenizerFast, LlamaTokenizer

from fathom.chat import encode_chat
from fathom.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer, pre_tokenizer_name
from fathom.checkpoint.gguf.tokens import end_ids, tokenizer_from_metadata
from fathom.errors import FathomError
from fathom.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog barks back.\n\n  It's 2024, isn't it? x == 12345\n" * 3,
    "def area(width, height):\n    return width * height  # 天下大势，分久必合\n\tprint(3.14)\r\n" * 3,
    "Müller straße ça ΑΒΓ кот ١٢ e\u0301 👩‍👩‍👧 ｆｕｌｌ ￥ 、。 «» $+<=>^~| `a`\n" * 3,
]
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>"]
SAMPLES = [
    "It's THE fox's 12345 dogs",
    "  two spaces, 3 tabs\t\t\tand\r\n\r\n\nlines  ",
    "天下大势2024分久 必合 e\u0301Müller ΑΒΓ",
    "x==1;y+=2 <<>> ~`^| $9 ｆｕｌｌ",
    "<|begin|>no<|end|>",
    "\u200b👩‍👩‍👧 ١٢\u3000。",
]
samples = st.lists(st.one_of(st.text(), st.sampled_from([*SAMPLES, " ", "\n", "'s", "1"])), max_size=5).map("".join)


def byte_level_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Return what a converter writes of a byte-level tokenizer trained with one of the splits."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre].patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
    } | {f"tokenizer.{name}": value for name, value in changes.items()}


def sentence_piece_metadata(**changes: Any) -> dict[str, Any]:
    """Return what a converter writes of a SentencePiece model: scores fall with the order of learning."""
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    model = json.loads(library.to_str())["model"]
    merged = ["".join(merge) for merge in model["merges"]]
    letters = [token for token in model["vocab"] if len(token) == 1]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *dict.fromkeys(merged), *letters]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.{name}": value for name, value in changes.items()}


def made(metadata: dict[str, Any]) -> Tokenizer:
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return made(byte_level_metadata())


@pytest.fixture(scope="module")
def sentence_piece() -> Tokenizer:
    return made(sentence_piece_metadata())


@given(text=samples)
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_exactly(byte_level: Tokenizer, sentence_piece: Tokenizer, text: str) -> None:
    for tokenizer, given_ in ((byte_level, text), (sentence_piece, text.replace("▁", "_"))):
        ids = tokenizer.encode(given_)
        assert tokenizer.decode(ids, skip_special=False) == given_
        assert not tokenizer.special_ids & set(ids)


def test_gpt2s_own_split_gives_the_ids_of_transformers(byte_level: Tokenizer) -> None:
    metadata = byte_level_metadata()
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = GPT2TokenizerFast(vocab=vocab, merges=merges, bos_token="<|begin|>", eos_token="<|end|>", unk_token=None)
    for text in SAMPLES:
        assert byte_level.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)


def test_sentence_piece_gives_the_ids_of_transformers(sentence_piece: Tokenizer) -> None:
    vocab = {token: i for i, token in enumerate(sentence_piece_metadata()["tokenizer.ggml.tokens"])}
    merges = [tuple(merge) for merge in json.loads(sentence_piece.tokenizer_json)["model"]["merges"]]
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, legacy=True)
    for text in [*SAMPLES, *TEXTS]:
        if not text.startswith(" "):  # transformers puts no space before one that is there
            assert sentence_piece.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_merges_come_in_the_order_of_scores_and_never_make_a_control_token() -> None:
    tokens = ["<unk>", "<s>", "</s>", "<", "s", ">", "s>", "a", "▁", "▁a", "aa", "aaa"]
    metadata = sentence_piece_metadata() | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0, 0, -9, -9, -9, -3, -9, -9, -1, -2, -4],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 9,
    }
    merges = [tuple(merge) for merge in json.loads(made(metadata).tokenizer_json)["model"]["merges"]]
    assert merges == [("▁", "a"), ("a", "a"), ("s", ">"), ("aa", "a"), ("a", "aa")]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_split_comes_back_by_a_name_that_stands_for_the_same(name: str) -> None:
    split = PRE_TOKENIZERS[name]
    found = pre_tokenizer_name({"pre_tokenizer": pre_tokenizer(split), "model": {"ignore_merges": split.ignore_merges}})
    assert found is not None
    assert PRE_TOKENIZERS[found] == split


SENTENCE = "It's 12345 DOG'S\n\n 天下a+1， x_1\r\n"
PIECES = {
    "default": "It|'|s| |123|45| DOG|'|S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "gpt-2": "It|'s| 12345| DOG|'|S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "smollm": "It|'s| |1|2|3|4|5| DOG|'|S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "llama-bpe": "It|'s| |123|45| DOG|'S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "dbrx": "It|'s| |123|45| DOG|'S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "qwen2": "It|'s| |1|2|3|4|5| DOG|'S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "tekken": "It|'s| |1|2|3|4|5| DOG|'S|\n\n| 天下a|+|1|，| x|_|1|\r\n",
    "deepseek-llm": "It|'|s| |12345| DOG|'|S|\n|\n| |天下|a|+|1|，| x|_|1|\r|\n",
    "deepseek-coder": "It|'|s| |1|2|3|4|5| DOG|'|S|\n|\n| |天下|a|+|1|，| x|_|1|\r|\n",
    "deepseek-v3": "It|'s| |123|45| DOG|'S|\n\n| |天下|a|+|1|，| x|_|1|\r\n",
}
"""How each name cuts the sentence, checked by hand: runs of digits, contractions, line ends, Chinese and signs."""


@pytest.mark.parametrize("name", PIECES)
def test_a_name_cuts_a_sentence_where_it_should(name: str) -> None:
    parsed = json.loads(Library(models.BPE()).to_str())
    *splits, _ = pre_tokenizer(PRE_TOKENIZERS[name])["pretokenizers"]
    parsed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splits}
    cutter = Library.from_str(json.dumps(parsed)).pre_tokenizer
    assert [piece for piece, _ in cutter.pre_tokenize_str(SENTENCE)] == PIECES[name].split("|")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_split_is_one_the_library_takes(name: str) -> None:
    tokenizer = made(byte_level_metadata("gpt-2", **{"ggml.pre": name}))
    for text in [*SAMPLES, *TEXTS]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}], "smollm"),
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        ([{"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}], None),
        ([{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}], None),
    ],
)
def test_published_ways_to_write_a_split_are_recognised(parts: list[dict[str, Any]], name: str | None) -> None:
    document = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}, "model": {}}
    assert pre_tokenizer_name(document) == name


def test_deepseek_llms_published_split_is_recognised_with_its_single_digits() -> None:
    parts = pre_tokenizer(PRE_TOKENIZERS["deepseek-llm"])["pretokenizers"]
    parts[0]["pattern"]["Regex"] = "[\r\n]"
    parts[-2] = {"type": "Digits", "individual_digits": True}
    assert (
        pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}, "model": {}})
        == "deepseek-llm"
    )


def test_a_chat_template_that_is_no_text_is_refused() -> None:
    with pytest.raises(FathomError, match="the template default is int, not text; convert the model again"):
        made(byte_level_metadata(chat_template=5))


def test_special_tokens_and_ids_are_those_of_the_metadata() -> None:
    metadata = byte_level_metadata(
        **{"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "ggml.add_bos_token": True}
    )
    tokenizer = made(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.special_tokens == {name: index for index, name in enumerate(SPECIAL)}
    assert tokenizer.prefix_ids == (0,)
    assert encode_chat(tokenizer, [{"role": "user", "content": "fox"}]) == [0, *tokenizer.encode("fox"), 1]
    assert end_ids(metadata) == {1}
    assert made(byte_level_metadata()).prefix_ids == ()
    assert made(byte_level_metadata(**{"ggml.pre": "llama-bpe"})).prefix_ids == (0,)
    assert made(sentence_piece_metadata()).prefix_ids == (1,)
    assert made(sentence_piece_metadata(**{"ggml.add_bos_token": False})).prefix_ids == ()


def test_a_file_without_a_beginning_or_without_a_tokenizer_says_so() -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.ggml.bos_token_id"]
    assert made(metadata).bos_id is None
    assert made(byte_level_metadata(**{"ggml.bos_token_id": 99999})).bos_id is None
    assert tokenizer_from_metadata({"general.architecture": "llama"}) is None
    assert tokenizer_from_metadata({"tokenizer.ggml.model": "none"}) is None


def test_turns_end_where_the_file_says_or_where_a_control_token_is_spelled_so() -> None:
    assert end_ids(byte_level_metadata(**{"ggml.eot_token_id": 2})) == {1, 2}
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][2] = "<|im_end|>"
    assert end_ids(metadata) == {1, 2}
    metadata["tokenizer.ggml.token_type"][2] = 1
    assert end_ids(metadata) == {1}
    assert end_ids({"tokenizer.ggml.eos_token_id": 7}) == {7}


def test_user_defined_tokens_are_added_but_not_special(tmp_path: Path) -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"] += ["<tool>", "  "]
    metadata["tokenizer.ggml.token_type"] += [4, 4]
    tokenizer = made(metadata)
    count = tokenizer.vocab_size
    assert tokenizer.encode("a<tool>", allow_special=True)[-1] == count - 2
    assert count - 2 not in tokenizer.encode("a<tool>")
    assert tokenizer.encode("a  b")[1] == count - 1
    assert tokenizer.decode([count - 2, count - 1]) in ("<tool>  ", "  ")
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("a<tool>  b<|end|>", add_special_tokens=False) == tokenizer.encode(
        "a<tool>  b<|end|>", allow_special=True
    )


def test_sentence_piece_without_a_space_prefix_adds_and_drops_none() -> None:
    tokenizer = made(sentence_piece_metadata(**{"ggml.add_space_prefix": False}))
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    assert tokenizer.encode(" the") == made(sentence_piece_metadata()).encode("the")


KEYS = "tokenizer.ggml."
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": (
        byte_level_metadata(**{"ggml.model": "bert"}),
        "model: 'bert' is not supported; use a model whose",
    ),
    "model no text": (byte_level_metadata(**{"ggml.model": 3}), "model: 3 is not supported"),
    "unknown split": (
        byte_level_metadata(**{"ggml.pre": "falcon9"}),
        "pre: 'falcon9' is not known; use a model of default, gpt-2, smollm, llama-bpe",
    ),
    "split no text": (byte_level_metadata(**{"ggml.pre": 5}), "pre: '5' is not known"),
    "no tokens": (byte_level_metadata(**{"ggml.tokens": None}), "tokens: is missing"),
    "tokens no texts": (byte_level_metadata(**{"ggml.tokens": [1, 2]}), "tokens: is not a list of the right type"),
    "a token twice": (byte_level_metadata(**{"ggml.tokens": ["a", "b", "a"]}), "tokens: holds 'a' twice"),
    "types too few": (byte_level_metadata(**{"ggml.token_type": [1]}), "token_type: has 1 entries for"),
    "types no numbers": (byte_level_metadata(**{"ggml.token_type": "x"}), "token_type: is not a list"),
    "no merges": (byte_level_metadata(**{"ggml.merges": None}), "merges: is missing"),
    "merge of nothing": (byte_level_metadata(**{"ggml.merges": ["zz qq"]}), "merges: joins 'zz qq', which are not all"),
    "merge of one": (byte_level_metadata(**{"ggml.merges": ["a"]}), "merges: joins 'a', which are not all"),
    "flag": (byte_level_metadata(**{"ggml.add_bos_token": 1}), "add_bos_token: is 1, not true or false"),
    "id": (byte_level_metadata(**{"ggml.eos_token_id": "x"}), "eos_token_id: is 'x', not a token id"),
    "no end": (byte_level_metadata(**{"ggml.eos_token_id": None}), "eos_token_id: is missing"),
    "no scores": (sentence_piece_metadata(**{"ggml.scores": None}), "scores: is missing"),
    "scores too few": (sentence_piece_metadata(**{"ggml.scores": [0.0]}), "scores: has 1 entries for"),
    "a token too long": (
        sentence_piece_metadata(
            **{"ggml.tokens": ["<unk>", "x" * 9999, "</s>"], "ggml.scores": [0.0] * 3, "ggml.token_type": [2, 1, 3]}
        ),
        "tokens: has one of 9999 characters",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_refused_by_its_key(name: str) -> None:
    metadata, message = BROKEN[name]
    with pytest.raises(FathomError) as caught:
        tokenizer_from_metadata(metadata)
    assert str(caught.value).startswith(KEYS + message)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", *PRE_TOKENIZERS])
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    metadata = sentence_piece_metadata() if kind == "llama" else byte_level_metadata("gpt-2", **{"ggml.pre": kind})
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, metadata)
    theirs, ours = llama_cpp.Llama(str(path), vocab_only=True, verbose=False), made(metadata)
    for text in [*SAMPLES, *TEXTS]:
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ours.encode(text)
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ours.encode(text, allow_special=True)


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.INT32}
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kinds[type(value[0])])
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
