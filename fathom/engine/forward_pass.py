"""Passes of one model over the pool's pages: by the native step where there is one, else by the model's modules.

X rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.kernels.native import library
from fathom.model.cache import DecodingStep, PagedStep, PagePool, SequenceChunk, decoding_rows
from fathom.model.decoder import Decoder, DecoderOutput
from fathom.model.device import numbers_on, to_device
from fathom.model.moe import chosen_experts
from fathom.model.native import NativeModel, StepOutput
from fathom.spec.moe import Capacity


class ForwardPass:
    """Runs packed tokens through one model; ``native`` is a faster form of the same model."""

    def __init__(
        self,
        model: Decoder,
        pool: PagePool,
        *,
        native: NativeModel | None = None,
        record_routing: bool = False,
    ) -> None:
        self.model = model
        self._pool = pool
        self._native = native
        self._record_routing = record_routing

    @property
    def threads(self) -> library.ThreadPool | None:
        """The native step's threads, None where modules run."""
        return None if self._native is None else self._native.threads

    def run(
        self,
        tokens: Sequence[int],
        chunks: Sequence[SequenceChunk],
        logit_rows: Sequence[int],
        features_ND: Tensor | None = None,
    ) -> StepOutput:
        """Run the tokens of the chunks, packed; rows count from 0."""
        if self._native is not None and features_ND is None:
            return self._native.step(tokens, chunks, logit_rows=logit_rows, routing=self._record_routing)
        hidden_ND, routes_NLK = self._run_modules(tokens, chunks, features_ND)
        return StepOutput(hidden_ND, self._logits_of(hidden_ND, logit_rows), routes_NLK)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Project hidden states (N, D) to the vocabulary, float32 (N, V)."""
        return self.model.logits(hidden_ND) if self._native is None else self._native.logits(hidden_ND)

    def forward_mtp(self, tokens: Sequence[int], chunks: Sequence[SequenceChunk], previous_ND: Tensor) -> Tensor:
        """Run the first MTP module over its layer of the pool, slot 0 of each sequence being empty; (N, D)."""
        if self._native is not None:
            return self._native.forward_mtp(tokens, chunks, previous_ND, empty_slots=1)
        step = PagedStep(self._pool, chunks, first_layer=self.model.spec.num_hidden_layers, empty_slots=1)
        tokens_1N = numbers_on(self._pool.device, [tokens])
        return self.model.forward_mtp(tokens_1N, previous_ND[None], step)[0]

    def _run_modules(
        self, tokens: Sequence[int], chunks: Sequence[SequenceChunk], features_ND: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self._decodes_in_buckets(chunks) and features_ND is None:
            return self._decode(tokens, chunks)
        step = PagedStep(self._pool, chunks, window=self.model.window)
        tokens_1N = numbers_on(self._pool.device, [tokens])
        output: DecoderOutput = self.model(tokens_1N, cache=step, features_ND=features_ND)
        routes_NLK = chosen_experts(output.routing)[0].to("cpu", torch.int16) if self._record_routing else None
        return output.hidden_BTD[0], routes_NLK

    def _decodes_in_buckets(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether a pass has the shapes of its bucket: on a GPU, one new token for each of whole sequences.

        Experts of limited capacity would count the rows that fill the bucket.
        """
        moe = self.model.spec.moe
        if self._pool.device.type in ("cpu", "mps") or self.model.window is not None:
            return False
        if moe is not None and isinstance(moe.router.select, Capacity):
            return False
        return all(chunk.tokens == 1 and not chunk.first for chunk in chunks)

    def _decode(self, tokens: Sequence[int], chunks: Sequence[SequenceChunk]) -> tuple[Tensor, Tensor | None]:
        device, count = self._pool.device, len(tokens)
        rows_BX = decoding_rows(chunks, self._pool.page_size)
        filled = [*tokens, *[tokens[-1]] * (len(rows_BX) - count)]
        step = DecodingStep(self._pool, to_device(rows_BX, device), max(chunk.end for chunk in chunks))
        output: DecoderOutput = self.model(numbers_on(device, [filled]), cache=step)
        routes_NLK = None
        if self._record_routing:
            routes_NLK = chosen_experts(output.routing)[0, :count].to("cpu", torch.int16)
        return output.hidden_BTD[0, :count], routes_NLK

    def _logits_of(self, hidden_ND: Tensor, rows: Sequence[int]) -> Tensor:
        if not rows:
            return hidden_ND.new_empty(0, self.model.spec.vocab_size, dtype=torch.float32)
        if len(rows) == len(hidden_ND):
            return self.logits(hidden_ND)
        return self.logits(hidden_ND[numbers_on(hidden_ND.device, rows)])
