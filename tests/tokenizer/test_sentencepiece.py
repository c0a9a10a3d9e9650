from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from fathom.chat import encode_chat
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEXTS = ["the quick brown fox and the lazy dog.  def f(x):\n    return x\n", "天下大势 the then that is\n"] * 5
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *BYTES, "[INST]", "[/INST]"], show_progress=False
    )
    library.train_from_iterator(TEXTS, trainer)
    model = json.loads(library.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def llama(folder: Path, **options: object) -> PreTrainedTokenizerFast:
    """Save what transformers makes of the vocabulary, the way Mistral's files look since version 0.3."""
    vocab, merges = vocabulary()
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, chat_template=TEMPLATE, **options)
    theirs.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    theirs.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def legacy(folder: Path) -> Library:
    """Save a file as Mixtral's: a normalizer puts the space before every piece of text."""
    vocab, merges = vocabulary()
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return library


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Library]:
    folder = tmp_path_factory.mktemp("mixtral")
    library = legacy(folder)
    return Tokenizer.load(folder), library


texts = st.lists(
    st.one_of(st.text(), st.sampled_from(["<s>", "</s>", "[INST]", " the", "  ", "\n", "<0x0A>", "天下", "👩‍👩‍👧"])),
    max_size=6,
).map(lambda parts: "".join(parts).replace("▁", "_"))


@given(text=texts)
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_exactly_and_never_as_a_special_token(
    mixtral: tuple[Tokenizer, Library], text: str
) -> None:
    tokenizer, _ = mixtral
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not tokenizer.special_ids & set(ids)


@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_ids_with_special_tokens_allowed_are_the_librarys(mixtral: tuple[Tokenizer, Library], text: str) -> None:
    tokenizer, library = mixtral
    assert tokenizer.encode(text, allow_special=True) == library.encode(text, add_special_tokens=False).ids


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_streamed_bytes_wait_for_whole_characters(mixtral: tuple[Tokenizer, Library], data: st.DataObject) -> None:
    tokenizer, _ = mixtral
    text = data.draw(texts)
    stream = tokenizer.stream()
    parts = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert stream.flush() == ""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    skip, continues = data.draw(st.booleans()), data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip, continues=continues)
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special=skip, continues=continues)


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"add_prefix_space": False}, {"add_bos_token": True}])
def test_a_tokenizer_of_transformers_gives_the_same_ids_and_texts(tmp_path: Path, options: dict[str, object]) -> None:
    theirs = llama(tmp_path, **options)
    ours = Tokenizer.load(tmp_path)
    for text in ["the fox", " the fox", "", "x  = 1\n天é", "<s>the</s> a", "[INST] the[/INST]dog"]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, allow_special=True) == ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert [*ours.prefix_ids, *ours.encode("the")] == theirs.encode("the")


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"add_prefix_space": False}])
def test_a_chat_has_the_ids_transformers_gives_it(tmp_path: Path, options: dict[str, object]) -> None:
    theirs = llama(tmp_path, **options)
    messages = [
        {"role": "user", "content": "the dog?"},
        {"role": "assistant", "content": "the fox."},
        {"role": "user", "content": "then"},
    ]
    wanted = theirs.apply_chat_template(messages, tokenize=False)
    assert encode_chat(Tokenizer.load(tmp_path), messages) == theirs.encode(wanted, add_special_tokens=False)


def test_ids_that_continue_a_text_keep_their_first_space(mixtral: tuple[Tokenizer, Library]) -> None:
    tokenizer, _ = mixtral
    ids = tokenizer.encode("the fox and the dog")
    for cut in range(1, len(ids)):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:], continues=True) == "the fox and the dog"


def test_a_merge_cannot_spell_a_special_token(tmp_path: Path) -> None:
    legacy(tmp_path)
    path = tmp_path / "tokenizer.json"
    parsed = json.loads(path.read_text(encoding="utf-8"))
    vocab = parsed["model"]["vocab"]
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(["<", "s", ">"]) if piece not in vocab}
    vocab["s>"] = max(vocab.values()) + 1
    parsed["model"]["merges"] += [["s", ">"], ["<", "s>"]]
    path.write_text(json.dumps(parsed), encoding="utf-8")
    assert Library.from_file(str(path)).token_to_id("s>") == vocab["s>"]
    loaded = Tokenizer.load(tmp_path)
    assert 1 not in loaded.encode("a<s>")
    assert loaded.encode("a<s>", allow_special=True)[-1] == 1


def test_a_config_that_names_no_beginning_loads_and_says_so(tmp_path: Path) -> None:
    legacy(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"bos_token": null, "eos_token": "</s>", "add_bos_token": true}')
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.prefix_ids) == (None, 2, 2, ())
    assert encode_chat(loaded, [{"role": "user", "content": "the"}], "{{ bos_token }}{{ messages[0].content }}") == (
        loaded.encode("the")
    )
    loaded.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").bos_id is None
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").bos_token is None
    config.write_text('{"bos_token": "<absent>", "eos_token": "</s>"}')
    with pytest.raises(DataError, match="bos_token is '<absent>', which is not in the vocabulary"):
        Tokenizer.load(tmp_path)
    config.write_text('{"eos_token": null}')
    with pytest.raises(DataError, match="eos_token names no token"):
        Tokenizer.load(tmp_path)
