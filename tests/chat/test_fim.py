from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.chat.fim import fim_markers, fim_prompt, fim_stop_ids, supports_fim
from fathom.errors import DataError
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer


def respelled(tokenizer: Tokenizer, spellings: dict[str, str]) -> Tokenizer:
    text = tokenizer.tokenizer_json
    for old, new in spellings.items():
        text = text.replace(json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False))
    return Tokenizer(text, tokenizer.config)


def test_the_prompt_is_prefix_suffix_middle(tokenizer: Tokenizer) -> None:
    ids = fim_prompt(tokenizer, "def area(", "):\n    return 1")
    assert supports_fim(tokenizer)
    assert tokenizer.decode(ids, skip_special=False) == (
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>def area(<｜fim▁hole｜>):\n    return 1<｜fim▁end｜>"
    )
    markers = {tokenizer.special_tokens[f"<｜fim▁{name}｜>"] for name in ("begin", "hole", "end")}
    assert set(fim_stop_ids(tokenizer)) == markers | {tokenizer.eos_id}


@given(prefix=st.sampled_from(SPECIAL_TOKENS), suffix=st.text(max_size=8))
@settings(deadline=None)
def test_the_texts_stay_text(tokenizer: Tokenizer, prefix: str, suffix: str) -> None:
    ids = fim_prompt(tokenizer, prefix, suffix)
    markers = fim_markers(tokenizer)
    assert markers is not None
    assert [i for i in ids if i in tokenizer.special_ids] == [
        tokenizer.bos_id,
        markers.begin,
        markers.hole,
        markers.end,
    ]
    assert tokenizer.decode(ids) == prefix + suffix


@pytest.mark.parametrize(
    ("begin", "hole", "end"),
    [("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("▁<PRE>", "▁<SUF>", "▁<MID>")],
)
def test_markers_of_other_families_are_known(tokenizer: Tokenizer, begin: str, hole: str, end: str) -> None:
    other = respelled(tokenizer, {"<｜fim▁begin｜>": begin, "<｜fim▁hole｜>": hole, "<｜fim▁end｜>": end})
    assert fim_markers(other) == fim_markers(tokenizer)


def test_a_vocabulary_without_markers_is_refused_in_one_line(tokenizer: Tokenizer) -> None:
    other = respelled(tokenizer, {"<｜fim▁hole｜>": "<｜other｜>"})
    assert not supports_fim(other)
    for use in (lambda: fim_prompt(other, "a", "b"), lambda: fim_stop_ids(other)):
        with pytest.raises(DataError, match="suffix: the vocabulary has no fill-in-the-middle markers such as"):
            use()
