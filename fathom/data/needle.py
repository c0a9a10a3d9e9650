"""Needle in a haystack: a fact hidden in real text, and the question for it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

NeedleSplit = Literal["train", "eval"]

_COLOURS = "amber azure coral crimson golden indigo ivory jade olive pearl ruby scarlet silver teal violet white"
_PLACES = "anchor bridge canyon castle forest garden harbor island lantern meadow mirror mountain river tower"
_LOWEST, _HIGHEST = 10_000, 99_999
_EVAL_EVERY = 5
_SNAP_TOKENS = 24


@dataclass(frozen=True, slots=True)
class NeedleSample:
    """A prompt that ends where the number must follow, and the number's ids. Together they have the length asked.

    ``blank_ids`` are the prompt without the sentence that states the number.
    """

    prompt_ids: tuple[int, ...]
    blank_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    key: str
    number: int


def make_needle(
    tokenizer: Tokenizer,
    haystack_tokens: Sequence[int] | NDArray[np.int64],
    length: int,
    depth: float,
    rng: np.random.Generator,
    split: NeedleSplit = "train",
) -> NeedleSample:
    """Hide 'The secret number of KEY is NUMBER.' in a stretch of the haystack and ask for it at the end.

    Prompt and answer together are exactly ``length`` tokens, begin of sentence included; ``depth`` is where the fact
    goes, 0 first and 1 last, moved by at most 24 tokens to a line's or sentence's end where there is one. Keys and
    numbers of ``train`` and ``eval`` are disjoint: keys by their place in the list of all keys, numbers by their
    remainder modulo 5. Too short a length or haystack, and a depth outside 0 to 1, raise ``DataError``.
    """
    if not 0 <= depth <= 1:
        raise DataError(f"depth: must lie between 0 and 1, got {depth}; give a fraction")
    key, number = draw_fact(rng, split)
    fact = tokenizer.encode(f"\nThe secret number of {key} is {number}.\n")
    question = tokenizer.encode(f"\nThe secret number of {key} is ")
    answer = tokenizer.encode(str(number))
    prefix = tokenizer.prefix_ids
    space = length - len(prefix) - len(fact) - len(question) - len(answer)
    if space < 0:
        raise DataError(f"length: {length} tokens cannot hold the fact and the question; use {length - space} or more")
    if len(haystack_tokens) < space:
        raise DataError(f"haystack: {len(haystack_tokens)} tokens, {space} needed; give more text or a smaller length")
    start = int(rng.integers(0, len(haystack_tokens) - space + 1))
    hay = [int(token) for token in haystack_tokens[start : start + space]]
    place = _sentence_end(tokenizer, hay, round(depth * space))
    prompt = (*prefix, *hay[:place], *fact, *hay[place:], *question)
    blank = (*prefix, *hay, *question)
    return NeedleSample(prompt, blank, tuple(answer), key, number)


def draw_fact(rng: np.random.Generator, split: NeedleSplit) -> tuple[str, int]:
    """Draw a key and a number of a split."""
    keys = [
        f"the {colour} {place}"
        for index, (colour, place) in enumerate(product(_COLOURS.split(), _PLACES.split()))
        if (index % _EVAL_EVERY == 0) == (split == "eval")
    ]
    key = keys[int(rng.integers(len(keys)))]
    base = int(rng.integers(_LOWEST // _EVAL_EVERY, (_HIGHEST + 1) // _EVAL_EVERY)) * _EVAL_EVERY
    return key, base if split == "eval" else base + int(rng.integers(1, _EVAL_EVERY))


def _sentence_end(tokenizer: Tokenizer, hay: Sequence[int], place: int) -> int:
    if place in (0, len(hay)):
        return place
    nearby = range(max(place - _SNAP_TOKENS, 1), min(place + _SNAP_TOKENS, len(hay)) + 1)
    ends = [p for p in nearby if tokenizer.decode([hay[p - 1]]).endswith(("\n", ".", "。", "！", "？", "!", "?"))]
    return min(ends, key=lambda p: abs(p - place), default=place)
