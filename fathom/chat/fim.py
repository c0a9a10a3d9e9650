"""Fill-in-the-middle: the markers of a vocabulary, and prompts made with them.

The order is prefix, suffix, middle (Coder §3.1.2): begin, prefix, hole, suffix, end, and then the model writes
the middle, up to its end of sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from fathom.errors import DataError
from fathom.tokenizer import special
from fathom.tokenizer.bpe import Tokenizer

_MARKER_NAMES = (
    (special.FIM_BEGIN, special.FIM_HOLE, special.FIM_END),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Before the prefix, before the suffix, before the middle: DeepSeek and Fathom, Qwen2, StarCoder, SantaCoder, Llama."""


@dataclass(frozen=True, slots=True)
class FimMarkers:
    """The token ids before the prefix, before the suffix and before the middle."""

    begin: int
    hole: int
    end: int


def fim_markers(tokenizer: Tokenizer) -> FimMarkers | None:
    """Return a vocabulary's markers, or None where it has none.

    A vocabulary with markers does not imply a model trained on them: Fathom's vocabularies always reserve them.
    """
    for names in _MARKER_NAMES:
        ids = [tokenizer.special_tokens.get(name) for name in names]
        begin, hole, end = ids
        if begin is not None and hole is not None and end is not None:
            return FimMarkers(begin, hole, end)
    return None


def supports_fim(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary has fill-in-the-middle markers."""
    return fim_markers(tokenizer) is not None


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, *, max_tokens: int | None = None) -> list[int]:
    """Return the prompt after which a model writes the text between ``prefix`` and ``suffix``.

    The texts are never encoded as special tokens.

    Raises:
        DataError: the vocabulary has no such markers.
        TooManyTokens: one of the texts has more than ``max_tokens``.
    """
    markers = _required(tokenizer)
    return [
        *tokenizer.prefix_ids,
        markers.begin,
        *tokenizer.encode(prefix, continues=True, max_tokens=max_tokens),
        markers.hole,
        *tokenizer.encode(suffix, continues=True, max_tokens=max_tokens),
        markers.end,
    ]


def fim_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a middle besides the model's end of sequence: a marker starts another part."""
    markers = _required(tokenizer)
    return tuple(sorted({markers.begin, markers.hole, markers.end, tokenizer.eos_id}))


def _required(tokenizer: Tokenizer) -> FimMarkers:
    markers = fim_markers(tokenizer)
    if markers is None:
        spelled = " ".join(_MARKER_NAMES[0])
        raise DataError(
            f"suffix: the vocabulary has no fill-in-the-middle markers such as {spelled}; "
            "leave the suffix out, or use a model trained to fill in"
        )
    return markers
