"""Packed (varlen) batches: sequences of any lengths, concatenated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.spec.targets import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A packed batch of whole sequences, none of which attends to another.

    ``tokens_N`` (int64) are the inputs and ``targets_N`` (int64) the labels, -100 where the loss ignores them: of a
    text of T + 1 tokens, the first T and the last T. ``lengths`` are the T of each sequence. ``columns`` are further
    tensors with one row a token. Examples of ``sequences_per_example`` sequences, such as the two of a pair, are never
    split.

    ``shared_prefix_lengths``, where given, says of each sequence how many of its first tokens are also those of the
    last one before it that has 0: answers share their prompt. All labels there are -100, so that a forward pass may
    compute them once for all (``fathom.train.micro_batch.split``); columns are then those of the sequence that lays
    them.
    """

    tokens_N: Tensor
    targets_N: Tensor
    lengths: tuple[int, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    sequences_per_example: int = 1
    shared_prefix_lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        tokens = sum(self.lengths)
        if not self.lengths or min(self.lengths) < 1 or len(self.lengths) % self.sequences_per_example:
            raise DataError(
                f"batch: {len(self.lengths)} sequences of {min(self.lengths, default=0)} tokens or more cannot be "
                f"packed {self.sequences_per_example} at a time; leave empty ones out"
            )
        for name, column in {"tokens": self.tokens_N, "targets": self.targets_N, **self.columns}.items():
            if column.shape[:1] != (tokens,):
                raise DataError(f"batch: {name} have shape {tuple(column.shape)} instead of ({tokens}, ...)")
        self._check_shared_prefixes()

    def _check_shared_prefixes(self) -> None:
        """Refuse prefixes that differ from what they share, or that have targets."""
        if self.shared_prefix_lengths is None:
            return
        if len(self.shared_prefix_lengths) != len(self.lengths):
            raise DataError(
                f"batch: shared_prefix_lengths has {len(self.shared_prefix_lengths)} numbers for {len(self.lengths)} "
                "sequences; give each"
            )
        base = start = longest = 0
        for index, (length, first) in enumerate(zip(self.lengths, self.shared_prefix_lengths, strict=True)):
            base, longest = (base, longest) if first else (start, length)
            own_N, base_N = (self.tokens_N[at : at + first] for at in (start, base))
            learns = bool((self.targets_N[start : start + first] != IGNORE_INDEX).any())
            if not 0 <= first < length or first > longest or learns or not torch.equal(own_N, base_N):
                raise DataError(
                    f"batch: sequence {index} of {length} tokens does not share its first {first}, without learning, "
                    "with the last one before it that shares none; lay those that do behind each other"
                )
            start += length
