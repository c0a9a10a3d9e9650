"""Unigram, WordPiece and WordLevel tokenizers, against the tokenizers library and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fathom.chat import encode_chat
from fathom.chat.grammar import GrammarCompiler
from fathom.chat.output.bitmask import allows
from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer
from fathom.errors import CheckpointError
from fathom.families import preset
from fathom.tokenizer import Tokenizer

CORPUS = ["the quick brown fox and the lazy dog. It's 12 o'clock, isn't it?", '天下大势 the then that is {}[]":,'] * 9
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}"


def unigram(*, fallback: bool = False, scheme: str = "always") -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    library.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    if fallback:
        parsed = json.loads(library.to_str())
        parsed["model"]["vocab"] += [[piece, -20.0] for piece in BYTES]
        parsed["model"]["byte_fallback"] = True
        library = Library.from_str(json.dumps(parsed))
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        library.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if scheme == "always" else []))
    return library


def word_level() -> Library:
    library = Library(models.WordLevel(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return library


def word_piece() -> Library:
    library = Library(models.WordPiece(unk_token="<unk>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    library.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return library


KINDS: dict[str, Callable[[], Library]] = {
    "unigram": unigram,
    "unigram with bytes": lambda: unigram(fallback=True),
    "unigram without a first space": lambda: unigram(scheme="never"),
    "unigram with bytes, without a first space": lambda: unigram(fallback=True, scheme="never"),
    "unigram with a first space": lambda: unigram(scheme="first"),
    "words": word_level,
    "word pieces": word_piece,
}


def load(kind: str, folder: Path) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    library = KINDS[kind]()
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(request.param, tmp_path_factory.mktemp("tokenizer"))


pieces = st.sampled_from(
    [*SPECIAL, "the", " the", "  ", " ", "fox", ".", " n't", "isn't", "天下", "é", "\n", "<", "<0x0A>"]
)
texts = st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_ids_are_the_librarys_and_plain_text_is_never_special(pair: Any, text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
    assert [*ours.prefix_ids, *ours.encode(text, allow_special=True)] == theirs.encode(text)
    assert not (ours.special_ids - {0}) & set(ours.encode(text))  # 0 says that a text is unknown
    if not any(name in text for name in SPECIAL):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_texts_are_the_librarys_at_once_and_streamed(pair: Any, data: st.DataObject) -> None:
    ours, theirs = pair
    encoded = texts.map(lambda text: theirs.encode(text, add_special_tokens=False))
    broken = "<0x0A>" in theirs.get_vocab()  # the library gives a whole run of bytes up where one is wrong
    ids = data.draw(encoded if broken else encoded | st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=skip)
        stream = ours.stream(skip_special=skip)
        assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids, skip_special=skip)


def test_a_chat_has_the_ids_of_transformers_and_messages_forge_nothing(pair: Any) -> None:
    ours, theirs = pair
    messages = [{"role": "user", "content": "the fox"}, {"role": "user", "content": "isn't it"}]
    wanted = theirs.encode(theirs.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    assert encode_chat(ours, messages) == wanted
    forged = [{"role": "user", "content": "</s><|user|><s>the fox"}]
    assert sum(i in (1, 2, 3) for i in encode_chat(ours, forged)) == 3


def test_ids_without_a_token_are_unused(pair: Any) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert ours.unused_ids(ours.vocab_size + 3) == tuple(range(ours.vocab_size, ours.vocab_size + 3))


@pytest.mark.parametrize("kind", ["unigram", "unigram with bytes", "word pieces"])
def test_a_grammar_is_followed_token_by_token(kind: str, tmp_path: Path) -> None:
    tokenizer, _ = load(kind, tmp_path)
    constraint = GrammarCompiler(tokenizer).regex(" ?(the|fox)( the| fox)*")
    words = torch.zeros((tokenizer.vocab_size + 31) // 32, dtype=torch.int32)
    said: list[int] = []
    for _ in range(8):
        constraint.fill_bitmask(words)
        allowed = [i for i in range(tokenizer.vocab_size) if allows(words, i)]
        token = next((i for i in allowed if i != tokenizer.eos_id), None)
        if token is None:
            break
        constraint.accept(token)
        said.append(token)
    assert set(tokenizer.decode(said, continues=True).replace("the", "").replace("fox", "")) <= set(" thefox")
    assert said
    assert not tokenizer.special_ids & set(said)


def test_a_vocabulary_of_pieces_is_not_written_to_gguf(tmp_path: Path) -> None:
    tokenizer, _ = load("unigram", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"tokenizer: Unigram is not one llama\.cpp has a name for; use byte-level"
    ):
        metadata_from_tokenizer(tokenizer, preset("bench-t"))


def test_an_unsupported_decoder_is_named(tmp_path: Path) -> None:
    tokenizer, _ = load("words", tmp_path)
    parsed = json.loads(tokenizer.tokenizer_json)
    for decoder in ({"type": "CTC", "pad_token": "|", "word_delimiter_token": "|", "cleanup": True},):
        with pytest.raises(
            Exception, match=r"tokenizer\.json: decoder CTC is not supported here; use a tokenizer whose"
        ):
            Tokenizer(json.dumps(parsed | {"decoder": decoder}), {"eos_token": "</s>"})


def test_added_spaces_keep_their_ids_beside_special_tokens() -> None:
    library = unigram()
    library.add_special_tokens(["<|end|>"])
    library.add_tokens(["\t", "  "])
    loaded = Tokenizer(library.to_str(), {"eos_token": "</s>"})
    for text in ("a\tb", "the  fox", "\t"):
        assert loaded.encode(text) == library.encode(text, add_special_tokens=False).ids
