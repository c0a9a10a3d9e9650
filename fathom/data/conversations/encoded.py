"""Encoded samples as arrays, to be trained on and to be stored.

X samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.data.conversations.loss_mask import Sample
from fathom.data.conversations.pack import pack_samples
from fathom.data.packed import PackedBatch


@dataclass(frozen=True, slots=True)
class EncodedSamples:
    """The token ids of each sample, int64, its loss mask, bool, both of a sample's length, and its key."""

    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    learned: list[NDArray[np.bool_]] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """Take over samples."""
        return cls(
            [np.array(sample.tokens, dtype=np.int64) for sample in samples],
            [np.array(sample.learned, dtype=np.bool_) for sample in samples],
            [sample.key for sample in samples],
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, others: EncodedSamples, repeat: int = 1) -> None:
        """Append other samples, ``repeat`` times; the arrays are shared."""
        self.tokens.extend(others.tokens * repeat)
        self.learned.extend(others.learned * repeat)
        self.keys.extend(others.keys * repeat)

    def split(self, held_out: Collection[int]) -> tuple[EncodedSamples, EncodedSamples]:
        """Return the samples whose keys are not held out, and those whose keys are."""
        learned, kept = EncodedSamples(), EncodedSamples()
        for tokens, mask, key in zip(self.tokens, self.learned, self.keys, strict=True):
            side = kept if key in held_out else learned
            side.tokens.append(tokens)
            side.learned.append(mask)
            side.keys.append(key)
        return learned, kept

    def packed(self) -> PackedBatch:
        """Return all samples as one batch."""
        return pack_samples(self.tokens, self.learned)

    def tensors(self) -> dict[str, Tensor]:
        """Return all samples as ``tokens_N`` (int32), ``learned_N`` (bool), ``lengths_X`` and ``keys_X`` (int64)."""
        return {
            "tokens_N": torch.from_numpy(np.concatenate([np.empty(0, np.int64), *self.tokens]).astype(np.int32)),
            "learned_N": torch.from_numpy(np.concatenate([np.empty(0, np.bool_), *self.learned])),
            "lengths_X": torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.int64),
            "keys_X": torch.tensor(self.keys, dtype=torch.int64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the samples that ``tensors`` gave, as views of two arrays."""
        ends = tensors["lengths_X"].numpy().cumsum()[:-1]
        tokens = tensors["tokens_N"].numpy().astype(np.int64)
        if not len(tensors["lengths_X"]):
            return cls()
        learned = np.split(tensors["learned_N"].numpy(), ends)
        return cls(np.split(tokens, ends), learned, tensors["keys_X"].tolist())
