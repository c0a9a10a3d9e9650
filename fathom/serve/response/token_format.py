"""Tokens as answers show them: their text, their bytes, their log-probabilities."""

from __future__ import annotations

from typing import Any

from fathom.spec.sampling import TokenLogprob
from fathom.tokenizer import Tokenizer
from fathom.tokenizer.pieces import StreamDecoder

MIN_LOGPROB = -9999.0
"""Stands for a probability of zero, which JSON has no number for."""


class TokenFormatter:
    """Writes tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decoder(self) -> StreamDecoder:
        """Return a decoder that measures a text from its beginning."""
        return self._tokenizer.stream()

    def chat_logprob(self, token: TokenLogprob) -> dict[str, Any]:
        """Return a token as chat answers have it."""
        top = [self._entry(token_id, logprob) for token_id, logprob in token.top]
        return self._entry(token.token_id, token.logprob) | {"top_logprobs": top}

    def text_logprob(
        self, token_id: int, found: TokenLogprob | None
    ) -> tuple[str, float | None, dict[str, float] | None]:
        """Return a token as continued texts have it: spelling, log-probability, and alternatives with itself.

        Of alternatives that are spelled alike the likeliest is kept.
        """
        name = self.name(token_id)
        if found is None:
            return name, None, None
        top: dict[str, float] = {}
        for other, logprob in (*found.top, (token_id, found.logprob)):
            top.setdefault(self.name(other), _finite(logprob))
        return name, _finite(found.logprob), top

    def name(self, token_id: int) -> str:
        """Return a token's text, or ``bytes:`` and its bytes where they are no whole characters."""
        piece = self._tokenizer.token_bytes(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self._tokenizer.token_bytes(token_id)
        return {"token": piece.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB
