"""Filling in the middle: the markers of a vocabulary, and the prompt they make.

The order is prefix, suffix, middle (Coder §3.1.2): begin, prefix, hole, suffix, end, and then the model writes what
stands between, up to its end of sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

from fathom.errors import DataError
from fathom.tokenizer import special
from fathom.tokenizer.bpe import Tokenizer

_SPELLINGS = (
    (special.FIM_BEGIN, special.FIM_HOLE, special.FIM_END),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Before the prefix, before the suffix, before the middle: DeepSeek and ours, Qwen2, StarCoder, SantaCoder, Llama."""


@dataclass(frozen=True, slots=True)
class FimMarkers:
    """The ids that stand before the prefix, before the suffix and before the middle."""

    begin: int
    hole: int
    end: int


def fim_markers(tokenizer: Tokenizer) -> FimMarkers | None:
    """Return a vocabulary's markers, or None where it has none.

    That a vocabulary has them does not mean that its model was trained on them: ours always reserves them.
    """
    for names in _SPELLINGS:
        ids = [tokenizer.special_tokens.get(name) for name in names]
        begin, hole, end = ids
        if begin is not None and hole is not None and end is not None:
            return FimMarkers(begin, hole, end)
    return None


def can_fill(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary has markers for filling in the middle."""
    return fim_markers(tokenizer) is not None


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Return the prompt after which a model writes what stands between ``prefix`` and ``suffix``.

    The texts never become special tokens, whatever they spell.

    Raises:
        DataError: the vocabulary has no such markers.
    """
    markers = _required(tokenizer)
    return [
        *tokenizer.prefix_ids,
        markers.begin,
        *tokenizer.encode(prefix, continues=True),
        markers.hole,
        *tokenizer.encode(suffix, continues=True),
        markers.end,
    ]


def fim_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a middle beside the model's own end: a marker means that the text goes on elsewhere."""
    markers = _required(tokenizer)
    return tuple(sorted({markers.begin, markers.hole, markers.end, tokenizer.eos_id}))


def _required(tokenizer: Tokenizer) -> FimMarkers:
    markers = fim_markers(tokenizer)
    if markers is None:
        spelled = " ".join(_SPELLINGS[0])
        raise DataError(
            f"suffix: the vocabulary has no fill-in-the-middle markers such as {spelled}; "
            "leave the suffix out, or use a model trained to fill in"
        )
    return markers
