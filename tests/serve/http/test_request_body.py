"""Errors of request bodies name the field."""

from __future__ import annotations

from typing import Any

import pytest

from fathom.serve.errors import ApiError
from fathom.serve.http.request_body import parse_body
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.completions import CompletionRequest


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (CompletionRequest, b'{"prompt": [[1, 2], [3, "a"]]}', "prompt[1][1]"),
        (CompletionRequest, b'{"prompt": 3}', "prompt"),
        (CompletionRequest, b'{"prompt": "a", "logit_bias": {"1": 101}}', "logit_bias.1"),
        (CompletionRequest, b'{"prompt": "a", "stop": ["a", 1]}', "stop[1]"),
        (CompletionRequest, b"{}", "prompt"),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": [{"text": "a"}]}]}',
            "messages[0].content[0].type",
        ),
        (ChatCompletionRequest, b'{"messages": [{"content": "a"}]}', "messages[0].role"),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "must"}',
            "tool_choice",
        ),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {}}]}',
            "tools[0].function.name",
        ),
    ],
)
def test_a_fault_is_located_in_what_was_sent(model: Any, body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(body, model)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")
    assert caught.value.status == 400
