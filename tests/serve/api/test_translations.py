"""Any conversation of items or blocks becomes a chat request, or is refused by the field at fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.serve.api.messages_translation import MessagesTranslation
from fathom.serve.api.responses_translation import ResponsesTranslation
from fathom.serve.errors import ApiError
from fathom.serve.schemas.messages import MessagesRequest
from fathom.serve.schemas.responses import Item, ResponsesRequest

T = TypeVar("T")
WORDS = st.text("abc \n", min_size=1, max_size=6)
SOURCES = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "QQ=="},
        {"type": "text", "media_type": "text/plain", "data": "document"},
        {"type": "url", "url": "https://example.org/a.png"},
        {"type": "file", "file_id": "f"},
        {"type": "content", "content": "inner"},
    ]
)
LEAVES = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "image", "document", "thinking", "redacted_thinking", "tool_use", "search_result", "x"]
        )
    },
    optional={"text": WORDS, "thinking": WORDS, "signature": WORDS, "id": WORDS, "name": WORDS, "source": SOURCES},
)
BLOCKS = st.one_of(
    LEAVES,
    st.fixed_dictionaries(
        {"type": st.just("tool_result")},
        optional={
            "tool_use_id": WORDS,
            "content": st.one_of(WORDS, st.lists(LEAVES, max_size=2)),
            "is_error": st.booleans(),
        },
    ),
)
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.one_of(WORDS, st.lists(BLOCKS, min_size=1, max_size=3)),
    }
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "input_file", "reasoning_text"])},
    optional={"text": WORDS, "refusal": WORDS, "image_url": WORDS},
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "web_search_call"]),
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": st.one_of(WORDS, st.lists(PARTS, max_size=2)),
        "output": st.one_of(WORDS, st.lists(PARTS, max_size=2)),
        "call_id": WORDS,
        "name": WORDS,
        "arguments": st.just("{}"),
        "encrypted_content": WORDS,
    },
)


def texts(value: Any) -> str:
    """Join all texts of a chat request's messages."""
    if isinstance(value, dict):
        return "\n".join(texts(each) for each in value.values())
    if isinstance(value, list):
        return "\n".join(texts(each) for each in value)
    return value if isinstance(value, str) else ""


def made(translate: Callable[[], T]) -> T | None:
    """Return the translation, or None where it is refused by the field at fault."""
    refusal: ApiError | None = None
    try:
        return translate()
    except ApiError as error:
        refusal = error
    assert refusal.status == 400
    assert refusal.param is not None
    assert refusal.message.startswith(f"{refusal.param}: ")
    return None


@given(turns=st.lists(TURNS, min_size=1, max_size=5), system=st.one_of(st.none(), WORDS))
@settings(max_examples=200, deadline=None)
def test_turns_of_blocks(turns: list[dict[str, Any]], system: str | None) -> None:
    body = MessagesRequest.model_validate({"model": "m", "max_tokens": 1, "messages": turns, "system": system})
    translation = made(lambda: MessagesTranslation(body))
    if translation is None:
        return
    said = texts(translation.chat.model_dump(exclude_none=True)["messages"])
    for turn in turns:
        blocks = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        assert all(block["text"] in said for block in blocks if block["type"] == "text")
    roles = [message.role for message in translation.chat.messages]
    assert all(pair != ("user", "user") for pair in itertools.pairwise(roles))


@given(items=st.lists(ITEMS, min_size=1, max_size=6), instructions=st.one_of(st.none(), WORDS))
@settings(max_examples=200, deadline=None)
def test_items(items: list[dict[str, Any]], instructions: str | None) -> None:
    body = ResponsesRequest.model_validate({"input": items, "instructions": instructions})
    translation = made(lambda: ResponsesTranslation(body, [], [Item.model_validate(item) for item in items]))
    if translation is None:
        return
    messages = translation.chat.messages
    said = texts(translation.chat.model_dump(exclude_none=True)["messages"])
    for item in items:
        if item.get("type", "message") == "message" and isinstance(item["content"], str):
            assert item["content"] in said
    calls = sum(len(message.tool_calls or ()) for message in messages)
    assert calls == sum(item.get("type") == "function_call" for item in items)
    for turns in range(1, translation.turns):
        kept = translation.without_first_turns(turns).messages
        assert kept[1 if kept[0].role == "system" else 0].role == "user"
