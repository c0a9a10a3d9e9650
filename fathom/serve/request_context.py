"""What handling a request's body needs to know of the HTTP request that it came in."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.serve.http.notices import Notices


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """A request's id, the notices of what was ignored or clamped, and the salt of its cached prefixes and images.

    Its key allows ``max_tokens`` in each answer (None: as many as fit), and ``prioritized`` says whether its priority
    counts.
    """

    request_id: str
    notices: Notices
    cache_salt: str
    max_tokens: int | None = None
    prioritized: bool = True
