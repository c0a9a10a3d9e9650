"""Drawing by the native library: all rows of a step in one call, each as ``draw`` draws it to rounding.

Z words of 32 tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.constraint import TokenConstraint, bitmask_words
from fathom.engine.sampling.failure import NOT_FINITE, NOTHING_ALLOWED, SamplingFailure
from fathom.engine.sampling.logits_processors import SamplingMetadata
from fathom.errors import FathomError
from fathom.kernels.native import drawing, library
from fathom.spec.sampling import TokenLogprob


class NativeSampler:
    """Draws for a vocabulary on a CPU, with buffers that are kept; for one thread at a time."""

    def __init__(
        self, vocab: int, unused_ids_N: Tensor | None = None, *, threads: library.ThreadPool | None = None
    ) -> None:
        self._vocab = vocab
        self._drawer = drawing.RowDrawer(vocab, unused_ids_N, threads)
        self._bitmasks: list[Tensor] = []  # of each row of a step

    def draw(self, logits_BV: Tensor, rows: Sequence[SamplingMetadata]) -> list[TokenLogprob | SamplingFailure]:
        """Draw one token per row of float32 logits, or say why that row has none; see ``draw.try_draw``."""
        apart, inner = logits_BV.stride()
        if inner != 1:
            logits_BV = logits_BV.contiguous()
            apart = self._vocab
        address, drawer = logits_BV.data_ptr(), self._drawer
        failures: dict[int, SamplingFailure] = {}
        drawer.begin(len(rows))
        for index, row in enumerate(rows):
            if row.way is None:
                row.way = self._way(row)
            changes = allowed = 0
            if not row.is_unmodified:
                try:
                    changes = row.changes(self._vocab).address(row.drawn) if row.is_adjusted else 0
                    allowed = 0 if row.constraint is None else self._allowed(index, row.constraint)
                except FathomError as error:
                    failures[index] = SamplingFailure("request", str(error))
            drawer.add(index, address, row.seed, len(row.drawn), row.way, changes, allowed)
            address += 4 * apart
        return _results(*drawer.draw(len(rows)), failures)

    def _way(self, row: SamplingMetadata) -> drawing.Way:
        params, vocab = row.params, self._vocab
        most = min(params.top_k, vocab), min(params.logprobs or 0, vocab)
        return drawing.Way(params.temperature, params.top_p, params.min_p, *most)

    def _allowed(self, index: int, constraint: TokenConstraint) -> int:
        """Return the address of a row's bitmask, 0 where nothing is forbidden."""
        while len(self._bitmasks) <= index:
            self._bitmasks.append(torch.empty(bitmask_words(self._vocab), dtype=torch.int32))
        bitmask_Z = self._bitmasks[index].zero_()
        return bitmask_Z.data_ptr() if constraint.fill_bitmask(bitmask_Z) else 0


def _results(
    stride: int, ids: list[int], logprobs: list[float], failures: dict[int, SamplingFailure]
) -> list[TokenLogprob | SamplingFailure]:
    if stride == 1 and not failures and min(ids) >= 0:
        return [TokenLogprob(token, logprob) for token, logprob in zip(ids, logprobs, strict=True)]
    results: list[TokenLogprob | SamplingFailure] = []
    for index, start in enumerate(range(0, len(ids), stride)):
        if ids[start] == drawing.NOT_FINITE:
            results.append(NOT_FINITE)
        elif index in failures:
            results.append(failures[index])
        elif ids[start] == drawing.NOTHING_ALLOWED:
            results.append(NOTHING_ALLOWED)
        else:
            others = zip(ids[start + 1 : start + stride], logprobs[start + 1 : start + stride], strict=True)
            results.append(TokenLogprob(ids[start], logprobs[start], tuple(each for each in others if each[0] >= 0)))
    return results


def all_finite(values: Tensor) -> bool:
    """Whether values are all finite, at the cost of reading them once."""
    if values.dtype == torch.float32 and values.is_contiguous():
        return drawing.all_finite(values)
    return bool(values.isfinite().all())
