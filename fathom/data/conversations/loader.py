"""The loader of conversations: epochs over samples, each in a new order, resumable at any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fathom.data.conversations.encoded import EncodedSamples
from fathom.data.conversations.pack import next_token_targets, pack_into_bins, pack_samples
from fathom.data.loader import TokenBatch
from fathom.data.packed import PackedBatch
from fathom.data.saved_position import check_settings, saved_count
from fathom.errors import DataError
from fathom.spec.targets import IGNORE_INDEX

Packing = Literal["masked", "joined"]
Unit = Literal["rows", "examples"]
_Stream = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]


class ConversationLoader:
    """Yields every sample once an epoch, in an order that depends on the seed and the epoch only.

    With ``packing`` "masked" a batch of B sequences is B bins of at most T tokens, packed with whole samples that do
    not attend to each other. With "joined" the samples of all epochs are one stream, cut into windows of T tokens; each
    target is given once an epoch. Samples may have at most T + 1 tokens; their first token is never predicted.
    With ``unit`` "examples" a batch is B samples instead, masked; the last of an epoch has those that are left.
    """

    def __init__(
        self,
        samples: EncodedSamples,
        *,
        sequence_length: int,
        seed: int,
        packing: Packing = "masked",
        unit: Unit = "rows",
    ) -> None:
        self._tokens, self._learned = samples.tokens, samples.learned
        _check(self._tokens, self._learned, sequence_length)
        self._length, self._seed, self._packing, self._unit = sequence_length, seed, packing, unit
        self._lengths = [len(tokens) - 1 for tokens in self._tokens]
        self._epoch = self._place = 0
        self._order: tuple[int, list[list[int]]] | None = None
        self._streamed: tuple[int, _Stream] | None = None
        self._data = self._fingerprint()

    @property
    def examples_per_epoch(self) -> int:
        """Samples of an epoch."""
        return len(self._tokens)

    @property
    def examples_given(self) -> int:
        """Samples given so far, over all epochs."""
        if self._packing == "joined":
            return int(self.epochs * self.examples_per_epoch)
        return self._epoch * self.examples_per_epoch + sum(map(len, self._bins(self._epoch)[: self._place]))

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of an epoch, as batches count them: all inputs."""
        return sum(self._lengths) if self._packing == "masked" else sum(map(len, self._tokens))

    @property
    def trainable_tokens_per_epoch(self) -> int:
        """Tokens of an epoch that are in the loss."""
        return int(sum(learned[1:].sum() for learned in self._learned))

    @property
    def epochs(self) -> float:
        """Epochs given so far."""
        return self._epoch + self._place / self._places(self._epoch)

    def next(self, batch_size: int) -> PackedBatch | TokenBatch:
        """Return the next ``batch_size`` sequences, or samples."""
        if batch_size < 1:
            raise DataError(f"batch_size: must be 1 or more, got {batch_size}; give a positive number")
        return self._packed(batch_size) if self._packing == "masked" else self._windows(batch_size)

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON: the epoch, the place in it, and what those depend on."""
        return {
            "epoch": self._epoch,
            "place": self._place,
            "sequence_length": self._length,
            "seed": self._seed,
            "packing": self._packing,
            "unit": self._unit,
            "data": self._data,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next batches are the same. Other samples or settings raise ``DataError``."""
        check_settings({"unit": "rows", **state}, self.state(), ("sequence_length", "seed", "packing", "unit", "data"))
        epoch, place = saved_count(state, "epoch"), saved_count(state, "place")
        if place >= self._places(epoch):
            raise DataError(f"loader state: place {place} is in no epoch {epoch}; use the checkpoint's own")
        self._epoch, self._place = epoch, place

    def _packed(self, batch_size: int) -> PackedBatch:
        chosen: list[int] = []
        for _ in range(batch_size):
            packed = self._bins(self._epoch)
            chosen += packed[self._place]
            self._place += 1
            if self._place == len(packed):
                self._epoch, self._place = self._epoch + 1, 0
                if self._unit == "examples":
                    break
        return pack_samples([self._tokens[i] for i in chosen], [self._learned[i] for i in chosen])

    def _windows(self, batch_size: int) -> TokenBatch:
        rows = [self._window() for _ in range(batch_size)]
        tokens_BT1 = torch.from_numpy(np.stack([row[0] for row in rows]))
        targets_BT, ends_BT = (torch.from_numpy(np.stack([row[part] for row in rows])) for part in (1, 2))
        source_B = torch.zeros(batch_size, dtype=torch.int64)
        return TokenBatch(tokens_BT1, source_B, targets_BT=targets_BT, ends_BT=ends_BT)

    def _window(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return T + 1 tokens, T targets, and which of the first T tokens end a sample.

        The last token is the next window's first.
        """
        tokens, targets, ends = [], [], []
        missing = self._length + 1
        epoch, place = self._epoch, self._place
        while missing:
            read, predicted, last = self._stream(epoch)
            part = slice(place, place + missing)
            tokens.append(read[part])
            targets.append(predicted[part])
            ends.append(last[part])
            missing -= len(tokens[-1])
            epoch, place = epoch + 1, 0
        self._place += self._length
        while self._place >= self.tokens_per_epoch:
            self._epoch, self._place = self._epoch + 1, self._place - self.tokens_per_epoch
        return np.concatenate(tokens), np.concatenate(targets)[:-1], np.concatenate(ends)[:-1]

    def _places(self, epoch: int) -> int:
        return len(self._bins(epoch)) if self._packing == "masked" else self.tokens_per_epoch

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 3, epoch, 0]))

    def _bins(self, epoch: int) -> list[list[int]]:
        """Return the bins of an epoch, shuffled, since packing sorts samples by length."""
        if self._order is None or self._order[0] != epoch:
            rng = self._rng(epoch)
            order = rng.permutation(self.examples_per_epoch).tolist()
            if self._unit == "examples":
                self._order = epoch, [[index] for index in order]
            else:
                packed = pack_into_bins(order, self._lengths, self._length)
                self._order = epoch, [packed[i] for i in rng.permutation(len(packed))]
        return self._order[1]

    def _stream(self, epoch: int) -> _Stream:
        """Return the tokens of an epoch, the target at each (-100 at a sample's end), and which tokens end a sample."""
        if self._streamed is None or self._streamed[0] != epoch:
            order = self._rng(epoch).permutation(self.examples_per_epoch)
            ends = np.full(1, IGNORE_INDEX, dtype=np.int64)
            targets = [part for i in order for part in (next_token_targets(self._tokens[i], self._learned[i]), ends)]
            tokens = np.concatenate([self._tokens[i] for i in order])
            last = np.zeros(len(tokens), dtype=np.bool_)
            last[np.cumsum([len(self._tokens[i]) for i in order]) - 1] = True
            self._streamed = epoch, (tokens, np.concatenate(targets), last)
        return self._streamed[1]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self._lengths).encode())
        for tokens, learned in zip(self._tokens, self._learned, strict=True):
            digest.update(tokens.tobytes() + learned.tobytes())
        return digest.hexdigest()[:16]


def _check(tokens: Sequence[NDArray[np.int64]], learned: Sequence[NDArray[np.bool_]], sequence_length: int) -> None:
    if sequence_length < 1:
        raise DataError(f"sequence_length: must be 1 or more, got {sequence_length}; give a positive number")
    if not tokens:
        raise DataError("samples: there are none; give at least one conversation")
    for number, (ids, mask) in enumerate(zip(tokens, learned, strict=True)):
        if not 2 <= len(ids) <= sequence_length + 1 or len(mask) != len(ids):
            raise DataError(
                f"samples[{number}]: has {len(ids)} tokens and {len(mask)} marks; give as many marks as tokens, 2 to "
                f"{sequence_length + 1}"
            )
