"""Events of /v1/responses against the whole response, for every way to cut an answer into events."""

from __future__ import annotations

from typing import Any

import openai.types.responses as types
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState

from fathom.serve.api.responses import echo
from fathom.serve.errors import ApiError
from fathom.serve.response.choices import ChatChoiceBuilder
from fathom.serve.response.encoder import ResponseMetadata, Usage
from fathom.serve.response.opaque import carried
from fathom.serve.response.responses_encoder import ResponsesEncoder
from fathom.serve.schemas.responses import ResponsesRequest
from tests.serve.response.answers import FRAGMENTS, HERMES, begun, choice, named_events, outputs

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(types.ResponseStreamEvent)


def encoder(answer: ChatChoiceBuilder, kept: list[Any], *, carry: bool = False) -> ResponsesEncoder:
    metadata = ResponseMetadata(response_id="resp_1", model="tiny", created=5)
    fields = echo(ResponsesRequest.model_validate({"input": "a", "metadata": {"k": "v"}}))
    return ResponsesEncoder(
        answer, metadata, fields, carry_reasoning=carry, on_complete=lambda body, nbytes: kept.append(body)
    )


def events(text: str) -> list[dict[str, Any]]:
    found = named_events(text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def answered(
    text: str, cuts: list[int], reason: str = "stop", *, logprobs: bool = False, carry: bool = False
) -> tuple[dict[str, Any], list[Any]]:
    """Return the response and its events; ``cuts`` as in ``begun``."""
    answer, kept = choice(logprobs=logprobs), []  # type: ignore[var-annotated]
    written = encoder(answer, kept, carry=carry)
    sent = begun(written, answer, text, cuts, reason)
    usage = Usage.of([answer], 1)
    found = events(sent + written.end(usage))
    whole = written.body(usage)
    assert kept == [found[-1]["response"], whole]
    return whole, found


def sorted_by_item(sent: list[Any], kind: str, field: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for event in sent:
        if event["type"] == kind:
            texts[event["item_id"]] = texts.get(event["item_id"], "") + event[field]
    return texts


@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=20),
    reason=st.sampled_from(["stop", "length"]),
    logprobs=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_events_cut_anywhere_are_the_whole_response(
    fragments: list[str], cuts: list[int], reason: str, logprobs: bool
) -> None:
    whole, sent = answered("".join(fragments), cuts, reason, logprobs=logprobs)
    types.Response.model_validate(whole)
    state = ResponseStreamState(input_tools=omit, text_format=omit)  # type: ignore[var-annotated]
    for event in sent:
        state.handle_event(EVENT.validate_python(event))
    assert [event["type"] for event in sent[:2]] == ["response.created", "response.in_progress"]
    assert sent[-1]["type"] == ("response.incomplete" if reason == "length" else "response.completed")
    whole["completed_at"] = sent[-1]["response"]["completed_at"]
    assert sent[-1]["response"] == whole
    done = [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    added = [event["item"]["id"] for event in sent if event["type"] == "response.output_item.added"]
    assert done == whole["output"]
    assert added == [item["id"] for item in done]
    texts = sorted_by_item(sent, "response.output_text.delta", "delta")
    thoughts = sorted_by_item(sent, "response.reasoning_text.delta", "delta")
    calls = sorted_by_item(sent, "response.function_call_arguments.delta", "delta")
    streamed: dict[str, list[Any]] = {}
    for event in sent:
        if event["type"] == "response.output_text.delta":
            streamed.setdefault(event["item_id"], []).extend(event["logprobs"])
    for item in done:
        if item["type"] == "function_call":
            assert calls[item["id"]] == item["arguments"]
            continue
        (content,) = item["content"]
        assert (texts | thoughts).get(item["id"], "") == content["text"]
        if item["type"] == "message":
            assert streamed.get(item["id"], []) == content["logprobs"]
            assert bool(content["logprobs"]) == (logprobs and bool(content["text"]))


@pytest.mark.parametrize(("text", "kinds"), [("", ["message"]), ("<think>a</think>", ["reasoning", "message"])])
def test_an_answer_without_text_has_an_empty_message(text: str, kinds: list[str]) -> None:
    whole, _ = answered(text, [])
    assert [item["type"] for item in whole["output"]] == kinds
    assert whole["output"][-1]["content"][0]["text"] == ""


def test_reasoning_is_carried_where_it_is_asked_for() -> None:
    whole, _ = answered("<think>why</think>text", [], carry=True)
    assert carried(whole["output"][0]["encrypted_content"]) == "why"
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "why"}]
    assert "encrypted_content" not in answered("<think>why</think>text", [])[0]["output"][0]


def test_log_probabilities_are_those_of_the_text() -> None:
    whole, _ = answered(f"<think>why</think>text {HERMES}", [], logprobs=True)
    reasoning, message, call = whole["output"]
    assert "logprobs" not in reasoning["content"][0]
    assert "logprobs" not in call
    assert "".join(entry["token"] for entry in message["content"][0]["logprobs"]).strip().startswith("text")


def test_an_error_while_streaming_fails_the_response() -> None:
    kept: list[Any] = []
    answer = choice()
    written = encoder(answer, kept)
    first = written.begin()
    answer.push(outputs("text")[0])
    failed = events(first + written.update(answer) + written.error(ApiError(500, "broken")))[-1]
    assert EVENT.validate_python(failed).response.status == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "broken"}
    assert failed["response"]["output"][0]["status"] == "incomplete"
    assert kept == []
