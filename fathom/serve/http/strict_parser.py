"""HTTP/1.1 as h11 reads it, less what another server may read differently: that is how requests are smuggled."""

from __future__ import annotations

import re
from collections.abc import Mapping

import h11

from fathom.serve.errors import ApiError

MAX_HEADERS = 256
_MOST_CHUNKS, _CHUNK_BYTES = 1024, 128
"""Chunks of a body that may be as small as they are, and bytes that all have on average at least beyond those.

Each is read on the event loop, in about 20 us however small it is.
"""
_HEAD_END = re.compile(rb"\n\r?\n")
_FOLDED = re.compile(rb"\r\n[ \t]")
_LENGTH = re.compile(rb"\r\ncontent-length:([^\r\n]*)", re.IGNORECASE)
_FAULTS: Mapping[int, str] = {
    400: "request: not well-formed HTTP/1.1; send a request line, headers and a body as RFC 9112 has them",
    431: "headers: too large; send fewer or shorter ones",
    501: "Transfer-Encoding: only 'chunked' is supported; send Content-Length or chunked",
}


class StrictConnection(h11.Connection):
    """A server's end of one connection; ``fault`` is what was wrong once ``next_event`` has raised."""

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_head_bytes)
        self._max_head_bytes = max_head_bytes
        self.fault: ApiError | None = None
        self._chunks = self._body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event.

        Raises:
            RemoteProtocolError: the bytes are no request, or one that another server may read differently.
        """
        received = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            self.fault = ApiError(status, _FAULTS.get(status, _FAULTS[400]), code="malformed_request")
            raise
        if type(event) is h11.Data:
            self._count(event)
        if type(event) is h11.Request:
            self._chunks = self._body_bytes = 0
            end = _HEAD_END.search(received)
            self.fault = self._fault(received[: end.end()] if end else received, event)
            if self.fault is not None:
                raise h11.RemoteProtocolError(self.fault.message, error_status_hint=self.fault.status)
        return event

    def _count(self, data: h11.Data) -> None:
        """Count a part of the body; ``RemoteProtocolError`` where its chunks are too small."""
        self._chunks += data.chunk_start
        self._body_bytes += len(data.data)
        if self._chunks > _MOST_CHUNKS + self._body_bytes // _CHUNK_BYTES:
            problem = f"{self._chunks} chunks of {self._body_bytes} bytes are too small"
            self.fault = ApiError(400, f"body: {problem}; send it with Content-Length", code="malformed_request")
            raise h11.RemoteProtocolError(self.fault.message, error_status_hint=self.fault.status)

    def _fault(self, head: bytes, request: h11.Request) -> ApiError | None:
        """Return what is wrong with a request that h11 accepts, or None."""
        names = [name for name, _ in request.headers]
        if len(head) > self._max_head_bytes or len(names) > MAX_HEADERS:
            problem = f"{len(names)} of {len(head)} bytes exceed {MAX_HEADERS} of {self._max_head_bytes} bytes"
            return ApiError(431, f"headers: {problem}; send fewer or shorter ones", code="headers_large")
        if request.http_version not in (b"1.0", b"1.1"):
            shown = request.http_version.decode()
            return ApiError(505, f"request: HTTP/{shown} is not spoken; send HTTP/1.1", code="malformed_request")
        ambiguity = _ambiguity(head, request, names)
        return ApiError(400, ambiguity, code="malformed_request") if ambiguity else None


def _ambiguity(head: bytes, request: h11.Request, names: list[bytes]) -> str | None:
    """Return why servers may disagree about where a request ends or what it asks for, or None."""
    if not head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r"):
        return "request: a line does not end in CR LF; end every line of the head so"
    if _FOLDED.search(head):
        return "headers: a header is continued on the next line; write each on one line"
    lengths = [length.strip(b" \t") for length in _LENGTH.findall(head)]
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        return "Content-Length: more than one length is given; send one"
    if b"transfer-encoding" in names:
        if lengths:
            return "Content-Length: is given together with Transfer-Encoding; send one of them"
        if request.http_version == b"1.0":
            return "Transfer-Encoding: HTTP/1.0 has none; send HTTP/1.1"
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        return "request: the target is no path; send one that begins with / and the host in Host"
    return None
