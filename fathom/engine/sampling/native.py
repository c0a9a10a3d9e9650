"""Drawing by the native library: all rows of a step in one call, each as ``draw`` draws it to rounding.

Z words of 32 tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.constraint import allowed_words
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

    def draw(self, logits_BV: Tensor, rows: Sequence[SamplingMetadata]) -> list[TokenLogprob | SamplingFailure]:
        """Draw one token per row of float32 logits, or say why that row has none; see ``draw.try_draw``."""
        apart, inner = logits_BV.stride()
        if inner != 1:
            logits_BV = logits_BV.contiguous()
            apart = self._vocab
        address, drawer = logits_BV.data_ptr(), self._drawer
        failures: dict[int, SamplingFailure] = {}
        held: list[Tensor] = []  # what the rows point to
        drawer.begin(len(rows))
        for index, row in enumerate(rows):
            if row.way is None:
                row.way = self._way(row)
            if row.is_unmodified:
                drawer.add(index, address, row.seed, len(row.drawn), row.way)
            else:
                try:
                    changed = self._changed(logits_BV[index], row, held)
                except FathomError as error:
                    changed = drawing.UNCHANGED
                    failures[index] = SamplingFailure("request", str(error))
                drawer.add(index, address, row.seed, len(row.drawn), row.way, changed)
            address += 4 * apart
        return _results(*drawer.draw(len(rows)), failures)

    def _way(self, row: SamplingMetadata) -> drawing.Way:
        params, vocab = row.params, self._vocab
        most = min(params.top_k, vocab), min(params.logprobs or 0, vocab)
        return drawing.Way(params.temperature, params.top_p, params.min_p, *most)

    def _changed(self, logits_V: Tensor, row: SamplingMetadata, held: list[Tensor]) -> drawing.Changed:
        ids_N, values_N = row.changes(logits_V) if row.is_adjusted else (None, None)
        allowed_Z = None if row.constraint is None else allowed_words(row.constraint, self._vocab)
        each = (ids_N, values_N, allowed_Z)
        held += [tensor for tensor in each if tensor is not None]
        ids, values, allowed = (0 if tensor is None else tensor.data_ptr() for tensor in each)
        return drawing.Changed(ids, values, allowed, 0 if ids_N is None else len(ids_N))


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
