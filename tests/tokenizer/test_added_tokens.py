"""Added tokens with every flag, encoded as the tokenizers library and transformers encode them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from fathom.tokenizer import Tokenizer

NAMES = ("<a>", "<b>", "[MASK]", "<|im_end|>", "tok", "it", "é!", "ＡＢ", "\n<c>", "<a><b>")
GUARD = "\uf8f0"
normalizer_choices: list[Any] = [
    None,
    normalizers.NFKC(),
    normalizers.Lowercase(),
    normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
]
words = st.sampled_from([*NAMES, " ", "  ", "\t", "\n", "a", "it's", "token", "é", "天下", "_", "<", "ａ", "<A>", "x1"])
texts = st.lists(words | st.text(max_size=3), max_size=8).map("".join)
flags = st.fixed_dictionaries(
    {name: st.booleans() for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
)


@st.composite
def tokenizer_files(draw: st.DrawFn) -> str:
    """Return a byte-level tokenizer.json with some added tokens, the first of them the end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    normalizer = draw(st.sampled_from(normalizer_choices))
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=draw(st.booleans()))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["</s>"])
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5)):
        library.add_tokens([AddedToken(name, **draw(flags))])
    return library.to_str()


@settings(max_examples=200, deadline=None)
@given(definition=tokenizer_files(), text=texts)
def test_ids_around_added_tokens_are_the_librarys(definition: str, text: str) -> None:
    ours = Tokenizer(definition, {"eos_token": "</s>"})
    theirs = Library.from_str(definition).encode(text, add_special_tokens=False)
    assert ours.encode(text, allow_special=True) == theirs.ids
    assert not ours.special_ids & set(ours.encode(text))
    tokens = zip(theirs.ids, theirs.offsets, strict=True)
    spelled = {text[slice(*place)].strip() for token, place in tokens if token in ours.special_ids}
    if spelled <= {name.strip() for name in ours.special_tokens}:  # what normalisation makes one counts for none
        assert ours.encode_guarded(text, GUARD) == ours.encode_guarded(text, "") == theirs.ids


@settings(max_examples=200, deadline=None)
@given(definition=tokenizer_files(), before=texts, message=texts, after=texts)
def test_a_guarded_message_never_adds_a_special_token(definition: str, before: str, message: str, after: str) -> None:
    ours = Tokenizer(definition, {"eos_token": "</s>"})
    starts = {name[0] for name in ours.special_tokens}
    guarded = "".join(c + GUARD if c in starts else c for c in message)
    ids = ours.encode_guarded(f"{before}|{guarded}|{after}", GUARD)
    template = [ours.encode(f"{part}", allow_special=True) for part in (f"{before}|", f"|{after}")]
    most = sum(i in ours.special_ids for part in template for i in part)
    assert sum(i in ours.special_ids for i in ids) <= most


@pytest.mark.parametrize("named", [True, False])
def test_transformers_gives_the_same_ids_for_its_own_files(named: bool, tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)} | {"<eos>": 256, "<pad>": 257}
    library = Library(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken("<x>", lstrip=True), AddedToken("<y>", special=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    if named:
        flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False, "special": True}
        config |= {"added_tokens_decoder": {"258": {"content": "<x>", **flags}}, "eos_token": "<eos>"}
    else:
        mapped = {"eos_token": {"content": "<eos>", "lstrip": True, "rstrip": False, "normalized": False}}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(mapped))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in ("a <x>  b", "a  <eos> b<pad>", "<y> <x> <eos>", "<eos><eos> "):
        assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
        assert not ours.special_ids & set(ours.encode(text))
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id) == (256, 257)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    library = Library(
        models.BPE({character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(["</s>"])
    library.enable_truncation(4)
    library.enable_padding(length=16, pad_token="</s>", pad_id=256)
    loaded = Tokenizer(library.to_str(), {"eos_token": "</s>"})
    assert len(loaded.encode("ten of them", allow_special=True)) == len(loaded.encode("ten of them")) == 11
