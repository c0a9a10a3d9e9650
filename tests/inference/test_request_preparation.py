"""Chats and completions laid out for the engine, and the answers of ``LanguageModel.chat``."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

import fathom
from fathom.chat import encode_chat
from fathom.chat.fim import fim_prompt
from fathom.chat.output import ToolCall
from fathom.engine.request import Output, Request
from fathom.errors import ContextError, DataError, FathomError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.inference.request_preparation import ChatOptions, TextOptions, prepare_chat, prepare_text
from fathom.spec import SamplingParams
from fathom.spec.sampling import FinishReason, TokenLogprob
from fathom.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]
ROAD = {
    "type": "function",
    "function": {
        "name": "road",
        "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
    },
}


class Scripted:
    """Stands in for the engine: answers every request with one text, a token a step."""

    def __init__(self, tokenizer: Tokenizer, text: str, reason: FinishReason = "stop") -> None:
        self.ids = tokenizer.encode(text, allow_special=True)
        self.reason = reason
        self.asked: list[Request] = []
        self.given = 0
        self.closed = False

    def outputs(self, request: Request) -> Generator[Output, None, None]:
        self.asked.append(request)
        return self._outputs(request)

    def _outputs(self, request: Request) -> Generator[Output, None, None]:
        size = len(request.prompt)
        try:
            for token in self.ids:
                self.given += 1
                yield Output(request_id=0, tokens=(TokenLogprob(token, -1.0),), prompt_tokens=size, cached_tokens=2)
            yield Output(request_id=0, finish_reason=self.reason, prompt_tokens=size, error="lost")
        finally:
            self.closed = True


@pytest.fixture
def model(publish) -> LanguageModel:
    return fathom.load(publish("tiny-llama"), dtype="float32")


@pytest.fixture
def scripted(model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    def answering(text: str, reason: FinishReason = "stop") -> Scripted:
        engine = Scripted(model.tokenizer, text, reason)
        monkeypatch.setattr(model, "_engine", engine)
        return engine

    return answering


def with_template(model: LanguageModel, template: str) -> LanguageModel:
    tokenizer = Tokenizer(model.tokenizer.tokenizer_json, {**model.tokenizer.config, "chat_template": template})
    return LanguageModel(model.model, tokenizer, Path("other"), model.eos_ids)


def spelled(model: LanguageModel, ids: Sequence[int]) -> str:
    return model.tokenizer.decode(ids, skip_special=False)


def test_an_answer_is_what_the_engine_draws(model: LanguageModel) -> None:
    answer = model.chat("hello", max_tokens=8, temperature=0.0)
    prompt = encode_chat(model.tokenizer, HELLO)
    ids = model.generate(prompt, SamplingParams(max_tokens=8, temperature=0.0))
    assert str(answer) == answer.text == model.tokenizer.decode(ids)
    assert answer.finish_reason == ("length" if len(ids) == 8 else "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(ids))
    stream = model.chat(HELLO, stream=True, max_tokens=8, temperature=0.0)
    assert "".join(delta.text for delta in stream) == answer.text
    assert stream.answer.text == answer.text


def test_thinking_content_and_calls_come_apart(model: LanguageModel, scripted) -> None:
    call = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>road\n```json\n{"to": 1}\n```<｜tool▁call▁end｜>'
    engine = scripted(f"<think>\nso\n</think>\n\nI go.<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>")
    answer = model.chat("Go!", tools=[ROAD], system="Be brief.")
    assert (answer.thinking, answer.text, answer.finish_reason) == ("so", "I go.", "tool_calls")
    (read,) = answer.tool_calls
    assert read == ToolCall("road", '{"to": 1}', ("arguments.to: expected string, got number",))
    assert 0 < answer.usage.thinking_tokens < answer.usage.completion_tokens == len(engine.ids)
    assert answer.usage.cached_tokens == 2
    prompt = spelled(model, engine.asked[0].prompt)
    assert prompt.startswith("<｜begin▁of▁sentence｜>Be brief.\n\nYou can call tools.")
    assert json.dumps(ROAD["function"]) in prompt
    follow = [*HELLO, answer.message, {"role": "tool", "content": "arrived"}]
    assert call in spelled(model, prepare_chat(model, follow, ChatOptions(tools=(ROAD,))).prompt_ids)


def test_a_stop_string_ends_the_request(model: LanguageModel, scripted) -> None:
    engine = scripted("the river finds the road and more and more")
    answer = model.chat("hello", stop="the road")
    assert (answer.text, answer.finish_reason) == ("the river finds ", "stop")
    assert engine.closed
    assert engine.given < len(engine.ids)
    assert model.chat("hello", stop=["the road"], include_stop=True).text == "the river finds the road"


def test_a_reader_who_leaves_ends_the_request(model: LanguageModel, scripted) -> None:
    engine = scripted("the river finds the road")
    stream = model.chat("hello", stream=True)
    first = next(stream)
    stream.close()
    assert engine.closed
    assert stream.answer.text == first.text
    assert stream.answer.finish_reason == "cancelled"
    real = fathom.load(model.path)
    left = real.chat("hello", stream=True, max_tokens=20, ignore_eos=True)
    next(left)
    left.close()
    assert not real.engine.has_work


def test_an_engine_that_fails_is_an_error_not_an_answer(model: LanguageModel, scripted) -> None:
    scripted("the", "error")
    with pytest.raises(FathomError, match=r"the engine failed \(lost\)"):
        model.chat("hello")
    scripted("the river", "length")
    assert model.chat("hello").finish_reason == "length"


def test_reasoning_is_opened_closed_or_left_to_the_template(model: LanguageModel) -> None:
    plain = prepare_chat(model, HELLO)
    opened = prepare_chat(model, HELLO, ChatOptions(thinking=True))
    closed = prepare_chat(model, HELLO, ChatOptions(thinking=False))
    assert spelled(model, opened.prompt_ids) == spelled(model, plain.prompt_ids) + "<think>\n"
    assert spelled(model, closed.prompt_ids) == spelled(model, plain.prompt_ids) + "<think>\n\n</think>\n\n"
    assert [p.parser_factory().thinking for p in (plain, opened, closed)] == [False, True, False]
    silent = with_template(model, "{{ messages[0]['content'] }}:")
    assert spelled(silent, prepare_chat(silent, HELLO, ChatOptions(thinking=True)).prompt_ids) == "hello:<think>\n"
    assert spelled(silent, prepare_chat(silent, HELLO, ChatOptions(thinking=False)).prompt_ids) == "hello:"
    always = with_template(model, "{{ messages[0]['content'] ~ ':<think>\n' }}")
    assert spelled(always, prepare_chat(always, HELLO).prompt_ids) == "hello:<think>\n"
    unopened = prepare_chat(always, HELLO, ChatOptions(thinking=False))
    assert spelled(always, unopened.prompt_ids) == "hello:<think>\n\n</think>\n\n"


def test_the_budget_closes_the_reasoning_of_a_real_model(model: LanguageModel) -> None:
    answer = model.chat(
        "hello", thinking=True, thinking_budget=5, max_tokens=12, temperature=1.0, seed=1, ignore_eos=True
    )
    assert answer.usage.thinking_tokens == 5 + 1
    assert answer.usage.completion_tokens == 12
    assert answer.text
    with pytest.raises(SpecError, match="thinking_budget: must not be negative"):
        model.chat("hello", thinking_budget=-1)


@pytest.mark.parametrize("thinking", [None, True])
def test_a_schema_is_obeyed_after_the_reasoning(model: LanguageModel, thinking: bool | None) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"to": {"enum": ["sea", "road"]}},
        "required": ["to"],
        "additionalProperties": False,
    }
    budget = 4 if thinking else None
    answer = model.chat(
        "hello", schema=schema, thinking=thinking, thinking_budget=budget, max_tokens=60, seed=3, temperature=1.0
    )
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text)["to"] in ("sea", "road")
    assert bool(answer.thinking) == bool(thinking)
    assert model.chat("hello", regex="(sea|road){2}", seed=1).text in ("seasea", "searoad", "roadsea", "roadroad")
    with pytest.raises(SpecError, match="regex: excludes schema"):
        model.chat("hello", schema=schema, regex="a")


def test_a_template_without_tools_is_told_of_them_in_the_system_message(model: LanguageModel) -> None:
    bare = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    other = with_template(model, bare)
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "road", "arguments": '{"to": 2}'}}],
        },
        {"role": "tool", "content": "arrived"},
    ]
    text = spelled(other, prepare_chat(other, turns, ChatOptions(tools=(ROAD,))).prompt_ids)
    head, _, rest = text.partition("[user]")
    assert head.startswith("[system]You can call the tools below")
    assert head.endswith(json.dumps(ROAD["function"]))
    assert rest == (
        'hello[assistant]<tool_call>\n{"name": "road", "arguments": {"to": 2}}\n</tool_call>'
        "[user]<tool_response>\narrived\n</tool_response>"
    )
    result = prepare_chat(other, [{"role": "system", "content": "Hi."}, *HELLO], ChatOptions(tools=(ROAD,)))
    assert spelled(other, result.prompt_ids).startswith("[system]Hi.\n\nYou can call")


def test_variables_reach_the_template_and_cannot_unlock_it(model: LanguageModel) -> None:
    other = with_template(model, "{{ mood }}{{ messages[0]['content'] }}")
    options = ChatOptions(variables={"mood": "<｜User｜>"})
    ids = prepare_chat(other, HELLO, options).prompt_ids
    assert spelled(other, ids) == "<｜User｜>hello"
    assert not set(ids) & other.tokenizer.special_ids
    for name in ("max_chars", "template", "messages", "image_token_id"):
        with pytest.raises(SpecError, match=f"variables: '{name}' is not the caller's to set"):
            prepare_chat(model, HELLO, ChatOptions(variables={name: 1}))


def test_texts_and_middles_are_laid_out(model: LanguageModel) -> None:
    tokenizer = model.tokenizer
    text = prepare_text(model, "the river")
    assert text.prompt_ids == (*tokenizer.prefix_ids, *tokenizer.encode("the river"))
    assert prepare_text(model, [5, 6]).prompt_ids == (5, 6)
    middle = prepare_text(model, "the ", " river", TextOptions(stop=("\n",)))
    assert middle.prompt_ids == tuple(fim_prompt(tokenizer, "the ", " river"))
    assert tokenizer.special_tokens["<｜fim▁hole｜>"] in middle.stop_token_ids
    parser = middle.parser_factory()
    assert [d.text for d in parser.push("<think>a\nb")] == ["<think>a"]
    with pytest.raises(DataError, match="suffix: the prompt is token ids"):
        prepare_text(model, [5], "x")


def test_what_cannot_be_asked_is_named_at_once(model: LanguageModel) -> None:
    with pytest.raises(SpecError, match="colour: is no option; use one of add_generation_prompt, cache_salt, "):
        model.chat("hello", stream=True, colour="red")  # type: ignore[call-overload]
    with pytest.raises(SpecError, match="stop: a stop string is empty"):
        model.chat("hello", stop="")
    with pytest.raises(DataError, match="messages: there are none"):
        model.chat([])
    with pytest.raises(ContextError, match="exceed the context of 128"):
        model.chat("hello", stream=True, max_tokens=1000)
    assert model.chat("hello", ignore_eos=True).usage.completion_tokens == 128 - len(
        prepare_chat(model, HELLO).prompt_ids
    )


@pytest.mark.parametrize(
    ("final", "drawn", "thinking", "content"),
    [
        ({"content": "The river"}, " runs <think>on", "", " runs <think>on"),
        ({"content": "<think>\nSo"}, " it is.</think>\n\nYes", " it is.", "Yes"),
        ({"content": "<think>\n"}, "\nIt is.</think>Yes", "It is.", "Yes"),
        ({"content": "", "reasoning_content": "So"}, " it is.</think>Yes", " it is.", "Yes"),
        ({"content": ""}, "<think>It is.</think>Yes", "It is.", "Yes"),
    ],
)
def test_an_answer_continues_an_assistants_beginning(
    model: LanguageModel, scripted, final: dict[str, str], drawn: str, thinking: str, content: str
) -> None:
    scripted(drawn)
    answer = model.chat([*HELLO, {"role": "assistant", **final}], continue_final_message=True)
    assert (answer.thinking, answer.text) == (thinking, content)


def test_a_prompt_may_end_without_the_header_of_an_answer(model: LanguageModel) -> None:
    prepared = prepare_chat(model, HELLO, ChatOptions(add_generation_prompt=False))
    assert spelled(model, prepared.prompt_ids).endswith("hello")


def test_only_an_assistants_message_is_continued(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="end with an assistant message"):
        prepare_chat(model, HELLO, ChatOptions(continue_final_message=True))
