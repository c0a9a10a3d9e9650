from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fathom.chat import encode_chat, render
from fathom.errors import DataError
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>easy</think>4"},
    {"role": "tool", "content": "seen"},
    {"role": "user", "content": "Sure?"},
]


def test_default_template_writes_the_dialogue_out() -> None:
    assert render(DIALOGUE) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>"
        "<｜tool▁output▁begin｜>seen<｜tool▁output▁end｜><｜User｜>Sure?<｜Assistant｜>"
    )
    assert render(DIALOGUE[:2], add_generation_prompt=False).endswith("2+2?")


def test_transformers_applies_the_saved_template_to_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True) == render(DIALOGUE)
    text = theirs.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
    assert encode_chat(tokenizer, DIALOGUE) == tokenizer.encode(text, allow_special=True)


fragments = st.lists(
    st.one_of(
        st.sampled_from(["<", "<｜", "｜>", "User", "<think>", "</think>", "\uf8f0", *SPECIAL_TOKENS]), st.text()
    ),
    max_size=6,
).map("".join)


@given(system=fragments, more=fragments, user=fragments)
@settings(max_examples=60, deadline=None)
def test_no_message_can_forge_a_special_token(tokenizer: Tokenizer, system: str, more: str, user: str) -> None:
    messages = [
        {"role": "system", "content": system},
        {"role": "system", "content": more},
        {"role": "user", "content": user},
    ]
    ids = encode_chat(tokenizer, messages)
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    found = [names[i] for i in ids if i in names]
    assert found == ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    assert tokenizer.decode(ids) == system + more + user


def test_a_custom_template_gets_its_variables_and_loop_state() -> None:
    template = "{% for m in messages if m.role != 'x' %}{{ loop.index }}{{ m.role|upper }}{{ mark }}{% endfor %}"
    assert render([{"role": "a", "content": ""}, {"role": "x", "content": ""}], template, mark="!") == "1A!"


def test_bad_messages_name_the_field() -> None:
    with pytest.raises(DataError, match=r"messages\[1\]\.content: expected text or a list of parts, got int"):
        render([DIALOGUE[0], {"role": "user", "content": 3}])
    with pytest.raises(DataError, match="unknown role"):
        render([{"role": "king", "content": ""}])
    with pytest.raises(DataError, match="contents exceed 10"):
        render(DIALOGUE, max_chars=10)
    with pytest.raises(DataError, match="output exceeds 60"):
        render(DIALOGUE, max_chars=60)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how it is <there>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is it in Ulm and Bonn?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}},
            {"id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}},
        ],
    },
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "sun"},
]


def test_default_template_writes_tools_calls_and_results_as_deepseek_does() -> None:
    text = render(CALLED, tools=[WEATHER])
    start, _, rest = text.partition("<｜User｜>")
    assert start.startswith("<｜begin▁of▁sentence｜>Be brief.\n\n")
    assert json.loads(start.strip().splitlines()[-1]) == WEATHER["function"]
    assert rest == (
        "How is it in Ulm and Bonn?<｜Assistant｜><｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city":"Ulm"}\n```<｜tool▁call▁end｜>\n'
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city":"Bonn"}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜>"
        "<｜tool▁output▁begin｜>sun<｜tool▁output▁end｜><｜Assistant｜>"
    )
    assert render(CALLED[1:2], tools=[WEATHER]).startswith("<｜begin▁of▁sentence｜>You can call tools.")


def test_default_template_opens_or_closes_the_reasoning_when_asked() -> None:
    assert render(DIALOGUE, thinking=True) == render(DIALOGUE) + "<think>\n"
    assert render(DIALOGUE, thinking=False) == render(DIALOGUE) + "<think>\n\n</think>\n\n"
    assert render(DIALOGUE, thinking=None) == render(DIALOGUE)


def test_transformers_renders_tools_as_we_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(CALLED, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    assert text == render(CALLED, tools=[WEATHER])
    assert encode_chat(tokenizer, CALLED, tools=[WEATHER]) == tokenizer.encode(text, allow_special=True)


@given(description=fragments, name=fragments, argument=fragments)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("reads", ["text", "mapping"])
def test_no_tool_can_forge_a_special_token(
    tokenizer: Tokenizer, reads: str, description: str, name: str, argument: str
) -> None:
    template = None
    if reads == "mapping":
        template = (
            "{{ tools | tojson }}{% for m in messages %}{% for c in m.tool_calls %}"
            "{{ c.function.arguments | tojson }}{{ c.function.name }}{{ c.function.arguments.x }}"
            "{% endfor %}{% endfor %}"
        )
    tools = [{"name": name, "description": description, "parameters": {description: [name]}}]
    spelled = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in argument)
    called = {"name": name, "arguments": f'{{"x": "{spelled}"}}'}
    with_text = [{"role": "assistant", "tool_calls": [{"function": called}]}]
    ids = encode_chat(tokenizer, with_text, template, tools=tools)
    plain = [{"role": "assistant", "tool_calls": [{"function": {"name": "n", "arguments": "{}"}}]}]
    expected = encode_chat(tokenizer, plain, template, tools=[{"name": "n"}])
    assert [i for i in ids if i in tokenizer.special_ids] == [i for i in expected if i in tokenizer.special_ids]
    if reads == "mapping":
        assert tokenizer.decode(ids).endswith(name + argument)


def test_json_in_templates_is_not_escaped_for_html() -> None:
    message = [{"role": "user", "content": ""}]
    assert render(message, "{{ x | tojson }}", x={"b": "<é>", "a": 1}) == '{"b": "<é>", "a": 1}'
    assert render(message, "{{ x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"


def test_calls_that_are_none_name_the_field() -> None:
    broken = {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}
    with pytest.raises(DataError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.name: is missing"):
        render([broken])
    with pytest.raises(DataError, match=r"messages\[0\]\.content: expected text or a list of parts, got NoneType"):
        render([{"role": "assistant", "content": None}])
    with pytest.raises(DataError, match=r"function\.arguments: expected JSON, got int"):
        render([{**broken, "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}])


def test_tools_nested_beyond_reason_are_refused(tokenizer: Tokenizer) -> None:
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(DataError, match="nested deeper than 64"):
        encode_chat(tokenizer, DIALOGUE, tools=[{"name": "f", "parameters": deep}])
