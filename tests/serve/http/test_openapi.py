"""The OpenAPI document against the server that it describes."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from pydantic import BaseModel

from fathom.serve.app import BODIES
from fathom.serve.schemas import messages_models as messages
from fathom.serve.schemas import response_models as answers
from fathom.serve.schemas import responses_models as outputs
from tests.serve.serving import Running

ROUTES = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/input_items",
    "/v1/responses/{response_id}/cancel",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{name}",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/health",
    "/ready",
    "/metrics",
}
SMALL = {"max_tokens": 2, "max_completion_tokens": 2, "n": 1, "stream": False}


def test_the_document_names_every_route_its_body_and_its_errors(server: Running) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    assert set(document["paths"]) == ROUTES
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert {"400", "401", "429", "500", "503"} <= set(operation["responses"])
            assert ("requestBody" in operation) == (path in BODIES)
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, answers.ChatCompletionResponse),
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}, answers.EmbeddingResponse),
        ("/v1/embeddings", {"input": "a"}, answers.EmbeddingResponse),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2, "n": 2},
            answers.ChatCompletionResponse,
        ),
        ("/v1/completions", {"prompt": "a"}, answers.CompletionResponse),
        ("/v1/completions", {"prompt": ["a"], "echo": True, "logprobs": 2}, answers.CompletionResponse),
        ("/tokenize", {"prompt": "a b", "return_token_strs": True}, answers.TokenizeResponse),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}]}, answers.TokenizeResponse),
        ("/detokenize", {"tokens": [5, 300, 100_000]}, answers.DetokenizeResponse),
        ("/v1/models", None, answers.ModelList),
        ("/tokenizer_info", None, answers.TokenizerInfo),
        ("/health", None, answers.HealthResponse),
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}, messages.MessageResponse),
        ("/v1/responses", {"input": "a", "max_output_tokens": 4, "top_logprobs": 1}, outputs.ResponseObject),
        ("/v1/responses/none", None, answers.ErrorResponse),
        ("/v1/messages", {}, messages.AnthropicErrorResponse),
        ("/v1/models/none", None, answers.ErrorResponse),
        ("/tokenize", {}, answers.ErrorResponse),
    ],
)
def test_answers_are_as_described(
    server: Running, path: str, body: dict[str, Any] | None, model: type[BaseModel]
) -> None:
    with server.http() as http:
        answer = (
            http.get(path)
            if body is None
            else http.post(path, json=({"max_tokens": 5} if "/v1" in path else {}) | body)
        )
    model.model_validate_json(answer.content, strict=True)


def test_text_comes_back_from_its_tokens(server: Running) -> None:
    with server.http() as http:
        made = http.post("/tokenize", json={"prompt": "The river<｜User｜>é"}).json()
        bare = http.post("/tokenize", json={"prompt": "The river", "add_special_tokens": False}).json()
        back = http.post("/detokenize", json={"tokens": made["tokens"]}).json()
    tokenizer = server.service.model.tokenizer
    assert made["tokens"][0] == tokenizer.bos_id
    assert tokenizer.special_tokens["<｜User｜>"] in made["tokens"]
    assert bare["tokens"] == tokenizer.encode("The river")
    assert back["prompt"] == "<｜begin▁of▁sentence｜>The river<｜User｜>é"


def attack(server: Running, examples: int) -> None:
    """Send what the document allows and what it forbids; nothing may be the server's fault or undescribed."""
    with server.http() as http:
        schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    schema.config.update(base_url=server.url)
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    ]
    for operation in schema.get_all_operations():
        found = operation.ok()

        @hypothesis.given(case=found.as_strategy())
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def run(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body |= {key: value for key, value in SMALL.items() if key in case.body}
            case.call_and_validate(checks=checks)

        run()


def test_no_request_is_the_servers_fault(server: Running) -> None:
    attack(server, 5)
    assert server.idle()
    with server.http() as http:
        assert http.get("/health").status_code == 200


@pytest.mark.slow
def test_no_request_of_many_is_the_servers_fault(server: Running) -> None:
    attack(server, 400)
    assert server.idle()


def test_streams_are_events_of_json(server: Running) -> None:
    with server.http() as http:
        text = http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 9, "logprobs": True},
        ).text
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert text.isascii()
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert len(chunk["choices"]) == 1
