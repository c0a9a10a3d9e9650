from __future__ import annotations

from typing import Any

import openai
import pytest

from fathom.inference.language_model import LanguageModel
from tests.serve.serving import NAME, Running


@pytest.fixture(scope="module")
def ids(opened: LanguageModel) -> list[int]:
    return [*opened.tokenizer.prefix_ids, *opened.tokenizer.encode("The river finds the road")]


def post(server: Running, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post("/v1/completions", json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_a_text_and_its_token_ids_are_continued_alike(server: Running, ids: list[int]) -> None:
    by_text = post(server, prompt="The river finds the road", max_tokens=12, temperature=0)
    by_ids = post(server, prompt=ids, max_tokens=12, temperature=0)
    assert by_text["choices"] == by_ids["choices"]
    assert by_ids["usage"]["prompt_tokens"] == len(ids)


def test_many_prompts_are_answered_in_order_n_times_each(client: openai.OpenAI, ids: list[int]) -> None:
    alone = [client.completions.create(model=NAME, prompt=p, max_tokens=6, temperature=0) for p in ("a", "The road")]
    both = client.completions.create(model=NAME, prompt=["a", "The road"], n=2, max_tokens=6, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [a.choices[0].text for a in alone for _ in range(2)]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)
    lists = client.completions.create(model=NAME, prompt=[ids, ids[:3]], max_tokens=2)
    assert len(lists.choices) == 2


def test_a_stream_joins_to_the_whole_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "The", "max_tokens": 30, "seed": 3, "echo": True}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text.startswith("The")
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echoed_log_probabilities_are_the_models_own(
    server: Running, opened: LanguageModel, ids: list[int], max_tokens: int
) -> None:
    """The request that evaluation harnesses score continuations by."""
    answer = post(server, prompt=[ids], echo=True, max_tokens=max_tokens, logprobs=1, temperature=0, seed=1234)
    found = answer["choices"][0]["logprobs"]
    expected = opened.logits(ids).log_softmax(-1)
    assert {name: len(column) for name, column in found.items()} == dict.fromkeys(found, len(ids) + max_tokens)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    for place in range(1, len(ids)):
        row = expected[place - 1]
        assert found["token_logprobs"][place] == pytest.approx(row[ids[place]].item(), abs=1e-4)
        assert max(found["top_logprobs"][place].values()) == pytest.approx(row.max().item(), abs=1e-4)
        greedy = found["token_logprobs"][place] == max(found["top_logprobs"][place].values())
        assert greedy == (row.argmax().item() == ids[place])
    text = opened.tokenizer.decode(ids)
    assert answer["choices"][0]["text"].startswith(text)
    if not max_tokens:
        assert answer["choices"][0]["text"] == text
        assert answer["usage"]["completion_tokens"] == 0


def test_the_entry_of_one_scored_token_is_there_even_if_it_is_the_end(server: Running, ids: list[int]) -> None:
    answer = post(server, prompt=ids, echo=True, max_tokens=1, logprobs=1, logit_bias={"1": 100})
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids) + 1


def test_offsets_of_tokens_lead_to_their_text(server: Running) -> None:
    answer = post(server, prompt="The river", echo=True, max_tokens=20, logprobs=0, seed=2)
    choice = answer["choices"][0]
    columns = choice["logprobs"]
    pairs = list(zip(columns["tokens"], columns["text_offset"], strict=True))
    assert pairs[0][1] == 0
    whole = [(token, offset) for token, offset in pairs if not token.startswith(("bytes:", "<｜"))]
    assert len(whole) > 5
    plain = [(token, offset) for token, offset in whole if choice["text"][offset:].startswith(token)]
    assert len(plain) >= len(whole) - 2  # one right after a broken character may be moved


def test_a_hole_is_filled_between_prefix_and_suffix(client: openai.OpenAI, opened: LanguageModel) -> None:
    filled = client.completions.create(
        model=NAME, prompt="def add(a, b):\n", suffix="\nprint(add(1, 2))", max_tokens=8, temperature=0
    )
    special = opened.tokenizer.special_tokens
    ids = [
        *opened.tokenizer.prefix_ids,
        special["<｜fim▁begin｜>"],
        *opened.tokenizer.encode("def add(a, b):\n"),
        special["<｜fim▁hole｜>"],
        *opened.tokenizer.encode("\nprint(add(1, 2))"),
        special["<｜fim▁end｜>"],
    ]
    stops = [special[f"<｜fim▁{name}｜>"] for name in ("begin", "hole", "end")]
    same = client.completions.create(
        model=NAME, prompt=ids, max_tokens=8, temperature=0, extra_body={"stop_token_ids": stops}
    )
    assert filled.choices[0].text == same.choices[0].text
    assert filled.usage is not None
    assert filled.usage.prompt_tokens == len(ids)


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "The", "max_tokens": 60, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[10:13]
    cut = client.completions.create(stop=[stop], **asked)
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.completions.create(stop=[stop], stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("best_of", {"best_of": 3}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [1, "a"]}),
        ("prompt", {"prompt": [100_000]}),
        ("echo", {"suffix": "x", "echo": True}),
        ("suffix", {"prompt": [1, 2], "suffix": "x"}),
        ("logprobs", {"logprobs": 21}),
        ("max_tokens", {"max_tokens": 3.5}),
        ("max_tokens", {"max_tokens": "3"}),
        ("max_tokens", {"max_tokens": True}),
        ("temperature", {"temperature": -1}),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("logit_bias", {"logit_bias": {"999999": 1}}),
        ("stop[1]", {"stop": ["a", "b" * 1000]}),
        ("seed", {"seed": 1 << 64}),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(server: Running, field: str, body: dict[str, Any]) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "a", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert ";" in error["message"]


def test_harmless_fields_of_openais_interface_are_ignored(server: Running) -> None:
    post(server, prompt="a", max_tokens=1, user="u", metadata={"a": "b"}, service_tier="auto", best_of=1, suffix=None)
