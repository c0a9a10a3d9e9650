"""Responses that are kept for ``previous_response_id``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fathom.serve.errors import ApiError
from fathom.serve.response_store import ResponseStore, StoredResponse, memory_bytes


def response(name: str, previous: str | None = None, text: str = "") -> StoredResponse:
    items: list[Any] = [{"id": f"in_{name}", "text": text}]
    body = {"id": name, "output": [{"id": f"out_{name}"}]}
    nbytes = memory_bytes(json.dumps(body)) + memory_bytes(json.dumps(items))
    return StoredResponse(body=body, input_items=items, nbytes=nbytes, previous=previous)


def test_a_history_is_the_items_of_all_responses_before() -> None:
    store = ResponseStore(max_responses=9, max_bytes=99_999)
    store.put("a", response("r1"))
    store.put("a", response("r2", "r1"))
    assert [item["id"] for item in store.history("a", "r2")] == ["in_r1", "out_r1", "in_r2", "out_r2"]
    assert store.items("a", {"out_r1": "input[0].id"})["out_r1"]["id"] == "out_r1"


def test_an_owner_sees_no_other_owners_responses() -> None:
    store = ResponseStore(max_responses=9, max_bytes=99_999)
    store.put("a", response("r1"))
    item = {"in_r1": "x"}
    for use in (lambda: store.get("b", "r1"), lambda: store.delete("b", "r1"), lambda: store.items("b", item)):
        with pytest.raises(ApiError) as caught:
            use()
        assert caught.value.status == 404
    assert store.get("a", "r1").body["id"] == "r1"


def test_the_least_recently_used_response_is_evicted() -> None:
    store = ResponseStore(max_responses=2, max_bytes=99_999)
    store.put("a", response("r1"))
    store.put("a", response("r2"))
    store.get("a", "r1")
    store.put("a", response("r3", "r2"))
    with pytest.raises(ApiError, match=r"previous_response_id: 'r2' is not kept here: .* send the whole conversation"):
        store.history("a", "r3")
    assert store.history("a", "r1")


def test_bytes_are_bounded_and_freed() -> None:
    most = 2 * response("a", text="x" * 150).nbytes
    store = ResponseStore(max_responses=99, max_bytes=most)
    for name in "abcd":
        store.put("", response(name, text="x" * 150))
        assert store.nbytes <= most
    assert len(store) == 2
    store.put("", response("huge", text="x" * most))
    assert len(store) == 2
    store.delete("", "d")
    store.delete("", "c")
    assert (len(store), store.nbytes) == (0, 0)


def test_security_one_owner_pushes_out_nothing_of_another() -> None:
    one = response("a0", text="x" * 150)
    for bounds in ({"max_responses": 10, "max_bytes": 1 << 30}, {"max_responses": 999, "max_bytes": 10 * one.nbytes}):
        store = ResponseStore(**bounds)
        for index in range(4):
            store.put("a", response(f"a{index}", text="x" * 150))
        for index in range(50):
            store.put("b", response(f"b{index}", text="x" * 150))
            assert len(store) <= 10
            assert all(store.get("a", f"a{kept}") for kept in range(4))
        assert store.get("b", "b49")
        for index in range(50):
            store.put("c", response(f"c{index}", text="x" * 150))
        assert store.get("c", "c49")
        assert store.get("b", "b49")
        assert store.get("a", "a3")
