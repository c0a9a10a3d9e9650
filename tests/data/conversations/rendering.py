"""Samples as a reader sees them: what is learned stands between double brackets."""

from __future__ import annotations

from fathom.data.conversations import Sample
from fathom.tokenizer import Tokenizer


def shown(tokenizer: Tokenizer, sample: Sample) -> str:
    """Return the text of a sample, its learned stretches between ⟦ and ⟧."""
    text, inside = b"", False
    for token, learned in zip(sample.tokens, sample.learned, strict=True):
        if learned != inside:
            text += ("⟦" if learned else "⟧").encode()
        text, inside = text + tokenizer.token_bytes(token), learned
    return (text + ("⟧" if inside else "").encode()).decode()
