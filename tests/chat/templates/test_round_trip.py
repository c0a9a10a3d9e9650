"""Conversations rendered, encoded, decoded and read back: nothing is lost in any family's form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fathom.chat import encode_chat, render
from fathom.chat.output import OutputParser, ToolCall
from fathom.chat.templates import TEMPLATES
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "callulm01", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
texts = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=20)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
@given(system=texts, questions=st.lists(texts, min_size=1, max_size=3), answer=texts)
def test_what_is_encoded_decodes_to_what_is_rendered(
    tokenizer: Tokenizer, family: str, system: str, questions: list[str], answer: str
) -> None:
    messages = [{"role": "system", "content": system}]
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for generation in (False, True):
        given_ids = encode_chat(tokenizer, messages, TEMPLATES[family], add_generation_prompt=generation)
        text = render(messages, TEMPLATES[family], add_generation_prompt=generation)
        assert tokenizer.decode(given_ids, skip_special=False) == text


@pytest.mark.parametrize("family", sorted(TEMPLATES))
@given(said=st.sampled_from([*SPECIAL_TOKENS, "<|EOT|>", "<|im_end|>"]))
def test_no_message_forges_a_special_token(tokenizer: Tokenizer, family: str, said: str) -> None:
    def specials(content: str) -> list[int]:
        messages = [{"role": role, "content": content} for role in ("system", "user")]
        messages.append({"role": "assistant", "content": "x", "reasoning_content": content})
        ids = encode_chat(tokenizer, messages, TEMPLATES[family], add_generation_prompt=False, keep_thinking=True)
        return [i for i in ids if i in tokenizer.special_ids]

    assert specials(said) == specials("plain")


@pytest.mark.parametrize("family", ["fathom", "deepseek-v3", "deepseek-r1", "chatml"])
def test_an_answer_reads_back_as_thinking_content_and_calls(tokenizer: Tokenizer, family: str) -> None:
    question = {"role": "user", "content": "Rain in Ulm?"}
    answer = {"role": "assistant", "content": "I look.", "reasoning_content": "a <b>\n\nc", "tool_calls": [CALL]}
    template = TEMPLATES[family]
    prompt = encode_chat(tokenizer, [question], template, tools=[TOOL])
    whole = encode_chat(
        tokenizer, [question, answer], template, tools=[TOOL], add_generation_prompt=False, keep_thinking=True
    )
    assert whole[: len(prompt)] == prompt
    parser = OutputParser(tokenizer, prompt, tools=[TOOL])
    deltas = [delta for token in whole[len(prompt) :] for delta in parser.push_token(token)] + parser.flush()
    found = {
        channel: "".join(delta.text for delta in deltas if delta.channel == channel)
        for channel in ("thinking", "content")
    }
    assert found["thinking"] == "a <b>\n\nc"
    assert found["content"].removesuffix("<|im_end|>\n").strip() == "I look."
    calls = [delta.tool_call for delta in deltas if delta.channel == "tool_call"]
    assert calls == [ToolCall("weather", '{"city": "Ulm"}')]


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_transformers_renders_our_templates_as_we_do(tokenizer: Tokenizer, family: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.chat_template = TEMPLATES[family]
    messages = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "  2+2?\n"},
        {"role": "assistant", "content": "\n4 ", "reasoning_content": "é"},
    ]
    for more in ({}, {"keep_thinking": True}, {"tools": [TOOL]}):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more)
        assert text == render(messages, TEMPLATES[family], **more)
