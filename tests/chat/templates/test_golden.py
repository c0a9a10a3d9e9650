"""Each family's layout, written out by hand from what its authors published."""

from __future__ import annotations

from typing import Any

import pytest

from fathom.chat import render
from fathom.chat.templates import DEFAULT_TEMPLATE, TEMPLATES
from fathom.errors import DataError

B, E = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
]
ANSWERED = [*DIALOGUE, {"role": "assistant", "content": "Yes."}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(identifier: str, city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": f'{{"city": "{city}"}}'}
    return {"id": identifier, "type": "function", "function": function}


CALLED = [
    {"role": "user", "content": "Rain in Ulm, or Bonn?"},
    {"role": "assistant", "content": None, "tool_calls": [call("callulm01", "Ulm"), call("callbonn1", "Bonn")]},
    {"role": "tool", "content": "rain", "tool_call_id": "callulm01"},
    {"role": "tool", "content": "sun", "tool_call_id": "callbonn1"},
    {"role": "assistant", "content": "In Ulm."},
]
V3_CALLS = (
    "<｜Assistant｜><｜tool▁calls▁begin｜>"
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Ulm"}\n```<｜tool▁call▁end｜>\n'
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Bonn"}\n```<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
)
V3_RESULTS = (
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜>"
    "\n<｜tool▁output▁begin｜>sun<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
)

PLAIN = f"{B}Be brief.\n\nUser: 2+2?\n\nAssistant: 4{E}User: Sure?\n\n"
CODER = f"{B}Be brief.### Instruction:\n2+2?\n### Response:\n4\n<|EOT|>\n### Instruction:\nSure?\n"
MARKED = f"{B}Be brief.<｜User｜>2+2?<｜Assistant｜>4{E}<｜User｜>Sure?"
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
)
MISTRAL = f"{B}[INST] 2+2?[/INST] 4{E}[INST] Be brief.\n\nSure?[/INST]"


@pytest.mark.parametrize(
    ("family", "turns", "prompt", "answer"),
    [
        ("fathom", MARKED, "<｜Assistant｜>", f"<｜Assistant｜>Yes.{E}"),
        ("deepseek-llm", PLAIN, "Assistant:", f"Assistant: Yes.{E}"),
        ("deepseek-v2", PLAIN, "Assistant:", f"Assistant: Yes.{E}"),
        ("deepseek-coder", CODER, "### Response:\n", "### Response:\nYes.\n<|EOT|>\n"),
        ("deepseek-v3", MARKED, "<｜Assistant｜>", f"<｜Assistant｜>Yes.{E}"),
        ("deepseek-r1", MARKED, "<｜Assistant｜><think>\n", f"<｜Assistant｜>Yes.{E}"),
        ("chatml", CHATML, "<|im_start|>assistant\n", "<|im_start|>assistant\nYes.<|im_end|>\n"),
        ("mistral", MISTRAL, "", f" Yes.{E}"),
    ],
)
def test_turns_stand_as_the_family_published_them(family: str, turns: str, prompt: str, answer: str) -> None:
    template = TEMPLATES[family]
    assert render(DIALOGUE, template) == turns + prompt
    assert render(DIALOGUE, template, add_generation_prompt=False) == turns
    assert render(ANSWERED, template, add_generation_prompt=False) == turns + answer


def test_every_family_of_the_issue_is_there() -> None:
    assert TEMPLATES["fathom"] == DEFAULT_TEMPLATE
    assert set(TEMPLATES) == {
        "fathom",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v2",
        "deepseek-v3",
        "deepseek-r1",
        "chatml",
        "mistral",
    }


def test_coder_introduces_itself_where_no_system_message_does() -> None:
    assert render(DIALOGUE[1:2], TEMPLATES["deepseek-coder"]) == (
        f"{B}You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, "
        "and you only answer questions related to computer science. For politically sensitive questions, security and "
        "privacy issues, and other non-computer science questions, you will refuse to answer\n"
        "### Instruction:\n2+2?\n### Response:\n"
    )


@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-r1"])
def test_deepseek_writes_calls_and_results_between_markers(family: str) -> None:
    template = TEMPLATES[family]
    before = f"{B}<｜User｜>Rain in Ulm, or Bonn?{V3_CALLS}{V3_RESULTS}"
    assert render(CALLED[:4], template) == before
    assert render(CALLED, template, add_generation_prompt=False) == f"{before}In Ulm.{E}"
    twice = render([*CALLED, *CALLED], template, add_generation_prompt=False).removeprefix(B)
    assert twice == 2 * f"<｜User｜>Rain in Ulm, or Bonn?{V3_CALLS}{V3_RESULTS}In Ulm.{E}"
    together = [{"role": "system", "content": "One."}, *DIALOGUE[1:2], {"role": "system", "content": "Two."}]
    assert render(together, template, add_generation_prompt=False) == f"{B}One.\n\nTwo.<｜User｜>2+2?"


@pytest.mark.parametrize("family", ["fathom", "deepseek-v3", "deepseek-r1"])
def test_tools_are_listed_once_after_the_system_message(family: str) -> None:
    text = render(DIALOGUE, TEMPLATES[family], tools=[TOOL])
    listed = '{"name": "weather", "parameters": {"type": "object"}}'
    assert text.startswith(f"{B}Be brief.\n\nYou can call tools.")
    assert text.partition("<｜User｜>")[0].endswith(f"\n{listed}\n\n")
    assert text.count(listed) == 1


def test_chatml_writes_tools_calls_and_results_as_qwen_does() -> None:
    text = render(CALLED, TEMPLATES["chatml"], tools=[TOOL], add_generation_prompt=False)
    assert text == (
        "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nRain in Ulm, or Bonn?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIn Ulm.<|im_end|>\n"
    )


def test_mistral_writes_tools_before_the_last_instruction_and_calls_with_their_ids() -> None:
    text = render([*DIALOGUE[1:3], *CALLED], TEMPLATES["mistral"], tools=[TOOL])
    assert text == (
        f"{B}[INST] 2+2?[/INST] 4{E}[AVAILABLE_TOOLS] "
        '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
        "[/AVAILABLE_TOOLS][INST] Rain in Ulm, or Bonn?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}, "id": "callulm01"}, '
        f'{{"name": "weather", "arguments": {{"city": "Bonn"}}, "id": "callbonn1"}}]{E}'
        '[TOOL_RESULTS] {"content": "rain", "call_id": "callulm01"}[/TOOL_RESULTS]'
        f'[TOOL_RESULTS] {{"content": "sun", "call_id": "callbonn1"}}[/TOOL_RESULTS] In Ulm.{E}'
    )


@pytest.mark.parametrize("family", ["fathom", "deepseek-r1", "chatml"])
def test_reasoning_is_shown_after_the_last_question_only_and_only_when_kept(family: str) -> None:
    reasoned = [{**m, "reasoning_content": f"why {m['content']}"} if m["role"] == "assistant" else m for m in ANSWERED]
    template = TEMPLATES[family]
    assert render(reasoned, template) == render(ANSWERED, template)
    kept = render(reasoned, template, keep_thinking=True, add_generation_prompt=False)
    plain = render(ANSWERED, template, add_generation_prompt=False)
    before, _, after = plain.rpartition("Yes.")
    assert kept == f"{before}<think>\nwhy Yes.\n</think>\n\nYes.{after}"
    spelled = [*ANSWERED[:2], {"role": "assistant", "content": "<think>\neasy\n</think>4"}, *ANSWERED[3:]]
    assert render(spelled, template, add_generation_prompt=False) == plain


@pytest.mark.parametrize("family", ["fathom", "chatml"])
def test_thinking_is_opened_or_closed_in_the_prompt(family: str) -> None:
    plain = render(DIALOGUE, TEMPLATES[family])
    assert render(DIALOGUE, TEMPLATES[family], thinking=True) == plain + "<think>\n"
    assert render(DIALOGUE, TEMPLATES[family], thinking=False) == plain + "<think>\n\n</think>\n\n"
    assert render(DIALOGUE, TEMPLATES[family], thinking=None) == plain


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_a_role_that_a_family_lacks_is_refused(family: str) -> None:
    with pytest.raises(DataError, match="unknown role king"):
        render([*DIALOGUE, {"role": "king", "content": "x"}], TEMPLATES[family])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([CALLED[0], {**CALLED[1], "content": "so"}], "both content and calls"),
        ([CALLED[0], {**CALLED[1], "tool_calls": [call("short", "Ulm")]}], "id of a call must have 9"),
        ([*CALLED[:2], {"role": "tool", "content": "rain"}], "tool_call_id of a result must have 9"),
    ],
)
def test_mistral_refuses_what_its_form_cannot_say(messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        render(messages, TEMPLATES["mistral"])
