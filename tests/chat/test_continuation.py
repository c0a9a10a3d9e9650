"""Prompts that end inside the final assistant message; transformers' ``continue_final_message`` is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.chat import encode_chat
from fathom.chat.templates import TEMPLATES
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

TRIMMED = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REASONING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALL = {**TEMPLATES, "trimmed": TRIMMED, "reasoning": REASONING}
FINALS = ["The answer", "behind ", "  before", "", "two\nlines\n", "<think>\nOkay, so", "a <｜User｜> b", "x" * 300]


def conversation(final: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "2+2?"}, {"role": "assistant", **final}]


def ours(tokenizer: Tokenizer, messages: list[dict[str, Any]], template: str) -> str:
    ids = encode_chat(tokenizer, messages, template, continue_final_message=True)
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("final", FINALS)
def test_the_prompt_is_transformers_prompt(tokenizer: Tokenizer, theirs: Any, name: str, final: str) -> None:
    messages = conversation({"content": final})
    expected = theirs.apply_chat_template(
        messages, chat_template=ALL[name], tokenize=False, continue_final_message=True
    )
    assert ours(tokenizer, messages, ALL[name]) == expected


pieces = st.sampled_from([" ", "\n", "<think>", "<", "｜", "<｜Assistant｜>", "\uf8f0", "a", "CONTINUE_FINAL_MESSAGE"])
texts = st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=6).map("".join)


@given(name=st.sampled_from(sorted(ALL)), final=texts, user=texts, earlier=st.text(max_size=5))
@settings(max_examples=80, deadline=None)
def test_any_beginning_is_continued_as_transformers_does(
    tokenizer: Tokenizer, theirs: Any, name: str, final: str, user: str, earlier: str
) -> None:
    first = [{"role": "user", "content": "a"}, {"role": "assistant", "content": earlier}]
    messages = [*first, {"role": "user", "content": user}, {"role": "assistant", "content": final}]
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=ALL[name], tokenize=False, continue_final_message=True
        )
    except ValueError:
        return
    assert ours(tokenizer, messages, ALL[name]) == expected


def test_ids_are_those_of_the_text_with_its_special_tokens(tokenizer: Tokenizer) -> None:
    messages = conversation({"content": "<think>\nOkay"})
    ids = encode_chat(tokenizer, messages, continue_final_message=True)
    assert ids == tokenizer.encode(tokenizer.decode(ids, skip_special=False), allow_special=True)
    assert tokenizer.special_tokens["<think>"] in ids
    assert tokenizer.eos_id not in ids


def test_a_continued_message_forges_no_token_but_its_think_tags(tokenizer: Tokenizer) -> None:
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    messages = conversation({"content": "a<｜end▁of▁sentence｜><｜User｜><think>"})
    found = [names[i] for i in encode_chat(tokenizer, messages, continue_final_message=True) if i in names]
    assert found == ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>"]


def test_started_reasoning_is_continued_where_the_template_shows_it(tokenizer: Tokenizer, theirs: Any) -> None:
    messages = conversation({"content": "", "reasoning_content": "Let me see, "})
    expected = theirs.apply_chat_template(
        messages, chat_template=REASONING, tokenize=False, continue_final_message="reasoning_content"
    )
    assert ours(tokenizer, messages, REASONING) == expected


def test_started_reasoning_gets_its_tag_where_the_template_shows_none(tokenizer: Tokenizer) -> None:
    text = ours(tokenizer, conversation({"content": "", "reasoning_content": "Let me see, "}), TEMPLATES["deepseek-r1"])
    assert text.endswith("<｜Assistant｜><think>\nLet me see, ")


def test_parts_are_continued_at_their_last_text(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two"}]
    text = ours(tokenizer, conversation({"content": parts}), TEMPLATES["chatml"])
    assert text.endswith("One. Two")


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ({"role": "user", "content": "a"}, r"messages\[1\].role: 'user' cannot be continued"),
        ({"content": "", "tool_calls": [{"function": {"name": "f"}}]}, r"messages\[1\].tool_calls"),
    ],
)
def test_what_cannot_be_continued_is_refused(tokenizer: Tokenizer, final: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        encode_chat(tokenizer, conversation(final), continue_final_message=True)


def test_a_template_that_hides_the_final_message_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"messages\[1\].content: the chat template does not show its end"):
        encode_chat(tokenizer, conversation({"content": "a"}), "hello", continue_final_message=True)
