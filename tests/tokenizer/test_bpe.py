from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fathom.errors import DataError, SpecError
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from tests.recording_progress import RecordingProgress, Update

pieces_of_trouble = st.one_of(
    st.text(),
    st.sampled_from([*SPECIAL_TOKENS, "<", "｜", "<｜", "\r\n", "  \n", "\u200b", "e\u0301", "ﬁ", "Ⅷ", "١٢", "👩‍👩‍👧"]),
)
texts = st.lists(pieces_of_trouble, max_size=8).map("".join)


@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_exactly_and_never_as_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not tokenizer.special_ids & set(ids)


@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_exactly_with_special_tokens_allowed(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True), skip_special=False) == text


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_streamed_ids_give_the_same_text_and_whole_characters(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=60))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


@given(text=st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=100, deadline=None)
def test_valid_text_streams_without_a_replacement_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert stream.flush() == ""


@given(text=texts.filter(lambda text: "�" not in text))
@settings(max_examples=100, deadline=None)
def test_the_librarys_stream_gives_the_same_characters_for_whole_texts(tokenizer: Tokenizer, text: str) -> None:
    theirs, ours = DecodeStream(skip_special_tokens=False), tokenizer.stream(skip_special=False)
    library = Library.from_str(tokenizer.tokenizer_json)
    for token_id in tokenizer.encode(text, allow_special=True):
        assert ours.push(token_id) == (theirs.step(library, token_id) or "")


def test_a_text_that_ends_amid_a_character_keeps_what_came_before_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the 👩‍👩‍👧")[:-1]
    stream = tokenizer.stream()
    parts = [stream.push(token_id) for token_id in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.decode(ids).endswith("�")  # the library's stream loses it: it has no end


def test_decoding_matches_the_library_on_random_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for start in range(0, tokenizer.vocab_size - 40, 7):
        ids = list(range(start, start + 40, 3))
        assert tokenizer.decode(ids, skip_special=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_transformers_opens_the_saved_folder_and_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["The fox", "x = 12345  \n\n  y", "天下abc大势é\r\n", "<think>a</think><｜User｜>b", "\u200b👩‍👩‍👧 ١٢"]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, allow_special=True)
        assert theirs.encode(text) == [tokenizer.bos_id, *tokenizer.encode(text, allow_special=True)]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == tokenizer.vocab_size


def test_special_spellings_are_special_only_when_allowed(tokenizer: Tokenizer) -> None:
    for index, name in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(f"a{name}b", allow_special=True)[1] == index
        assert tokenizer.special_tokens[name] == index
        assert index not in tokenizer.encode(f"a{name}b")
    assert tokenizer.decode([0, *tokenizer.encode("fox"), 1]) == "fox"


def test_no_merge_spells_a_special_token_even_if_training_text_is_full_of_them() -> None:
    trained = train_bpe(["".join(SPECIAL_TOKENS) * 50], vocab_size=400)
    for name in SPECIAL_TOKENS:
        assert not trained.special_ids & set(trained.encode(name))


def test_digits_stand_alone_and_chinese_and_japanese_stay_apart(tokenizer: Tokenizer) -> None:
    for token_id in range(len(SPECIAL_TOKENS), tokenizer.vocab_size):
        text = tokenizer.decode([token_id])
        if "\ufffd" in text or len(text) < 2:
            continue
        kinds = {_kind(c) for c in text}
        assert "digit" not in kinds, text
        assert kinds == {"cjk"} or "cjk" not in kinds, text
        assert "newline" not in kinds or "letter" not in kinds, text


def _kind(character: str) -> str:
    if character in "\r\n":
        return "newline"
    if unicodedata.name(character, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")):
        return "cjk"
    return {"N": "digit", "L": "letter", "M": "letter", "P": "sign", "S": "sign"}.get(
        unicodedata.category(character)[0], "space"
    )


def test_numbers_encode_digit_by_digit_however_often_they_were_seen() -> None:
    trained = train_bpe(["in 2024 and 2024, 2024 times 1000000\n"] * 40, vocab_size=330)
    assert len(trained.encode("20241000000")) == 11
    assert trained.encode("2024") == [trained.encode(digit)[0] for digit in "2024"]


def test_text_is_split_as_deepseek_v3_publishes_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    steps = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Split", "Split", "Split", "ByteLevel"]
    assert [step["pattern"]["Regex"] for step in steps[:-1]] == [
        "\\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    ]


def test_training_learns_common_words_and_is_reproducible(tokenizer: Tokenizer) -> None:
    texts = ["the cat sat on the mat with the other cat\n"] * 20
    first, second = train_bpe(texts, vocab_size=300), train_bpe(iter(texts), vocab_size=300)
    assert first.fingerprint == second.fingerprint
    assert len(first.encode(" the cat")) == 2
    assert first.fingerprint != tokenizer.fingerprint


def test_training_reports_bytes_and_refuses_nothing_or_too_small_a_vocabulary() -> None:
    progress = RecordingProgress()
    train_bpe(["ééé"] * 300, vocab_size=280, progress=progress)
    assert progress.updates[-1] == Update(1800, None, "bytes", "tokenizer")
    with pytest.raises(DataError, match="nothing to train"):
        train_bpe(["", ""], vocab_size=300)
    with pytest.raises(SpecError, match="use at least 274"):
        train_bpe(["text"], vocab_size=273)


def test_a_saved_tokenizer_loads_the_same_from_folder_or_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.encode("The fox 12 天下") == tokenizer.encode("The fox 12 天下")
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (0, 1, 2)


def test_what_goes_before_a_text_follows_the_files_own_rule(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.prefix_ids == (tokenizer.bos_id,)
    tokenizer.save(tmp_path)
    parsed = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    assert Tokenizer.load(tmp_path).prefix_ids == ()
    (tmp_path / "tokenizer.json").write_text(json.dumps({**parsed, "post_processor": None}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).prefix_ids == ()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    assert Tokenizer.load(tmp_path).prefix_ids == (tokenizer.bos_id,)


def test_a_template_in_a_file_of_its_own_is_read_and_none_is_invented(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    library = Library(models.BPE({"<s>": 0, "a": 1}, []))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<s>"}')
    bare = Tokenizer.load(tmp_path)
    assert not bare.can_chat
    bare.save(tmp_path / "saved")
    assert not Tokenizer.load(tmp_path / "saved").can_chat
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.can_chat
    assert loaded.chat_template == "{{ messages[0]['content'] }}"


def test_unusable_files_and_text_are_refused_in_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer"):
        Tokenizer.load(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a usable tokenizer") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="lone surrogates"):
        tokenizer.encode("\ud800")


def test_published_markers_count_as_special_even_if_not_marked_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    parsed = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for token in parsed["added_tokens"]:
        token["special"] = token["content"] != "<｜User｜>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special_tokens["<｜User｜>"] not in loaded.encode("<｜User｜>")


def test_byte_fallback_vocabularies_decode_as_the_library_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    bytes_ = {f"<0x{i:02X}>": i + 3 for i in range(256)}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_, "▁": 259, "a": 260, "▁a": 261}
    library = Library(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>", "<unk>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    loaded = Tokenizer.load(tmp_path)
    for text in ["a", " a a", "aé 天"]:
        ids = library.encode(text, add_special_tokens=False).ids
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == library.decode(ids) == text
    assert loaded.pad_id == loaded.eos_id == 2


def test_added_characters_keep_their_ids_beside_special_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])  # 3 and 4, as DeepSeek LLM's come before its added characters
    library.add_tokens([AddedToken("ø", normalized=False), AddedToken("ö", normalized=False)])
    loaded = Tokenizer(library.to_str(), {"bos_token": "<s>", "eos_token": "</s>"})
    assert loaded.encode("abøö") == library.encode("abøö").ids == [2, 5, 6]
    assert loaded.decode([2, 5, 6]) == "abøö"
