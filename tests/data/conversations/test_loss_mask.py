"""What is learned of a conversation: the answers and what ends them, whatever the template does around them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.chat import encode_chat
from fathom.chat.templates import TEMPLATES
from fathom.data.conversations import encode_with_loss_mask
from fathom.errors import DataError
from fathom.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.chat.conversations import R1
from tests.data.conversations.rendering import shown

DIALOGUE = [
    {"role": "system", "content": "Brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
REASONED = [*DIALOGUE[:4], {**DIALOGUE[4], "reasoning_content": "two and two"}]
B, E = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
PLAIN = f"{B}Brief.\n\nUser: 2+2?\n\nAssistant:⟦ 4{E}⟧User: Sure?\n\nAssistant:⟦ Yes.{E}⟧"
MARKED = f"{B}Brief.<｜User｜>2+2?<｜Assistant｜>⟦4{E}⟧<｜User｜>Sure?<｜Assistant｜>⟦Yes.{E}⟧"
EXPECTED = {
    "fathom": MARKED,
    "deepseek-v3": MARKED,
    "deepseek-r1": MARKED,
    "deepseek-llm": PLAIN,
    "deepseek-v2": PLAIN,
    "deepseek-coder": f"{B}Brief.### Instruction:\n2+2?\n### Response:\n⟦4\n<|EOT|>⟧\n"
    "### Instruction:\nSure?\n### Response:\n⟦Yes.\n<|EOT|>⟧\n",
    "chatml": "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n⟦4<|im_end|>⟧\n<|im_start|>user\nSure?<|im_end|>\n"
    "<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n",
    "mistral": f"{B}[INST] 2+2?[/INST]⟦ 4{E}⟧[INST] Brief.\n\nSure?[/INST]⟦ Yes.{E}⟧",
}
FOREIGN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{{ '<think>\n' }}{% endif %}"
)
"""Reads no ``reasoning_content``, but opens the reasoning in its prompt."""
ALWAYS_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Shows reasoning, or an empty one, in the last answer only."""


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_answers_and_their_ends_are_learned_and_no_headers(all_markers_tokenizer: Tokenizer, family: str) -> None:
    sample = encode_with_loss_mask(all_markers_tokenizer, DIALOGUE, template=TEMPLATES[family])
    assert shown(all_markers_tokenizer, sample) == EXPECTED[family]
    assert sample.left_out == 0
    assert sample.tokens == encode_chat(all_markers_tokenizer, DIALOGUE, TEMPLATES[family], add_generation_prompt=False)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_the_last_answer_begins_with_its_reasoning(all_markers_tokenizer: Tokenizer, family: str) -> None:
    sample = encode_with_loss_mask(all_markers_tokenizer, REASONED, template=TEMPLATES[family])
    head, opening, answer = EXPECTED[family].rpartition("⟦")
    thought = "<think>\ntwo and two\n</think>\n\n"
    whole = f"{head}<think>\n⟦{thought[8:]}{answer}" if family == "deepseek-r1" else f"{head}{opening}{thought}{answer}"
    assert shown(all_markers_tokenizer, sample) == whole
    dropped = encode_with_loss_mask(all_markers_tokenizer, REASONED, template=TEMPLATES[family], thinking="drop")
    assert shown(all_markers_tokenizer, dropped) == EXPECTED[family]


@pytest.mark.parametrize("family", ["fathom", "deepseek-v3", "deepseek-r1", "chatml"])
def test_a_template_that_knows_reasoning_writes_it_itself(all_markers_tokenizer: Tokenizer, family: str) -> None:
    sample = encode_with_loss_mask(all_markers_tokenizer, REASONED, template=TEMPLATES[family])
    theirs = encode_chat(
        all_markers_tokenizer, REASONED, TEMPLATES[family], add_generation_prompt=False, keep_thinking=True
    )
    assert sample.tokens == theirs


@pytest.mark.parametrize("written", ["reasoning", "content", "closed"])
def test_reasoning_may_stand_under_either_name_or_in_the_content(ours: Tokenizer, written: str) -> None:
    answer = {
        "reasoning": {"content": "Yes.", "reasoning": " two and two\n"},
        "content": {"content": "<think>\ntwo and two\n</think>\n\nYes."},
        "closed": {"content": "two and two</think>Yes."},
    }[written]
    given_as = encode_with_loss_mask(ours, [*DIALOGUE[:4], {"role": "assistant", **answer}])
    assert given_as == encode_with_loss_mask(ours, REASONED)
    assert shown(ours, given_as).endswith(f"⟦<think>\ntwo and two\n</think>\n\nYes.{E}⟧")


def test_a_prompt_that_opens_the_reasoning_is_no_part_of_what_is_learned(ours: Tokenizer) -> None:
    sample = encode_with_loss_mask(ours, REASONED[1:], template=FOREIGN)
    prompt = encode_chat(ours, REASONED[1:4], FOREIGN)
    assert sample.tokens[: len(prompt)] == prompt
    assert shown(ours, sample) == (
        f"{B}<｜User｜>2+2?<｜Assistant｜>⟦4{E}⟧<｜User｜>Sure?<｜Assistant｜><think>\n"
        f"⟦two and two\n</think>\n\nYes.{E}⟧"
    )


@pytest.mark.parametrize("template", [*TEMPLATES.values(), FOREIGN])
def test_an_earlier_answer_that_lost_its_reasoning_is_left_out(all_markers_tokenizer: Tokenizer, template: str) -> None:
    earlier = [*DIALOGUE[:2], {**DIALOGUE[2], "reasoning_content": "long ago"}, *DIALOGUE[3:]]
    sample = encode_with_loss_mask(all_markers_tokenizer, earlier, template=template)
    assert sample.left_out == 1
    assert shown(all_markers_tokenizer, sample).count("⟦") == 1
    assert "long ago" not in all_markers_tokenizer.decode(sample.tokens)
    assert encode_with_loss_mask(all_markers_tokenizer, earlier, template=template, thinking="drop").left_out == 0


def test_an_answer_shown_otherwise_than_it_would_be_written_is_left_out(all_markers_tokenizer: Tokenizer) -> None:
    sample = encode_with_loss_mask(all_markers_tokenizer, DIALOGUE[1:], template=ALWAYS_THINKS)
    assert sample.left_out == 1
    assert shown(all_markers_tokenizer, sample) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYes.<|im_end|>⟧\n"
    )


def test_an_answer_behind_text_that_moved_is_found_only_by_what_nobody_can_forge(
    ours: Tokenizer, all_markers_tokenizer: Tokenizer
) -> None:
    assert encode_with_loss_mask(all_markers_tokenizer, DIALOGUE, template=TEMPLATES["mistral"]).left_out == 0
    assert encode_with_loss_mask(ours, DIALOGUE, template=TEMPLATES["mistral"]).left_out == 1


def test_an_answer_whose_prompt_the_template_takes_back_is_left_out(ours: Tokenizer) -> None:
    """Mistral's own template of version 0.3 shows the system message only while a question is last."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ messages[0].content if loop.last else '' }}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    sample = encode_with_loss_mask(ours, DIALOGUE, template=template)
    assert sample.left_out == 2
    assert not any(sample.learned)
    assert (
        encode_with_loss_mask(ours, [{"role": "system", "content": ""}, *DIALOGUE[1:]], template=template).left_out == 0
    )


def test_the_first_token_is_never_learned_for_nothing_predicts_it(ours: Tokenizer) -> None:
    bare = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    sample = encode_with_loss_mask(ours, [DIALOGUE[4]], template=bare)
    assert sample.tokens == [*ours.encode("Yes."), ours.eos_id]
    assert sample.learned == [False, *[True] * (len(sample.tokens) - 1)]


def test_calls_are_learned_and_results_are_not(ours: Tokenizer) -> None:
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "reasoning": "look", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]
    call = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Ulm"}\n```<｜tool▁call▁end｜>'
    tools = [{"type": "function", "function": {"name": "weather"}}]
    text = shown(ours, encode_with_loss_mask(ours, messages, tools=tools))
    assert text.partition("\n\n<｜User｜>")[2] == (
        f"Rain?<｜Assistant｜>⟦<think>\nlook\n</think>\n\n<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>{E}⟧"
        f"<｜tool▁output▁begin｜>rain<｜tool▁output▁end｜><｜Assistant｜>⟦Yes.{E}⟧"
    )
    plain = encode_with_loss_mask(ours, messages, tools=tools, template=TEMPLATES["deepseek-v2"], thinking="drop")
    assert shown(ours, plain).partition("User: Rain?\n\nAssistant:")[2] == (
        f'⟦ <tool_call>\n{{"name": "weather", "arguments": {{"city": "Ulm"}}}}\n</tool_call>{E}⟧'
        f"User: <tool_response>\nrain\n</tool_response>\n\nAssistant:⟦ Yes.{E}⟧"
    )


def test_other_roles_can_be_learned(ours: Tokenizer) -> None:
    assert shown(ours, encode_with_loss_mask(ours, DIALOGUE, learn=("user",))) == (
        f"{B}Brief.<｜User｜>⟦2+2?⟧<｜Assistant｜>4{E}<｜User｜>⟦Sure?⟧<｜Assistant｜>Yes.{E}"
    )
    everything = encode_with_loss_mask(ours, DIALOGUE, learn=("system", "user", "assistant"))
    assert shown(ours, everything) == (
        f"{B}⟦Brief.⟧<｜User｜>⟦2+2?⟧<｜Assistant｜>⟦4{E}⟧<｜User｜>⟦Sure?⟧<｜Assistant｜>⟦Yes.{E}⟧"
    )
    assert not any(encode_with_loss_mask(ours, DIALOGUE, learn=()).learned)


def test_a_developer_is_a_system_message_where_the_template_knows_none(ours: Tokenizer) -> None:
    developer = [{**DIALOGUE[0], "role": "developer"}, *DIALOGUE[1:]]
    assert encode_with_loss_mask(ours, developer) == encode_with_loss_mask(ours, DIALOGUE)


texts = st.text("天下势大 \n:<｜", max_size=8)
answers = st.text("twofive.#: \n<", max_size=10)
turns = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": texts}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": answers}, optional={"reasoning_content": answers}),
)
CHINESE_OR_MARKER = [*"天下势大", "Instruction", "im_start", "INST]", "<｜User｜>", "<｜Assistant｜>", "outputs"]


@pytest.mark.parametrize("family", sorted(set(TEMPLATES) - {"deepseek-llm"}))
@given(messages=st.lists(turns, min_size=1, max_size=6), thinking=st.sampled_from(["keep", "drop"]))
def test_every_learned_token_lies_in_an_assistants_turn(
    ours: Tokenizer, all_markers_tokenizer: Tokenizer, family: str, messages: list[dict[str, Any]], thinking: Any
) -> None:
    for tokenizer in (ours, all_markers_tokenizer):
        try:
            sample = encode_with_loss_mask(tokenizer, messages, template=TEMPLATES[family], thinking=thinking)
        except DataError:
            continue
        assert len(sample.learned) == len(sample.tokens)
        stretches = shown(tokenizer, sample).split("⟦")[1:]
        spans = sum(m["role"] == "assistant" for m in messages) - sample.left_out
        assert len(stretches) <= spans if family == "mistral" else len(stretches) == spans  # its answers may touch
        for stretch in stretches:
            learned = stretch.partition("⟧")[0]
            assert not [word for word in CHINESE_OR_MARKER if word in learned]


@pytest.mark.parametrize("family", sorted(TEMPLATES))
@given(content=st.text("\n :.#<ab", max_size=6))
def test_what_is_learned_begins_after_the_prompt_even_where_a_token_spans_both(
    ours: Tokenizer, family: str, content: str
) -> None:
    question = [{"role": "user", "content": "2+2?"}]
    answered = [*question, {"role": "assistant", "content": content}]
    sample = encode_with_loss_mask(ours, answered, template=TEMPLATES[family])
    prompt = encode_chat(ours, question, TEMPLATES[family])
    if family == "deepseek-r1":
        prompt = encode_chat(ours, question, TEMPLATES["deepseek-v3"])
    before = b"".join(map(ours.token_bytes, prompt))
    start = sample.learned.index(True)
    assert b"".join(map(ours.token_bytes, sample.tokens[:start])).startswith(before)


@pytest.mark.parametrize("said", [*SPECIAL_TOKENS, "</think>"])
def test_special_tokens_in_texts_stay_text(ours: Tokenizer, said: str) -> None:
    def specials(text: str, template: str) -> list[int]:
        answer = {"role": "assistant", "content": f"a{text}" if text != "</think>" else "a", "reasoning_content": text}
        sample = encode_with_loss_mask(ours, [{"role": "user", "content": text}, answer], template=template)
        return [token for token in sample.tokens if token in ours.special_ids]

    for template in (TEMPLATES["fathom"], TEMPLATES["deepseek-v2"], FOREIGN):
        assert specials(said, template) == specials("plain", template)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user"}], r"messages\[0\]\.content"),
        ([DIALOGUE[1], {"role": "assistant", "content": "x", "reasoning": 3}], r"messages\[1\]\.reasoning_content"),
        ([{"role": "king", "content": "x"}], "unknown role king"),
    ],
)
def test_malformed_messages_name_the_field(ours: Tokenizer, messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        encode_with_loss_mask(ours, messages)


def test_the_distills_template_is_learned_with_its_reasoning_and_calls(ours: Tokenizer) -> None:
    sample = encode_with_loss_mask(ours, REASONED[1:], template=R1)
    assert shown(ours, sample) == (
        f"{B}<｜User｜>2+2?<｜Assistant｜>⟦4{E}⟧<｜User｜>Sure?<｜Assistant｜><think>\n"
        f"⟦two and two\n</think>\n\nYes.{E}⟧"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    called = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    learned = shown(ours, encode_with_loss_mask(ours, called, template=R1))
    assert '<｜tool▁sep｜>add\n{"a": 2}<｜tool▁call▁end｜>⟧' in learned
