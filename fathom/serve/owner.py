"""Whose a request is: what one API key keeps or has cached, another never sees."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest

from fathom.serve.key_usage import usage_of


def owner_of(http: HttpRequest) -> str:
    """Return the digest of a request's API key, 64 hexadecimal digits; "" for everybody where there are no keys."""
    usage = usage_of(http)
    return "" if usage is None else usage.digest
