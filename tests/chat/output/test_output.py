"""Answers read piece by piece: any cut of the text gives what the whole text gives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fathom.chat.output import (
    Delta,
    OutputParser,
    ReasoningParser,
    StopStringChecker,
    StopStrings,
    ToolCall,
    ToolCallParser,
)
from fathom.chat.output.tools import MARKERS
from fathom.errors import SpecError
from fathom.tokenizer import Tokenizer, special

V3_CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Ulm"}\n```<｜tool▁call▁end｜>'
V31_CALL = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Bonn"}<｜tool▁call▁end｜>'
HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
BEGIN, END = special.TOOL_CALLS_BEGIN, special.TOOL_CALLS_END
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FRAGMENTS = (
    *MARKERS,
    "<think>",
    "</think>",
    "<",
    "<th",
    "</",
    "<｜tool",
    "\n",
    "  ",
    "stop",
    "st",
    "op",
    "a",
    '"',
    V3_CALL,
    V31_CALL,
    HERMES_CALL,
    '{"name": "weather", "arguments": {"city": "</tool_call>"}}',
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join)


def cuts(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def joined(deltas: Sequence[Delta]) -> list[tuple[str, object]]:
    """Join neighbours of one channel, as a client does."""
    out: list[tuple[str, object]] = []
    for delta in deltas:
        if delta.tool_call is not None:
            out.append(("tool_call", delta.tool_call))
        elif out and out[-1][0] == delta.channel:
            out[-1] = (delta.channel, str(out[-1][1]) + delta.text)
        else:
            out.append((delta.channel, delta.text))
    return out


def read(parser: OutputParser, pieces: Iterable[str]) -> list[tuple[str, object]]:
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return joined(deltas + parser.flush())


def stopped_by_formula(text: str, stops: Sequence[str], include: bool) -> str:
    """Grow the text by one character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[:end] if include else text[: end - max(map(len, ending))]
    return text


@given(
    text=st.text("abc<", max_size=30),
    stops=st.lists(st.text("abc<", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
    places=st.lists(st.integers(0, 30), max_size=12),
)
@example(text="xabcd", stops=["bc", "abcd"], include=False, places=[])
def test_stop_strings_end_the_text_where_the_first_is_complete(
    text: str, stops: list[str], include: bool, places: list[int]
) -> None:
    reader, shown = StopStrings(stops, include), ""
    expected = stopped_by_formula(text, stops, include)
    for piece in cuts(text, places):
        shown += reader.push(piece)[0]
        assert expected.startswith(shown)
    shown += reader.flush()
    assert shown == expected
    assert (reader.found is None) == (not any(stop in text for stop in stops))


def test_text_is_held_back_only_while_it_can_become_a_stop_string() -> None:
    reader = StopStrings(["END"])
    assert reader.push("the E") == ("the ", False)
    assert reader.push("N") == ("", False)
    assert reader.push("O") == ("ENO", False)
    assert reader.push("END of it") == ("", True)
    assert reader.push("more") == ("", True)
    assert (reader.found, reader.flush()) == ("END", "")
    with pytest.raises(SpecError, match="stop: a stop string is empty"):
        StopStrings([""])


def thinking_by_formula(text: str, starts_in_reasoning: bool) -> tuple[str, str]:
    """Split a whole answer by string methods."""
    start = text.lstrip()
    inside = starts_in_reasoning or start.startswith("<think>")
    if not inside:
        return "", text
    thought, closed, rest = start.removeprefix("<think>").partition("</think>")
    return (thought.strip() if closed else thought.lstrip()), rest.lstrip()


@given(text=texts, inside=st.booleans(), places=st.lists(st.integers(0, 300), max_size=40))
@settings(max_examples=200)
def test_thinking_is_what_stands_between_the_tags_at_the_beginning(text: str, inside: bool, places: list[int]) -> None:
    split = ReasoningParser(inside)
    parts = [part for piece in cuts(text, places) for part in split.push(piece)] + split.flush()
    found = tuple("".join(text for voice, text in parts if voice == name) for name in ("thinking", "content"))
    assert found == thinking_by_formula(text, inside)


@pytest.mark.parametrize(
    ("text", "inside", "thinking", "content"),
    [
        ("<think>\nso\n</think>\n\nYes", False, "so", "Yes"),
        ("so\n</think>\n\nYes", True, "so", "Yes"),
        ("<think>\nso</think>Yes", True, "so", "Yes"),
        ("\n<think>\n\n</think>\n\nYes", False, "", "Yes"),
        ("Yes, <think> is a tag </think>.", False, "", "Yes, <think> is a tag </think>."),
        ("so far", True, "so far", ""),
        ("\n <thin", False, "", "\n <thin"),
        ("  no thoughts", False, "", "  no thoughts"),
    ],
)
def test_thinking_examples(text: str, inside: bool, thinking: str, content: str) -> None:
    split = ReasoningParser(inside)
    parts = split.push(text) + split.flush()
    assert "".join(text for voice, text in parts if voice == "thinking") == thinking
    assert "".join(text for voice, text in parts if voice == "content") == content


@given(
    text=texts,
    places=st.lists(st.integers(0, 600), max_size=60),
    stops=st.sampled_from([(), ("stop",), ("stop", "a<"), ("\n",)]),
    include=st.booleans(),
    tools=st.booleans(),
)
@settings(max_examples=300, deadline=None)
@example(text=BEGIN + HERMES_CALL, places=list(range(200)), stops=(), include=False, tools=True)
@example(text=BEGIN + "\n" + V3_CALL + "st" + V31_CALL, places=[1], stops=("stop",), include=False, tools=True)
def test_any_cut_of_an_answer_gives_the_same(
    tokenizer: Tokenizer, text: str, places: list[int], stops: tuple[str, ...], include: bool, tools: bool
) -> None:
    def parser() -> OutputParser:
        return OutputParser(tokenizer, tools=[WEATHER] if tools else (), stops=stops, include_stop=include)

    whole = read(parser(), [text])
    assert read(parser(), cuts(text, places)) == whole
    assert read(parser(), list(text)) == whole


@given(text=texts, places=st.lists(st.integers(0, 300), max_size=30))
@settings(max_examples=200)
def test_no_text_is_lost_on_the_way_to_tool_calls(text: str, places: list[int]) -> None:
    parser = ToolCallParser()
    parts = [part for piece in cuts(text, places) for part in parser.push(piece)] + parser.flush()
    content = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if isinstance(part, ToolCall)]
    if not calls:
        assert content == text
    left = iter(text)
    assert all(character in left for character in content)  # nothing is added, nothing changes places


CALLS = {
    "V3, two": (
        f"Let me see.\n{BEGIN}{V3_CALL}\n{V3_CALL}{END}",
        ["Let me see.\n", ("weather", '{"city": "Ulm"}'), ("weather", '{"city": "Ulm"}')],
    ),
    "V3.1": (f"{BEGIN}{V31_CALL}{V31_CALL}{END}\n", [("weather", '{"city": "Bonn"}')] * 2),
    "V3.1, a tool named function": (
        f"{BEGIN}{V31_CALL.replace('weather', 'function')}{END}",
        [("function", '{"city": "Bonn"}')],
    ),
    "no outer markers": (V3_CALL, [("weather", '{"city": "Ulm"}')]),
    "Hermes": (f"{HERMES_CALL}\n{HERMES_CALL}\n", [("weather", '{"city": "Köln"}')] * 2),
    "a marker in a string": (
        '<tool_call>{"name": "f", "arguments": {"a": "\\"</tool_call>"}}</tool_call>',
        [("f", '{"a": "\\"</tool_call>"}')],
    ),
    "text after": (f"{BEGIN}{V3_CALL}{END}\n\nDone.", [("weather", '{"city": "Ulm"}'), "Done."]),
    "one good, one bad": (
        f"{BEGIN}{V3_CALL}\n<｜tool▁call▁begin｜>?<｜tool▁call▁end｜>{END}",
        [("weather", '{"city": "Ulm"}'), "<｜tool▁call▁begin｜>?<｜tool▁call▁end｜>"],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_every_form_are_read(name: str) -> None:
    text, expected = CALLS[name]
    parser = ToolCallParser()
    parts = parser.push(text) + parser.flush()
    assert [part if isinstance(part, str) else (part.name, part.arguments) for part in parts] == expected


@pytest.mark.parametrize(
    "text",
    [
        BEGIN,
        BEGIN + END,
        f"{BEGIN} and then?",
        f"{BEGIN}\n{V3_CALL[:-3]}",
        f"a {BEGIN}\n{V3_CALL.replace('}', '')}\n{END} b",
        V3_CALL.replace("weather", ""),
        V3_CALL.replace("<｜tool▁sep｜>", ""),
        V31_CALL.replace('{"city": "Bonn"}', "[1]"),
        V31_CALL.replace('"Bonn"', "NaN"),
        V31_CALL.replace('"Bonn"', "[" * 100_000),
        HERMES_CALL.replace('"name"', '"nam"'),
        HERMES_CALL.replace('{"city": "Köln"}', '"{}"'),
        HERMES_CALL.replace('"weather"', '"\\ud800"'),
        '<tool_call>{"a": "</tool_call> never closed',
    ],
)
def test_what_is_no_call_comes_back_as_it_was(text: str) -> None:
    parser = ToolCallParser()
    assert "".join(map(str, parser.push(text) + parser.flush())) == text


def test_calls_say_what_is_wrong_and_are_left_as_they_are() -> None:
    wrapped = V31_CALL.replace('{"city": "Bonn"}', '{"arguments": {"city": "Bonn"}}')
    unknown = V31_CALL.replace("weather", "whether")
    fine, wrong, other = ToolCallParser([WEATHER]).push(V31_CALL + wrapped + unknown)
    assert isinstance(fine, ToolCall)
    assert isinstance(wrong, ToolCall)
    assert isinstance(other, ToolCall)
    assert fine.problems == ()
    assert json.loads(wrong.arguments) == {"arguments": {"city": "Bonn"}}
    assert wrong.problems == (
        "arguments.city: is required and missing",
        "arguments.arguments: is not a parameter; there are city",
    )
    assert other.problems == ("name: unknown tool 'whether'; use one of weather",)


def as_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, allow_special=True)


def without_special_think(tokenizer: Tokenizer) -> Tokenizer:
    """Return a vocabulary in which the think tags are plain text, as in DeepSeek-V2's."""
    parsed = json.loads(tokenizer.tokenizer_json)
    think = {"<think>", "</think>"}
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in think]
    vocabulary = parsed["model"]["vocab"]
    parsed["model"]["vocab"] = {{"<think>": "<0>", "</think>": "<1>"}.get(t, t): i for t, i in vocabulary.items()}
    return Tokenizer(json.dumps(parsed), tokenizer.config)


@pytest.mark.parametrize("special_tags", [True, False])
def test_tokens_are_read_with_think_tags_as_special_tokens_or_as_text(tokenizer: Tokenizer, special_tags: bool) -> None:
    used = tokenizer if special_tags else without_special_think(tokenizer)
    assert ("<think>" in used.special_tokens) == special_tags
    text = f"<think>\n天下<｜User｜>\n</think>\n\nSee é.{BEGIN}{V3_CALL}{END}"
    for prompt, answer in (("<｜Assistant｜>", text), ("<｜Assistant｜><think>\n", text.removeprefix("<think>\n"))):
        parser = OutputParser(used, as_ids(used, prompt), tools=[WEATHER])
        assert parser.thinking == prompt.endswith("\n")
        deltas = [delta for token in as_ids(used, answer) for delta in parser.push_token(token)] + parser.flush()
        call = ToolCall("weather", '{"city": "Ulm"}')
        assert joined(deltas) == [("thinking", "天下"), ("content", "See é."), ("tool_call", call)]


def test_without_tools_their_markers_are_hidden_and_a_plain_text_is_left_alone(tokenizer: Tokenizer) -> None:
    ids = as_ids(tokenizer, f"<think>so</think>{BEGIN}x{END}")
    chat, text = OutputParser(tokenizer), OutputParser(tokenizer, as_ids(tokenizer, "<think>"), plain=True)
    assert joined([d for i in ids for d in chat.push_token(i)] + chat.flush()) == [("thinking", "so"), ("content", "x")]
    assert joined([d for i in ids for d in text.push_token(i)] + text.flush()) == [("content", "sox")]


def test_stop_strings_act_on_the_content_alone(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer, tools=[WEATHER], stops=["Ulm"])
    deltas = parser.push(f"<think>Ulm?</think>In {HERMES_CALL.replace('Köln', 'Ulm')} Ulm it rains")
    assert [d.text or d.channel for d in deltas] == ["Ulm?", "In ", "tool_call"]
    assert parser.stopped == "Ulm"
    assert parser.push("more") == parser.flush() == []


def test_an_unfinished_character_is_shown_as_such_at_the_end(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer)
    ids = tokenizer.encode("\U0001f600")
    assert len(ids) == 4
    assert joined([d for i in ids[:2] for d in parser.push_token(i)] + parser.flush()) == [("content", "\ufffd")]


@pytest.mark.parametrize("stops", [("</answer>",), ("er>", "é"), ("<|", "🙂", "zz"), (" ",)])
def test_a_stop_checker_ends_at_the_token_that_completes_a_stop_string(
    tokenizer: Tokenizer, stops: tuple[str, ...]
) -> None:
    text = "so it is</answ</answer> né 🙂 zz and on"
    ids = [*tokenizer.encode(text), tokenizer.eos_id, *tokenizer.encode(text)]
    checker, found = StopStringChecker(tokenizer, stops), None
    for count, token in enumerate(ids, start=1):
        if checker.append(token) and found is None:
            found = count
    decoded = [tokenizer.decode(ids[:count], skip_special=False, continues=True) for count in range(len(ids) + 1)]
    expected = [count for count, part in enumerate(decoded) if any(stop in part for stop in stops)]
    assert found == expected[0]
