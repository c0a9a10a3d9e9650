"""Named keys: the file that holds them, their limits over HTTP, and what is counted by their names."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import DataError, SpecError
from fathom.files import sha256
from fathom.serve.api_keys import ApiKey, read_key_file
from fathom.serve.key_usage import Budget, KeyRing, KeyUsage
from fathom.serve.metrics import Metrics
from fathom.serve.settings import ServeSettings
from tests.serve.serving import Serve, wait_until

KEY = "a-key-of-some-length"
OTHER = "another-key-of-some-length"
BODY = {"prompt": "The river finds the road", "max_tokens": 4, "ignore_eos": True}
FILE = f"""
[defaults]
tokens_per_day = 1000
models = ["tiny"]

[keys.alice]
key = "{KEY}"
max_tokens = 3

[keys.bob]
sha256 = "{sha256(OTHER)}"
tokens_per_day = 50
priority = true
"""


def test_a_key_file_gives_each_key_its_limits_and_the_defaults_where_it_has_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    alice, bob = read_key_file(path)
    assert alice == ApiKey(name="alice", key=KEY, max_tokens=3, tokens_per_day=1000, models=("tiny",))
    assert (bob.digest, bob.tokens_per_day, bob.priority) == (sha256(OTHER), 50, True)
    assert KEY not in repr(alice)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "keys: is missing; write a table"),
        ("[keys]\n", "keys: is missing"),
        ("keys = 3", "keys: is no table; write [keys]"),
        ("[keys]\nalice = 3", "keys.alice: is no table; write [keys.alice]"),
        ("[keys.alice]", "keys.alice.key: is needed, or sha256, and not both"),
        (f"[keys.alice]\nkey = '{KEY}'\nsha256 = '{'0' * 64}'", "and not both; give one of the two"),
        ("[keys.alice]\nkey = 'short'", "keys.alice.key: is shorter than 8 characters"),
        ("[keys.alice]\nsha256 = 'abc'", "keys.alice.sha256: is no SHA-256; give 64 hexadecimal digits"),
        (f"[keys.alice]\nkey = '{KEY}'\nmax_tokens = 0", "keys.alice.max_tokens: must be above 0, got 0"),
        (f"[keys.alice]\nkey = '{KEY}'\nmax_token = 3", "keys.alice.max_token"),
        (f"[keys.alice]\nkey = '{KEY}'\nmodels = []", "keys.alice.models: names none"),
        (f"[keys.'a b']\nkey = '{KEY}'", "is no name of a key"),
        (f"[keys.a]\nkey = '{KEY}'\n[keys.b]\nkey = '{KEY}'", "keys.b: has the value of another key, a"),
        (f"[defaults]\nkey = '{KEY}'", "defaults: holds a name or a key"),
        ("[key.alice]", "key: is not known here; write tables [keys.NAME] and [defaults]"),
        ("[keys.alice", "is not valid TOML"),
    ],
)
def test_a_key_file_that_is_wrong_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        read_key_file(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert KEY not in str(refused.value)


def test_keys_are_only_limited_to_models_that_are_served() -> None:
    key = ApiKey(name="alice", key=KEY, models=("large",))
    with pytest.raises(SpecError, match=r"keys\.alice\.models: 'large' is not served; use names of other, small"):
        KeyRing(ServeSettings(api_keys=(key,)), {"small": "small", "other": "small"}, Metrics(dict))


def test_no_key_is_never_a_valid_one() -> None:
    """A file may hold the SHA-256 of nothing, as ``printf %s $UNSET | sha256sum`` gives it."""
    ring = KeyRing(ServeSettings(api_keys=(ApiKey(name="alice", sha256=sha256("")), KEY)), {}, Metrics(dict))
    assert ring.find([b"", b" ", b""]) is None
    found = ring.find([b"", f" {KEY} ".encode()])
    assert found is not None
    assert found.key.name == "key-2"


@given(
    amount=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_a_budget_never_gives_more_than_its_amount_and_what_refilled(
    amount: int, steps: list[tuple[float, int]]
) -> None:
    """Against its definition: whatever is taken while enough is left, within any time t, is amount + rate * t."""
    now, taken = 0.0, list[tuple[float, int]]()
    budget = Budget(amount, 60.0, lambda: now)
    for wait, asked in steps:
        now += wait
        if budget.left >= asked:
            budget.take(asked)
            taken.append((now, asked))
        else:
            until = budget.seconds_until(asked)
            assert (until > 0) == (budget.left < asked)
            if asked <= amount:
                now += until + 1e-6
                assert budget.left >= asked - 1e-3
    for index, (start, _) in enumerate(taken):
        total = 0
        for end, more in taken[index:]:
            total += more
            assert total <= amount + (end - start) * amount / 60 + 1e-6


def test_requests_a_minute_are_refused_with_openais_headers_until_they_refill(serve: Serve) -> None:
    key = ApiKey(name="alice", key=KEY, requests_per_minute=2)
    with serve(api_keys=(key, OTHER)) as server, server.http(authorization=f"Bearer {KEY}") as http:
        first, second = (http.post("/v1/completions", json=BODY) for _ in range(2))
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second)] == ["1", "0"]
        refused = http.post("/v1/messages", json={"model": "tiny", "max_tokens": 3, "messages": []})
        assert refused.status_code == 400  # nothing that is refused before it is admitted counts
        refused = http.post("/v1/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert "key alice: 2 requests a minute are used; try again in" in refused.json()["error"]["message"]
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        with server.client(KEY) as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="a")
        assert http.get("/v1/models").status_code == 200
        with server.http(authorization=f"Bearer {OTHER}") as other:
            free = other.post("/v1/completions", json=BODY)
            assert free.status_code == 200
            assert not any(name.startswith("x-ratelimit") for name in free.headers)
            text = other.get("/metrics").text
        assert 'fathom_key_requests_total{key="alice"} 2.0' in text
        assert 'fathom_key_requests_total{key="key-2"} 1.0' in text
        assert 'fathom_key_limited_total{key="alice",limit="requests"} 2.0' in text
        assert KEY not in text


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_as_the_answers_usage_says_and_those_of_a_day_end_it(serve: Serve, stream: bool) -> None:
    key = ApiKey(name="alice", key=KEY, tokens_per_day=10, tokens_per_minute=100_000)
    with serve(api_keys=(key,)) as server, server.http(authorization=f"Bearer {KEY}") as http:
        plain = http.post("/v1/completions", json=BODY | {"n": 2})
        usage = plain.json()["usage"]
        assert usage["total_tokens"] > 11
        assert plain.headers["x-ratelimit-limit-tokens"] == "10"
        refused = http.post("/v1/completions", json=BODY | {"stream": stream})
        assert refused.status_code == 429
        assert "10 tokens a day are used" in refused.json()["error"]["message"]
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert int(refused.headers["retry-after"]) > 60
        text = http.get("/metrics").text
        assert f'fathom_key_prompt_tokens_total{{key="alice"}} {float(usage["prompt_tokens"])}' in text
        assert f'fathom_key_generated_tokens_total{{key="alice"}} {float(usage["completion_tokens"])}' in text
        assert 'fathom_key_limited_total{key="alice",limit="tokens_day"} 1.0' in text


def test_embeddings_count_for_their_key(serve: Serve) -> None:
    key = ApiKey(name="alice", key=KEY, tokens_per_minute=1000)
    with serve(api_keys=(key,)) as server, server.http(authorization=f"Bearer {KEY}") as http:
        answer = http.post("/v1/embeddings", json={"input": ["The river", "The road"]})
        left = 1000 - answer.json()["usage"]["prompt_tokens"]
        assert left - 1 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= left + 17


def test_requests_at_once_are_bounded_and_a_client_that_leaves_gives_its_place_back(serve: Serve) -> None:
    key = ApiKey(name="alice", key=KEY, concurrent_requests=1)
    long = BODY | {"max_tokens": 450, "stream": True}
    with serve(api_keys=(key, OTHER)) as server, server.http(authorization=f"Bearer {KEY}") as http:
        with http.stream("POST", "/v1/completions", json=long) as running:
            assert running.status_code == 200
            refused = http.post("/v1/completions", json=BODY)
            assert refused.status_code == 429
            assert "1 requests are in progress" in refused.json()["error"]["message"]
            with server.http(authorization=f"Bearer {OTHER}") as other:
                assert other.post("/v1/completions", json=BODY).status_code == 200
        assert wait_until(lambda: http.post("/v1/completions", json=BODY).status_code == 200)
        assert 'fathom_key_requests_in_progress{key="alice"} 0.0' in http.get("/metrics").text


def test_answers_are_no_longer_than_the_key_allows_and_a_header_says_so(serve: Serve) -> None:
    keys = (ApiKey(name="alice", key=KEY, max_tokens=3), ApiKey(name="bob", key=OTHER, priority=True))
    messages = [{"role": "user", "content": "a"}]
    with serve(api_keys=keys) as server, server.http(authorization=f"Bearer {KEY}") as http:
        for asked in ({"max_tokens": 9}, {"max_tokens": -1}, {}):
            answer = http.post("/v1/completions", json={"prompt": "a", "ignore_eos": True} | asked)
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert ("max_tokens=3" in answer.headers.get("x-fathom-clamped", "")) == (asked == {"max_tokens": 9})
        chat = http.post("/v1/chat/completions", json={"messages": messages, "ignore_eos": True, "priority": 3})
        assert chat.json()["usage"]["completion_tokens"] == 3
        assert "priority" in chat.headers["x-fathom-ignored-fields"]
        with server.http(authorization=f"Bearer {OTHER}") as other:
            allowed = other.post("/v1/completions", json=BODY | {"priority": 3})
            assert allowed.json()["usage"]["completion_tokens"] == 4
            assert "x-fathom-ignored-fields" not in allowed.headers


def test_a_changed_file_is_read_again_and_a_wrong_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    ring = KeyRing(ServeSettings(key_file=path), {"tiny": "tiny"}, Metrics(dict))

    def find(key: str) -> KeyUsage | None:
        nonlocal now
        now += 2.0
        return ring.find([key.encode()])

    alice = find(KEY)
    assert alice is not None
    alice.charge(generated=900)
    for text, found in (
        (FILE.replace("= 1000", "= 2000"), alice),
        ("[keys.alice", alice),
        (f"[keys.carol]\nkey = '{KEY}'\nmodels = ['nowhere']", alice),
        ("[keys.alice", alice),
        (FILE.replace(KEY, "quite-another-key"), None),
        (FILE, None),
    ):
        path.write_text(text)
        os.utime(path, (now, now))
        again = find(KEY)
        assert again is found or (found is None and text == FILE and again is not alice)
        if again is alice:
            assert alice.headers["x-ratelimit-limit-tokens"] == "2000"
            assert 1090 <= int(alice.headers["x-ratelimit-remaining-tokens"]) <= 1200  # what was used counts
    path.unlink()
    assert find(OTHER) is not None
    assert caplog.text.count("the keys of before stay in use") == 4


@pytest.mark.usefixtures("slow_steps")
def test_the_log_names_the_key_the_model_and_the_tokens_and_never_the_key(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    keys = (ApiKey(name="alice", key=KEY, tokens_per_minute=1000),)
    with caplog.at_level(logging.INFO, logger="fathom.serve"), serve(api_keys=keys) as server:
        with server.http(authorization=f"Bearer {KEY}") as http:
            usage = http.post("/v1/completions", json=BODY).json()["usage"]
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], "max_tokens": 0})
        with server.http(authorization="Bearer not-a-known-key") as http:
            http.get("/v1/models?secret=1")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "fathom.serve.access"]
    answered, wrong, unknown = lines
    assert (answered["key"], answered["model"], answered["method"]) == ("alice", "tiny", "POST")
    assert (answered["path"], answered["status"]) == ("/v1/completions", 200)
    assert answered["prompt_tokens"] == usage["prompt_tokens"]
    assert answered["completion_tokens"] == usage["completion_tokens"] == 4
    assert 0 < answered["first_token_seconds"] <= answered["seconds"]
    assert answered["tokens_per_second"] > 0
    assert "T" in answered["time"]
    assert not any("ratelimit" in name for line in lines for name in line)
    assert (wrong["key"], wrong["status"]) == ("alice", 400)
    assert "key" not in unknown
    assert (unknown["path"], unknown["status"]) == ("/v1/models", 401)
    assert not any(secret in caplog.text for secret in (KEY, "not-a-known-key", "secret"))


def test_keys_see_and_use_their_models_only(serve: Serve) -> None:
    key: dict[str, Any] = {"name": "alice", "key": KEY, "models": ("tiny",)}
    with serve(api_keys=(ApiKey(**key), OTHER)) as server, server.http(authorization=f"Bearer {KEY}") as http:
        server.models.keys.find([KEY.encode()]).models = frozenset({"elsewhere"})  # type: ignore[union-attr]
        refused = http.post("/v1/completions", json=BODY | {"model": "tiny"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        assert http.get("/v1/models/tiny").status_code == 403


def test_of_many_requests_at_once_no_more_than_a_minutes_are_taken(serve: Serve) -> None:
    key = ApiKey(name="alice", key=KEY, requests_per_minute=5)
    with serve(api_keys=(key,)) as server:
        found: list[int] = []

        def post() -> None:
            with server.http(authorization=f"Bearer {KEY}") as http:
                found.append(http.post("/v1/completions", json=BODY).status_code)

        threads = [threading.Thread(target=post) for _ in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [200] * 5 + [429] * 4
