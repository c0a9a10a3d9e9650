"""A loader of groups of sequences, such as the two of a pair: each epoch in a new order, resumable at any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.data.saved_position import check_settings, saved_count
from fathom.errors import DataError
from fathom.spec.targets import IGNORE_INDEX

Unit = Literal["rows", "examples"]
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
    ``sequence_length`` tokens have room for, and one at least. With ``unit`` "examples" it is B groups, or those that
    are left of the epoch.
    """

    def __init__(
        self, groups: Sequence[Sequence[TrainingExample]], *, sequence_length: int, seed: int, unit: Unit = "rows"
    ) -> None:
        if not groups or len({len(group) for group in groups}) != 1 or not groups[0]:
            raise DataError("groups: there are none, or they differ in size; give at least one")
        self._groups = [tuple(group) for group in groups]
        self._sizes = [sum(map(len, group)) for group in groups]
        self._length, self._seed, self._unit = sequence_length, seed, unit
        self._drawn = 0
        self._order: tuple[int, list[int]] | None = None
        self._data = self._fingerprint()

    @property
    def examples_per_epoch(self) -> int:
        """Groups of an epoch."""
        return len(self._groups)

    @property
    def examples_given(self) -> int:
        """Groups given so far, over all epochs."""
        return self._drawn

    @property
    def tokens_per_epoch(self) -> int:
        """Input tokens of an epoch."""
        return sum(self._sizes)

    def next(self, batch_size: int) -> PackedBatch:
        """Return the next groups, packed."""
        if batch_size < 1:
            raise DataError(f"batch_size: must be 1 or more, got {batch_size}; give a positive number")
        chosen = self._next_examples(batch_size) if self._unit == "examples" else self._next_rows(batch_size)
        return pack_groups([self._groups[index] for index in chosen])

    def _next_rows(self, batch_size: int) -> list[int]:
        room = batch_size * self._length
        chosen: list[int] = []
        while not chosen or room >= self._sizes[self._upcoming]:
            chosen.append(self._upcoming)
            room -= self._sizes[self._upcoming]
            self._drawn += 1
        return chosen

    def _next_examples(self, batch_size: int) -> list[int]:
        chosen: list[int] = []
        left = len(self._groups) - self._drawn % len(self._groups)
        for _ in range(min(batch_size, left)):
            chosen.append(self._upcoming)
            self._drawn += 1
        return chosen

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON: how many groups were given, and what that depends on."""
        return {
            "drawn": self._drawn,
            "sequence_length": self._length,
            "seed": self._seed,
            "unit": self._unit,
            "data": self._data,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next batches are the same. Other data or settings raise ``DataError``."""
        check_settings({"unit": "rows", **state}, self.state(), ("sequence_length", "seed", "unit", "data"))
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


def pack_groups(groups: Sequence[Sequence[TrainingExample]]) -> PackedBatch:
    """Return groups of equally many entries as one batch, of which each weighs the same."""
    entries = [entry for group in groups for entry in group]
    columns = {name: torch.cat([entry.columns[name] for entry in entries]) for name in entries[0].columns}
    tokens_N = torch.cat([entry.tokens_T for entry in entries])
    prefixes = [_in_common(group[0], entry) for group in groups for entry in group]
    return PackedBatch(
        tokens_N=tokens_N,
        targets_N=torch.cat([entry.targets_T for entry in entries]),
        lengths=tuple(map(len, entries)),
        columns=columns | {SHARE: torch.full(tokens_N.shape, 1 / len(groups))},
        sequences_per_example=len(groups[0]),
        shared_prefix_lengths=tuple(prefixes),
    )


def _in_common(first: TrainingExample, other: TrainingExample) -> int:
    """Count the tokens with which both begin, before any at which the other learns; its last stays its own."""
    if other is first:
        return 0
    size = min(len(first), len(other) - 1)
    alike_T = (first.tokens_T[:size] == other.tokens_T[:size]) & (other.targets_T[:size] == IGNORE_INDEX)
    return int(alike_T.long().cumprod(0).sum())
