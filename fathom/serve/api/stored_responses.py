"""Kept responses: whose they are, and what can be done with them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from fathom.serve.errors import ApiError, refuse
from fathom.serve.http.json_response import json_response
from fathom.serve.response_store import Json, ResponseStore
from fathom.serve.schemas.responses import Content, Item

MAX_LISTED = 100
_LARGE_BYTES = 1 << 18


def input_items(items: Sequence[Item]) -> list[Json]:
    """Return items as they are kept and listed: each with an id, and messages with parts."""
    suffix = uuid.uuid4().hex
    return [_kept(item, f"{suffix}{index:02d}") for index, item in enumerate(items)]


async def retrieve(store: ResponseStore, owner: str, response_id: str, http: HttpRequest) -> Response:
    """Return a kept response; ``ApiError`` where there is none, or it is asked for as a stream."""
    kept = store.get(owner, response_id)
    if http.query_params.get("stream", "false").lower() == "true":
        raise refuse("stream", "true is only for background responses", "leave it out: the response is complete")
    return await json_response(dict(kept.body), large=kept.nbytes > _LARGE_BYTES)


def delete(store: ResponseStore, owner: str, response_id: str) -> Response:
    """Forget a kept response; ``ApiError`` where there is none."""
    store.delete(owner, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def cancel(store: ResponseStore, owner: str, response_id: str) -> Response:
    """Refuse: what is kept is complete, and a response that is being generated ends when its client disconnects."""
    store.get(owner, response_id)
    raise ApiError(
        400,
        f"response_id: {response_id[:80]!r} is complete, and only background responses can be cancelled; "
        "close the connection of a response that is being generated",
        param="response_id",
        code="not_cancellable",
    )


async def list_input_items(store: ResponseStore, owner: str, response_id: str, http: HttpRequest) -> Response:
    """List the items that a kept response was created from, the latest first unless ``order`` is asc."""
    kept = store.get(owner, response_id)
    items = list(kept.input_items)
    query = http.query_params
    order, after, limit = query.get("order", "desc"), query.get("after"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise refuse("order", f"is {order[:20]!r}", "give asc or desc")
    if not (limit.isdigit() and 1 <= int(limit[:9]) <= MAX_LISTED):
        raise refuse("limit", f"is {limit[:20]!r}", f"give 1 to {MAX_LISTED}")
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise refuse("after", f"{after[:80]!r} is not among the items", "give the last_id of the page before")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    listed = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(items) > len(page),
    }
    return await json_response(listed, large=kept.nbytes > _LARGE_BYTES)


def _kept(item: Item, suffix: str) -> dict[str, Any]:
    kind = item.type or "message"
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}.get(
        kind, "item"
    )
    kept = {"id": f"{prefix}_{suffix}"} | item.model_dump(exclude_none=True) | {"type": kind}
    if kind != "reasoning":
        kept.setdefault("status", "completed")
    if kind == "message" and isinstance(item.content, str):
        part = "output_text" if item.role == "assistant" else "input_text"
        content = Content(type=part, text=item.content).model_dump(exclude_none=True)
        kept["content"] = [content | ({"annotations": []} if item.role == "assistant" else {})]
    return kept
