"""Events of /v1/messages against the whole message, for every way to cut an answer into events."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import pydantic
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.serve.errors import ApiError
from fathom.serve.response.choices import ChatChoiceBuilder
from fathom.serve.response.encoder import ResponseMetadata, Usage
from fathom.serve.response.messages_encoder import MessagesEncoder
from fathom.serve.response.opaque import carried, carry
from tests.serve.response.answers import FRAGMENTS, HERMES, begun, choice, named_events

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)


def encoder(answer: ChatChoiceBuilder, **options: Any) -> MessagesEncoder:
    metadata = ResponseMetadata(response_id="msg_1", model="tiny", created=5)
    return MessagesEncoder(answer, metadata, prompt_tokens=9, request_id="r1", **options)


def answered(text: str, cuts: list[int], reason: str = "stop", **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the whole message and its events; ``cuts`` as in ``begun``."""
    answer = choice(stops=options.pop("stops", ()), single_call=options.pop("single_call", False))
    written = encoder(answer, **options)
    sent = begun(written, answer, text, cuts, reason)
    usage = Usage.of([answer], 1)
    return written.body(usage), named_events(sent + written.end(usage))


@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=20),
    reason=st.sampled_from(["stop", "length"]),
    omit=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_events_cut_anywhere_accumulate_to_the_whole_message(
    fragments: list[str], cuts: list[int], reason: str, omit: bool
) -> None:
    whole, sent = answered("".join(fragments), cuts, reason, omit_thinking=omit)
    anthropic.types.Message.model_validate(whole)
    assert [event["type"] for event in sent[:2]] == ["message_start", "ping"]
    snapshot, buffers = None, {}  # type: ignore[var-annotated]
    for event in sent[:1] + sent[2:]:
        snapshot = accumulate_event(event=EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    found = snapshot.to_dict()
    del found["usage"], whole["usage"]["service_tier"]
    assert whole.pop("usage") == sent[-2]["usage"]
    assert found == whole
    opened = [event["index"] for event in sent if event["type"] == "content_block_start"]
    closed = [event["index"] for event in sent if event["type"] == "content_block_stop"]
    assert opened == closed == list(range(len(whole["content"])))


def test_the_reason_to_stop_is_named() -> None:
    assert answered("text ", [])[0]["stop_reason"] == "end_turn"
    assert answered("text ", [], "length")[0]["stop_reason"] == "max_tokens"
    assert answered(HERMES, [])[0]["stop_reason"] == "tool_use"
    stopped, _ = answered("text more", [], stops=(" more",))
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " more")
    assert stopped["content"] == [{"type": "text", "text": "text"}]


def test_a_single_call_ends_the_answer() -> None:
    one, _ = answered(HERMES + HERMES + "text", [], single_call=True)
    two, _ = answered(HERMES + HERMES, [])
    assert [block["type"] for block in one["content"]] == ["tool_use"]
    assert one["stop_reason"] == "tool_use"
    assert [block["input"] for block in two["content"]] == [{"a": 1}, {"a": 1}]


def test_omitted_reasoning_is_carried_by_the_signature() -> None:
    shown, _ = answered("<think>why not</think>text", [])
    hidden, sent = answered("<think>why not</think>text", [], omit_thinking=True)
    assert shown["content"][0]["thinking"] == "why not"
    assert carried(shown["content"][0]["signature"]) is None
    assert hidden["content"][0]["thinking"] == ""
    assert carried(hidden["content"][0]["signature"]) == "why not"
    assert "why not" not in json.dumps(sent)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_carried_reasoning_comes_back(text: str) -> None:
    assert carried(carry(text)) == text
    assert carried(text) is None or text == carry(carried(text) or "")


def test_an_error_while_streaming_is_an_event_in_anthropics_form() -> None:
    (event,) = named_events(encoder(choice()).error(ApiError(503, "over")))
    assert event == {"type": "error", "error": {"type": "overloaded_error", "message": "over"}, "request_id": "r1"}
