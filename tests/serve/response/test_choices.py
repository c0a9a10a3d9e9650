"""Streamed chunks against the whole answer, for every way to cut an answer into events."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.serve.response.answers import FRAGMENTS, HERMES, SECTION, choice, outputs


def merged(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a stream together as OpenAI's client does: texts are joined, and calls are distinguished by their index."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}, "problems": [], "logprobs": []}
    for chunk in chunks:
        delta = chunk["delta"]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        message["problems"] += delta.get("fathom", {}).get("problems", [])
        message["logprobs"] += (chunk["logprobs"] or {}).get("content", [])
        for call in delta.get("tool_calls", []):
            index = call.pop("index")
            assert index not in message["calls"], "two calls of one stream share an index"
            message["calls"][index] = call
    message["finish_reason"] = chunks[-1]["finish_reason"]
    return message


@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=6),
    events=st.lists(st.integers(0, 400), max_size=20),
    logprobs=st.booleans(),
)
@example(fragments=[HERMES, HERMES], events=[], logprobs=False)
@example(fragments=[SECTION, SECTION], events=[], logprobs=True)
@settings(max_examples=150, deadline=None)
def test_a_stream_cut_anywhere_is_the_whole_answer_with_every_call_once(
    fragments: list[str], events: list[int], logprobs: bool
) -> None:
    streamed, chunks = choice(logprobs=logprobs), []
    for place, output in enumerate(outputs("".join(fragments))):
        streamed.push(output)
        if place in events or output.finish_reason is not None:
            chunks += [json.loads(piece) for piece in streamed.chunks()]
    whole, message = streamed.to_json(), merged(chunks)
    calls = whole["message"].get("tool_calls", [])
    assert message["content"] == (whole["message"]["content"] or "")
    assert message["reasoning_content"] == (whole["message"]["reasoning_content"] or "")
    assert list(message["calls"]) == list(range(len(calls)))
    assert list(message["calls"].values()) == calls
    assert len({call["id"] for call in calls}) == len(calls)
    assert message["problems"] == whole["message"].get("fathom", {}).get("problems", [])
    assert message["finish_reason"] == whole["finish_reason"]
    assert message["logprobs"] == (whole["logprobs"] or {"content": []})["content"]
