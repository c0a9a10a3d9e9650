"""The parts of a batch that the processes of a group take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.errors import SpecError
from fathom.model.vision import ImageBatch
from fathom.train.group import Group
from fathom.train.protocols import Loader, TokenBatch


@dataclass(frozen=True, slots=True)
class RowsPart:
    """Consecutive rows of a batch."""

    tokens_BT1: Tensor
    source_B: Tensor
    images: ImageBatch | None = None
    targets_BT: Tensor | None = None
    ends_BT: Tensor | None = None


def part_of(batch: TokenBatch | PackedBatch, rank: int, size: int) -> TokenBatch | PackedBatch:
    """Return the part of a whole batch that one of ``size`` ranks takes: parts in order make the batch.

    Raises:
        SpecError: there are not as many rows or examples for each rank.
    """
    if size == 1:
        return batch
    if isinstance(batch, PackedBatch):
        return _packed_part(batch, rank, size)
    rows = _share(len(batch.tokens_BT1), rank, size)
    if batch.images is not None:
        raise SpecError("parallel", "batches with images are for one process", "leave [parallel] out")
    return RowsPart(
        batch.tokens_BT1[rows],
        batch.source_B[rows],
        targets_BT=None if batch.targets_BT is None else batch.targets_BT[rows],
        ends_BT=None if batch.ends_BT is None else batch.ends_BT[rows],
    )


class RankLoader:
    """The part of each batch of a loader that a rank of a group takes; all ranks read the same loader."""

    def __init__(self, loader: Loader, group: Group) -> None:
        self._loader, self._group = loader, group

    def next(self, batch_size: int) -> TokenBatch | PackedBatch:
        """Return the rank's part of the next batch."""
        return part_of(self._loader.next(batch_size), self._group.rank, self._group.size)

    def state(self) -> dict[str, Any]:
        """Return where the loader stands."""
        return self._loader.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._loader.restore(state)


def _share(rows: int, rank: int, size: int) -> slice:
    if rows % size:
        raise SpecError(
            "batch.size", f"{rows} rows do not divide among {size} processes", f"choose a multiple of {size}"
        )
    return slice(rank * rows // size, (rank + 1) * rows // size)


def _packed_part(batch: PackedBatch, rank: int, size: int) -> PackedBatch:
    each = batch.sequences_per_example
    examples = len(batch.lengths) // each
    first, last = (examples * at // size * each for at in (rank, rank + 1))
    start, end = sum(batch.lengths[:first]), sum(batch.lengths[:last])
    shared = batch.shared_prefix_lengths
    return PackedBatch(
        batch.tokens_N[start:end],
        batch.targets_N[start:end],
        batch.lengths[first:last],
        {name: column[start:end] for name, column in batch.columns.items()},
        each,
        None if shared is None else shared[first:last],
    )
