"""What a server did with a request otherwise than it was written: response headers and fields of the access log."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request

from fathom.serve.key_usage import KeyUsage
from fathom.serve.schemas.ignored import IgnoredFields

IGNORED_HEADER = "x-fathom-ignored-fields"
CLAMPED_HEADER = "x-fathom-clamped"


class Notices:
    """Notices of one request; they are sent with the response's headers, so they are complete before it begins."""

    def __init__(self) -> None:
        self._ignored = ""
        self._clamped: dict[str, int] = {}
        self.key: KeyUsage | None = None
        """The request's key, where it asked for tokens: headers say what is left of its limits."""

    def ignore(self, fields: IgnoredFields) -> None:
        """Name fields that had no effect, beside those named before."""
        self._ignored = ", ".join(text for text in (self._ignored, fields.text) if text)

    def clamp(self, field: str, value: int) -> None:
        """Say that ``field`` counts as ``value``, the most that is possible; of several values the least is named."""
        self._clamped[field] = min(value, self._clamped.get(field, value))

    def rename_clamped(self, field: str, own: str) -> None:
        """Call a clamped field ``own``, the name that the client gave it."""
        if field in self._clamped:
            self.clamp(own, self._clamped.pop(field))

    @property
    def headers(self) -> dict[str, str]:
        """The response's further headers, in ASCII."""
        return self._notices if self.key is None else self._notices | self.key.headers

    @property
    def log_fields(self) -> dict[str, str]:
        """Fields of the access log's line."""
        return {name.removeprefix("x-fathom-").replace("-", "_"): value for name, value in self._notices.items()}

    @property
    def _notices(self) -> dict[str, str]:
        clamped = ", ".join(f"{field}={value}" for field, value in self._clamped.items())
        given = {IGNORED_HEADER: self._ignored, CLAMPED_HEADER: clamped}
        return {name: value for name, value in given.items() if value}


def notices_of(request: Request) -> Notices:
    """Return the notices of a request."""
    state: MutableMapping[str, Any] = request.scope.setdefault("state", {})
    found = state.setdefault("notices", Notices())
    assert isinstance(found, Notices)
    return found
