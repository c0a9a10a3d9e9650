"""Drawing by the native library: all rows of a step in one call, each as ``draw`` draws it to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.constraint import allowed_words
from fathom.engine.sampling.failure import NOT_FINITE, NOTHING_ALLOWED, SamplingFailure
from fathom.engine.sampling.logits_processors import SamplingMetadata, adjust_logits
from fathom.errors import FathomError
from fathom.kernels.native import drawing
from fathom.spec.sampling import TokenLogprob


class NativeSampler:
    """Draws for a vocabulary on a CPU, with buffers that are kept; for one thread at a time."""

    def __init__(self, vocab: int, unused_ids_N: Tensor | None = None) -> None:
        self._vocab = vocab
        self._drawer = drawing.RowDrawer(vocab, unused_ids_N)

    def draw(self, logits_BV: Tensor, rows: Sequence[SamplingMetadata]) -> list[TokenLogprob | SamplingFailure]:
        """Draw one token per row of float32 logits, or say why that row has none; see ``draw.try_draw``."""
        if logits_BV.stride(-1) != 1:
            logits_BV = logits_BV.contiguous()
        address, apart, vocab = logits_BV.data_ptr(), logits_BV.stride(0) * 4, self._vocab
        failures: dict[int, SamplingFailure] = {}
        held: list[Tensor] = []  # what the rows point to
        most = 0
        for index, (row, slot) in enumerate(zip(rows, self._drawer.rows(len(rows)), strict=False)):
            params = row.params
            slot.logits, slot.adjusted, slot.allowed = address, None, None
            slot.seed, slot.position = row.seed, len(row.drawn)
            slot.temperature, slot.top_p, slot.min_p = params.temperature, params.top_p, params.min_p
            slot.top_k = min(params.top_k, vocab)
            slot.alternatives = asked = min(params.logprobs or 0, vocab)
            most = max(most, asked)
            address += apart
            if not row.is_unmodified:
                try:
                    self._modify(slot, logits_BV[index], row, held)
                except FathomError as error:
                    failures[index] = SamplingFailure("request", str(error))
        return self._results(len(rows), most, failures)

    def _modify(self, slot: drawing.DrawRow, logits_V: Tensor, row: SamplingMetadata, held: list[Tensor]) -> None:
        if row.is_adjusted:
            held.append(adjust_logits(logits_V, row))
            slot.adjusted = held[-1].data_ptr()
        words_Z = None if row.constraint is None else allowed_words(row.constraint, self._vocab)
        if words_Z is not None:
            held.append(words_Z)
            slot.allowed = words_Z.data_ptr()

    def _results(
        self, count: int, most: int, failures: dict[int, SamplingFailure]
    ) -> list[TokenLogprob | SamplingFailure]:
        ids, logprobs = self._drawer.draw(count, most)
        if not most and not failures and min(ids) >= 0:
            return [TokenLogprob(token, logprob) for token, logprob in zip(ids, logprobs, strict=True)]
        results: list[TokenLogprob | SamplingFailure] = []
        for index, start in enumerate(range(0, len(ids), 1 + most)):
            stop = start + 1 + most
            if ids[start] == drawing.NOT_FINITE:
                results.append(NOT_FINITE)
            elif index in failures:
                results.append(failures[index])
            elif ids[start] == drawing.NOTHING_ALLOWED:
                results.append(NOTHING_ALLOWED)
            else:
                others = zip(ids[start + 1 : stop], logprobs[start + 1 : stop], strict=True)
                results.append(
                    TokenLogprob(ids[start], logprobs[start], tuple(each for each in others if each[0] >= 0))
                )
        return results


def all_finite(values: Tensor) -> bool:
    """Whether values are all finite, at the cost of reading them once."""
    if values.dtype == torch.float32 and values.is_contiguous():
        return drawing.all_finite(values)
    return bool(values.isfinite().all())
