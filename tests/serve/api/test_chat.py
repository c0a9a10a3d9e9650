from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serve.serving import NAME

HELLO: list[Any] = [{"role": "user", "content": "The river"}]


def test_a_chat_is_answered_with_usage_and_reason(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=9, temperature=0)
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == NAME
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 9


@pytest.mark.parametrize("extra", [{}, {"n": 3, "seed": 4, "temperature": 1.0}])
def test_streamed_deltas_join_to_the_whole_answer(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 24, "seed": 4, "logprobs": True} | extra
    whole = client.chat.completions.create(**asked)
    texts = [""] * len(whole.choices)
    reasons: list[str | None] = [None] * len(whole.choices)
    logprobs: list[list[float]] = [[] for _ in whole.choices]
    usage = None
    roles = 0
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            roles += choice.delta.role == "assistant"
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            logprobs[choice.index] += (
                [token.logprob for token in (choice.logprobs.content or [])] if choice.logprobs else []
            )
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == len(texts)  # one seed for all of them, but each has draws of its own
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == len(whole.choices)
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    for found, choice in zip(logprobs, whole.choices, strict=True):
        assert choice.logprobs is not None
        assert found == pytest.approx([token.logprob for token in choice.logprobs.content or []], abs=1e-4)
