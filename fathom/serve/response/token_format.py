"""Tokens in responses: text, bytes and log-probabilities."""

from __future__ import annotations

from typing import Any

from fathom.spec.sampling import TokenLogprob
from fathom.tokenizer import Tokenizer
from fathom.tokenizer.pieces import StreamDecoder

MIN_LOGPROB = -9999.0
"""Sent for minus infinity, which JSON cannot express."""


class TokenFormatter:
    """Formats tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decoder(self) -> StreamDecoder:
        """Return a streaming decoder, for the offsets of tokens in a text."""
        return self._tokenizer.stream()

    def chat_logprob(self, token: TokenLogprob) -> dict[str, Any]:
        """Return a token as an entry of chat ``logprobs.content``."""
        top = [self._entry(token_id, logprob) for token_id, logprob in token.top]
        return self._entry(token.token_id, token.logprob) | {"top_logprobs": top}

    def text_logprob(
        self, token_id: int, found: TokenLogprob | None
    ) -> tuple[str, float | None, dict[str, float] | None]:
        """Return a token as text completions have it: text, log-probability, and alternatives including itself.

        Of alternatives with the same text the most likely is kept.
        """
        name = self.name(token_id)
        if found is None:
            return name, None, None
        top: dict[str, float] = {}
        for other, logprob in (*found.top, (token_id, found.logprob)):
            top.setdefault(self.name(other), _finite(logprob))
        return name, _finite(found.logprob), top

    def name(self, token_id: int) -> str:
        """Return a token's text, or ``bytes:`` and its escaped bytes where they are not valid UTF-8."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB
