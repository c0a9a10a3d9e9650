"""The training loader: packed windows of several sources in fixed proportions, resumable at any sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.data.needle import make_needle
from fathom.data.saved_position import check_settings, saved_count
from fathom.data.shards import TokenShards
from fathom.errors import DataError
from fathom.files import sha256
from fathom.model.vision import ImageBatch
from fathom.tokenizer import Tokenizer

NEEDLE = "needle"


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences of T + 1 tokens (int64, on the CPU), and which of ``PackedLoader.sources`` each came from.

    ``images`` belong to the image tokens, in order. ``targets_BT`` are the labels where they are not every next
    token; -100 marks positions that no loss counts. ``ends_BT`` (bool) marks the last token of each sample in rows that
    join several.
    """

    tokens_BT1: Tensor
    source_B: Tensor
    images: ImageBatch | None = None
    targets_BT: Tensor | None = None
    ends_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class NeedleMixture:
    """Make ``fraction`` of the sequences synthetic retrieval documents with training keys and numbers."""

    tokenizer: Tokenizer
    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise DataError(f"needle fraction: must be 0 or more and below 1, got {self.fraction}; lower it")


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """What was drawn from one source: sequences, tokens (T per sequence) and epochs of its text."""

    sequences: int
    tokens: int
    epochs: float


class PackedLoader:
    """Draws sequences of T + 1 tokens from sources by weight; the n-th depends on the seed and n only.

    Documents of a source stand one after another, each between its begin and end of sentence, and are cut into
    windows of T + 1 tokens that overlap by one, so every token is a target once per epoch. Each epoch takes the
    windows in a new random order and shifts all cuts by a new random offset, so that what is left over at the ends
    differs from epoch to epoch. The loader never ends. A source shorter than one window raises ``DataError``.
    """

    def __init__(
        self,
        shards_by_source: Mapping[str, TokenShards],
        weights: Mapping[str, float],
        sequence_length: int,
        seed: int,
        needle: NeedleMixture | None = None,
    ) -> None:
        _check(shards_by_source, weights, sequence_length)
        names = tuple(name for name in sorted(shards_by_source) if weights[name] > 0)
        self._needle = needle if needle is not None and needle.fraction > 0 else None
        self.sources = (*names, NEEDLE) if self._needle else names
        self._windows_by_source = tuple(
            _SourceWindows(shards_by_source[name], name, sequence_length, seed) for name in names
        )
        share = np.array([weights[name] for name in names], dtype=np.float64)
        self._cumulative = np.cumsum(share / share.sum())
        self._cumulative[-1] = 1.0
        self._sequence_length = sequence_length
        self._seed = seed
        self._drawn = [0] * len(self.sources)
        self.bytes_per_token = {name: shards_by_source[name].bytes_per_token for name in names}

    def next(self, batch_size: int) -> TokenBatch:
        """Return the next ``batch_size`` sequences."""
        if batch_size < 1:
            raise DataError(f"batch_size: must be 1 or more, got {batch_size}; give a positive number")
        tokens = np.empty((batch_size, self._sequence_length + 1), dtype=np.int64)
        sources = np.empty(batch_size, dtype=np.int64)
        for row in range(batch_size):
            rng = self._rng(sum(self._drawn))
            source = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
            if self._needle is not None and rng.random() < self._needle.fraction:
                tokens[row] = self._retrieval(self._needle, self._windows_by_source[source].shards, rng)
                source = len(self._windows_by_source)
            else:
                tokens[row] = self._windows_by_source[source].window(self._drawn[source])
            self._drawn[source] += 1
            sources[row] = source
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(sources))

    def _rng(self, sequence: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, sequence, 0]))

    def _retrieval(self, needle: NeedleMixture, shards: TokenShards, rng: np.random.Generator) -> NDArray[np.int64]:
        length = min(self._sequence_length, len(shards))
        start = int(rng.integers(0, len(shards) - length + 1))
        haystack = shards.read(start, start + length)
        made = make_needle(needle.tokenizer, haystack, self._sequence_length, float(rng.random()), rng, "train")
        return np.array([*made.prompt_ids, *made.answer_ids, needle.tokenizer.eos_id], dtype=np.int64)

    @property
    def progress(self) -> dict[str, SourceProgress]:
        """What was given so far, by source."""
        windows = [walk.windows for walk in self._windows_by_source] + [0]
        return {
            name: SourceProgress(drawn, drawn * self._sequence_length, drawn / windows[i] if windows[i] else 0.0)
            for i, (name, drawn) in enumerate(zip(self.sources, self._drawn, strict=True))
        }

    @property
    def tokens_seen(self) -> int:
        """Target tokens given so far."""
        return sum(self._drawn) * self._sequence_length

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON: how many sequences each source gave, and what that depends on."""
        return {
            "drawn": dict(zip(self.sources, self._drawn, strict=True)),
            "sequence_length": self._sequence_length,
            "seed": self._seed,
            "data": self._fingerprint(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next batches are the same. Other data, seed or length raise ``DataError``."""
        check_settings(state, self.state(), ("sequence_length", "seed", "data"))
        drawn = state.get("drawn")
        if not isinstance(drawn, Mapping) or set(drawn) != set(self.sources):
            raise DataError(f"loader state: drawn does not list {', '.join(self.sources)}; use the checkpoint's own")
        self._drawn = [saved_count(drawn, name) for name in self.sources]

    def _fingerprint(self) -> str:
        parts = [[s.sha256 for s in walk.shards.index.shards] for walk in self._windows_by_source]
        fraction = self._needle.fraction if self._needle else 0.0
        settings = repr((self.sources, parts, [float(c) for c in self._cumulative], fraction))
        return sha256(settings)[:16]


class _SourceWindows:
    """The windows of one source, in the order of each epoch."""

    def __init__(self, shards: TokenShards, name: str, sequence_length: int, seed: int) -> None:
        self.shards = shards
        self.windows = (len(shards) - 1) // sequence_length
        self._length = sequence_length
        self._key = int(sha256(f"{seed} {name}")[:32], 16)
        self._epoch = -1
        self._offset = 0
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def window(self, number: int) -> NDArray[np.int64]:
        """Return the tokens of the ``number``-th window since the start of training."""
        epoch, place = divmod(number, self.windows)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, epoch, 0]))
            self._offset = int(rng.integers(0, (len(self.shards) - 1) % self._length + 1))
            self._order = rng.permutation(self.windows)
            self._epoch = epoch
        start = self._offset + int(self._order[place]) * self._length
        return self.shards.read(start, start + self._length + 1)


def _check(shards: Mapping[str, TokenShards], weights: Mapping[str, float], sequence_length: int) -> None:
    if sequence_length < 1:
        raise DataError(f"sequence_length: must be 1 or more, got {sequence_length}; give a positive number")
    if set(shards) != set(weights):
        odd = ", ".join(sorted(set(shards) ^ set(weights)))
        raise DataError(f"weights: sources and weights differ in {odd}; give every source one weight")
    for name, weight in weights.items():
        if not np.isfinite(weight) or weight < 0:
            raise DataError(f"weights: {name!r} has {weight}; give 0 or a positive number")
    if not any(weight > 0 for weight in weights.values()):
        raise DataError("weights: no source has a weight above 0; give at least one")
    for name, source in shards.items():
        if weights[name] > 0 and len(source) <= sequence_length:
            raise DataError(
                f"source {name!r}: {len(source)} tokens are fewer than one window of {sequence_length + 1}; "
                "add text, set its weight to 0, or shorten sequence_length"
            )
