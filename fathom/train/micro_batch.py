"""Batches cut into what one forward pass takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.errors import DataError, SpecError
from fathom.model.device import to_device
from fathom.model.forward_options import PackedSequences
from fathom.model.vision import ImageBatch
from fathom.spec.targets import IGNORE_INDEX
from fathom.train.group import ALONE, Group, gathered
from fathom.train.protocols import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some of a batch's sequences, on the device: rows (B, T), or ``packed`` as (1, N).

    ``target_fraction``, ``token_fraction`` and ``sequence_fraction`` are their parts of the whole batch's targets,
    tokens and sequences. ``sequences`` are their indices in the batch, ``source_B`` the sources of rows, ``ends_BT``
    the tokens that end a sequence. ``columns`` have one row a token, (N, ...).
    A prefix that packed sequences share is computed once (``PackedSequences.shared_prefix_lengths``), and counts once
    in ``token_fraction`` and whatever else is taken over tokens, such as the z-loss and agreement of routing.
    An ``idle`` one repeats tokens and counts for nothing: ranks take part in the same number of passes.
    ``token_range`` are the lowest and the highest id and ``highest_expert`` that of "routes", found on the host.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    target_fraction: float
    token_fraction: float
    sequence_fraction: float
    sequences: slice
    packed: PackedSequences | None = None
    ends_BT: Tensor | None = None
    source_B: Tensor | None = None
    images: ImageBatch | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    idle: bool = False
    token_range: tuple[int, int] | None = None
    highest_expert: int | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on a device; what is known of its values is found first, while they are on the host.

        The host does not wait for the copies.
        """
        low, high = (int(end) for end in torch.aminmax(self.tokens_BT))
        routes_NLK, whole = self.routes_NLK, slice(None)

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else to_device(tensor, device)

        return replace(
            self,
            tokens_BT=to_device(self.tokens_BT, device),
            targets_BT=to_device(self.targets_BT, device),
            ends_BT=moved(self.ends_BT),
            source_B=moved(self.source_B),
            images=None if self.images is None else self.images.part(whole, device),
            columns={name: to_device(column, device) for name, column in self.columns.items()},
            token_range=(low, high),
            highest_expert=None if routes_NLK is None else int(routes_NLK.max()),
        )

    @property
    def routes_NLK(self) -> Tensor | None:
        """The experts each token went to when it was sampled, int16, -1 where unknown; column "routes"."""
        return self.columns.get("routes")


def split(
    batch: TokenBatch | PackedBatch,
    micro_batch_size: int,
    sequence_length: int,
    device: torch.device,
    group: Group = ALONE,
) -> Iterator[MicroBatch]:
    """Cut a batch into micro-batches: ``micro_batch_size`` rows of T tokens, or as many tokens of whole sequences.

    A packed sequence that is longer than a micro-batch comes alone. Prefixes that sequences of a micro-batch share are
    computed once in it. ``batch`` is this rank's part of the whole batch, which is that of all ranks in order:
    the fractions and ``sequences`` are of the whole.

    Raises:
        DataError: rows of another length than ``sequence_length``.
    """
    if isinstance(batch, PackedBatch):
        return prefetched(_split_packed(batch, micro_batch_size * sequence_length, group), device)
    return prefetched(_split_rows(batch, micro_batch_size, sequence_length, group), device)


def prefetched(micros: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Bring micro-batches to a device; except on a CPU, each while the one before it is computed."""
    if device.type == "cpu":
        for micro in micros:
            yield micro.to(device)
        return
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    following: MicroBatch | None = None
    for micro in micros:
        ready, following = following, _copied(micro, device, stream)
        if ready is not None:
            yield _awaited(ready, device, stream)
    if following is not None:
        yield _awaited(following, device, stream)


def batch_size(batch: TokenBatch | PackedBatch, group: Group = ALONE) -> tuple[int, int]:
    """Return the sequences and the tokens that the ranks' batches hold together."""
    if isinstance(batch, PackedBatch):
        own = (len(batch.lengths), len(batch.tokens_N))
    else:
        sequences, width = batch.tokens_BT1.shape
        own = (sequences, sequences * (width - 1))
    once = [number * (group.context_rank == 0) for number in own]
    sequences, tokens = (sum(values) for values in zip(*gathered(group, once), strict=True))
    return sequences, tokens


def _copied(micro: MicroBatch, device: torch.device, stream: torch.cuda.Stream | None) -> MicroBatch:
    """Start the copies, on a stream of their own where there is one."""
    with torch.cuda.stream(stream):
        return micro.to(device)


def _awaited(micro: MicroBatch, device: torch.device, stream: torch.cuda.Stream | None) -> MicroBatch:
    """Let what is computed next wait for the copies; the memory is theirs until it is done."""
    if stream is not None:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        images = micro.images
        copies = [micro.tokens_BT, micro.targets_BT, micro.ends_BT, micro.source_B, *micro.columns.values()]
        copies += () if images is None else images.tensors
        for copy in copies:
            if copy is not None:
                copy.record_stream(computing)
    return micro


def with_last(micros: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Yield each micro-batch and whether it is the last."""
    before: MicroBatch | None = None
    for micro in micros:
        if before is not None:
            yield before, False
        before = micro
    if before is not None:
        yield before, True


def check_values(micro: MicroBatch, vocab_size: int, experts: int) -> None:
    """Refuse ids outside the vocabulary, which an embedding would read past its end for, and experts there are not."""
    if micro.token_range is not None:
        low, high = micro.token_range
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise DataError(f"batch: token {wrong} is outside the vocabulary of {vocab_size}; make the shards again")
    if micro.highest_expert is not None and experts and micro.highest_expert >= experts:
        problem = f"names expert {micro.highest_expert} of {experts}, which count from 0"
        raise SpecError('column "routes"', problem, "give what this model recorded for these tokens")


@dataclass(frozen=True, slots=True)
class _Whole:
    """The whole batch: its sequences, tokens and targets that count, and where this rank's sequences start in it."""

    sequences: int
    tokens: int
    targets: int
    first: int

    @classmethod
    def of(cls, group: Group, *, sequences: int, tokens: int, targets: int) -> _Whole:
        """Add up what each rank has."""
        once = group.context_rank == 0  # the others have further tokens of the same sequences
        ranks = gathered(group, (sequences * once, tokens * once, targets))
        total = [sum(values) for values in zip(*ranks, strict=True)]
        return cls(total[0], total[1], total[2], first=sum(rank[0] for rank in ranks[: group.rank]))


def _split_rows(batch: TokenBatch, micro_batch_size: int, length: int, group: Group) -> Iterator[MicroBatch]:
    tokens_BT1 = batch.tokens_BT1
    if tokens_BT1.dim() != 2 or tokens_BT1.shape[1] != length + 1 or not tokens_BT1.shape[0]:
        raise DataError(
            f"batch: tokens of shape {tuple(tokens_BT1.shape)} instead of (B, {length + 1}); "
            "make the loader with the stage's sequence_length"
        )
    given, size, own = batch.targets_BT, tokens_BT1.shape[0], group.own_tokens(length)
    targets_BT = (tokens_BT1[:, 1:] if given is None else given)[:, own]
    learned_B = (targets_BT != IGNORE_INDEX).sum(1)
    whole = _Whole.of(group, sequences=size, tokens=size * length, targets=int(learned_B.sum()))
    for start in range(0, size, micro_batch_size):
        rows = slice(start, min(start + micro_batch_size, size))
        yield MicroBatch(
            tokens_BT=tokens_BT1[rows, :-1][:, own],
            targets_BT=targets_BT[rows],
            target_fraction=int(learned_B[rows].sum()) / max(whole.targets, 1),
            token_fraction=(rows.stop - rows.start) / whole.sequences,
            sequence_fraction=(rows.stop - rows.start) / whole.sequences,
            sequences=slice(whole.first + rows.start, whole.first + rows.stop),
            ends_BT=None if batch.ends_BT is None else batch.ends_BT[rows][:, own],
            source_B=batch.source_B[rows],
            images=None if batch.images is None else batch.images.part(rows, torch.device("cpu")),
        )


def _split_packed(batch: PackedBatch, tokens: int, group: Group) -> Iterator[MicroBatch]:
    runs = list(_sequence_runs(batch, tokens))
    whole = _Whole.of(
        group,
        sequences=len(batch.lengths),
        tokens=sum(length for run in runs for length in run.lengths),
        targets=int((batch.targets_N != IGNORE_INDEX).sum()),
    )
    most = int(group.max(torch.tensor(len(runs))))  # before the passes, which ranks run out of step
    index = start = 0
    micro: MicroBatch | None = None
    for run in runs:
        sequences, pieces = slice(index, index + len(run.lengths)), []
        for length, first in zip(batch.lengths[sequences], run.shared_prefix_lengths, strict=True):
            pieces.append(torch.arange(start + first, start + length))
            start += length
        index, rows_N = sequences.stop, torch.cat(pieces)
        targets_N = batch.targets_N[rows_N]
        micro = MicroBatch(
            tokens_BT=batch.tokens_N[rows_N][None],
            targets_BT=targets_N[None],
            target_fraction=int((targets_N != IGNORE_INDEX).sum()) / max(whole.targets, 1),
            token_fraction=len(rows_N) / whole.tokens,
            sequence_fraction=len(run.lengths) / whole.sequences,
            sequences=slice(whole.first + sequences.start, whole.first + sequences.stop),
            packed=run.packed,
            columns={name: column[rows_N] for name, column in batch.columns.items()},
        )
        yield micro
    assert micro is not None
    idle = replace(micro, target_fraction=0.0, token_fraction=0.0, sequence_fraction=0.0, idle=True)
    yield from repeat(idle, most - len(runs))


@dataclass(frozen=True, slots=True)
class _SequenceRun:
    """Consecutive sequences packed as one micro-batch: the tokens of each, and those it leaves out.

    ``prefix_length`` is how much of the last sequence packed whole is a prefix that others may share.
    """

    lengths: tuple[int, ...] = ()
    shared_prefix_lengths: tuple[int, ...] = ()
    prefix_length: int = 0

    @property
    def packed(self) -> PackedSequences:
        """The run as one row of a forward pass."""
        prefixes = self.shared_prefix_lengths
        return PackedSequences(self.lengths, prefixes if any(prefixes) else None)

    def with_next(self, length: int, first: int) -> _SequenceRun:
        """Append a sequence, without the prefix it shares where that is in the run already."""
        left_out = min(first, self.prefix_length)
        prefix_length = self.prefix_length if left_out else first or length
        return _SequenceRun((*self.lengths, length - left_out), (*self.shared_prefix_lengths, left_out), prefix_length)


def _sequence_runs(batch: PackedBatch, tokens: int) -> Iterator[_SequenceRun]:
    """Yield runs of as many sequences as ``tokens`` hold, in order."""
    each = list(zip(batch.lengths, batch.shared_prefix_lengths or repeat(0), strict=False))
    run = _SequenceRun()
    for index in range(0, len(each), batch.sequences_per_example):
        unit = each[index : index + batch.sequences_per_example]
        longer = _joined(run, unit)
        if run.lengths and sum(longer.lengths) > tokens:
            yield run
            longer = _joined(_SequenceRun(), unit)
        run = longer
    yield run


def _joined(run: _SequenceRun, unit: Sequence[tuple[int, int]]) -> _SequenceRun:
    for length, first in unit:
        run = run.with_next(length, first)
    return run
