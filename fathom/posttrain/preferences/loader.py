"""A loader of groups of sequences, such as the two of a pair: each epoch in a new order, resumable at any batch.

T tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.data.saved_position import check_settings, saved_count
from fathom.errors import DataError
from fathom.spec.targets import IGNORE_INDEX

SHARE = "share"
"""The column that holds one over the groups of the whole batch: what a group weighs in a mean over them."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One sequence to learn from: T tokens that are read, what is predicted at each, and further columns."""

    tokens_T: Tensor
    targets_T: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_T)


class GroupLoader:
    """Yields every group once an epoch, each epoch in a new order that depends on the seed and its number only.

    Groups have equally many entries, which are never parted, and which share what they begin with in common until one
    learns: a pair's answers their prompt. A batch of B sequences holds as many groups as B x
    ``sequence_length`` tokens have room for, and one at least.
    """

    def __init__(self, groups: Sequence[Sequence[TrainingExample]], *, sequence_length: int, seed: int) -> None:
        if not groups or len({len(group) for group in groups}) != 1 or not groups[0]:
            raise DataError("groups: there are none, or they differ in size; give at least one")
        self._groups = [tuple(group) for group in groups]
        self._sizes = [sum(map(len, group)) for group in groups]
        self._length, self._seed = sequence_length, seed
        self._drawn = 0
        self._order: tuple[int, list[int]] | None = None
        self._data = self._fingerprint()

    @property
    def tokens_per_epoch(self) -> int:
        """Input tokens of an epoch."""
        return sum(self._sizes)

    def next(self, batch_size: int) -> PackedBatch:
        """Return the next groups, packed."""
        if batch_size < 1:
            raise DataError(f"batch_size: must be 1 or more, got {batch_size}; give a positive number")
        room = batch_size * self._length
        chosen: list[int] = []
        while not chosen or room >= self._sizes[self._upcoming]:
            chosen.append(self._upcoming)
            room -= self._sizes[self._upcoming]
            self._drawn += 1
        entries = [entry for index in chosen for entry in self._groups[index]]
        columns = {name: torch.cat([entry.columns[name] for entry in entries]) for name in entries[0].columns}
        tokens_N = torch.cat([entry.tokens_T for entry in entries])
        prefixes = [_in_common(self._groups[index][0], entry) for index in chosen for entry in self._groups[index]]
        return PackedBatch(
            tokens_N=tokens_N,
            targets_N=torch.cat([entry.targets_T for entry in entries]),
            lengths=tuple(map(len, entries)),
            columns=columns | {SHARE: torch.full(tokens_N.shape, 1 / len(chosen))},
            sequences_per_example=len(self._groups[0]),
            shared_prefix_lengths=tuple(prefixes),
        )

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON: how many groups were given, and what that depends on."""
        return {"drawn": self._drawn, "sequence_length": self._length, "seed": self._seed, "data": self._data}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next batches are the same. Other data or settings raise ``DataError``."""
        check_settings(state, self.state(), ("sequence_length", "seed", "data"))
        self._drawn = saved_count(state, "drawn")

    @property
    def _upcoming(self) -> int:
        epoch, place = divmod(self._drawn, len(self._groups))
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 4, epoch, 0]))
            self._order = epoch, rng.permutation(len(self._groups)).tolist()
        return self._order[1][place]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for group in self._groups:
            for entry in group:
                digest.update(repr((len(entry), sorted(entry.columns))).encode())
                for name in sorted(entry.columns):
                    digest.update(entry.columns[name].contiguous().numpy().tobytes())
                digest.update(entry.tokens_T.numpy().tobytes() + entry.targets_T.numpy().tobytes())
        return digest.hexdigest()[:16]


def _in_common(first: TrainingExample, other: TrainingExample) -> int:
    """Count the tokens with which both begin, before any at which the other learns; its last stays its own."""
    if other is first:
        return 0
    size = min(len(first), len(other) - 1)
    alike_T = (first.tokens_T[:size] == other.tokens_T[:size]) & (other.targets_T[:size] == IGNORE_INDEX)
    return int(alike_T.long().cumprod(0).sum())
