"""One call for a step of the engine: hidden states, logits of chosen rows, routing.

X rows whose logits are wanted, Z = R / 2 rotated pairs.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fathom.kernels.native import library
from fathom.model.cache import PagePool, SequenceChunk
from fathom.model.cache.pool import Pages
from fathom.model.decoder import Decoder
from fathom.model.native import structs
from fathom.model.native.pages import native_pages
from fathom.model.native.threads import StepThreads
from fathom.model.native.walk import Refusal, Unknown, Walker, refusals
from fathom.model.native.weights import PackedWeights
from fathom.model.quantized import QuantizedEmbedding, QuantizedModule

_MOST_POSITIONS = 2**31 - 1


class StepOutput(NamedTuple):
    """Hidden states after the final norm, float32 logits of the rows that were wanted, experts (int16) if asked for."""

    hidden_ND: Tensor
    logits_XV: Tensor
    routes_NLK: Tensor | None


class NativeModel:
    """A decoder whose weights are packed for the native step, over one pool of pages.

    The modules keep their own weights; ``refresh`` packs them again when these have changed. One thread at a time.
    """

    def __init__(self, decoder: Decoder, pool: PagePool, threads: int) -> None:
        """Pack the weights; use ``of``, which refuses what is not known."""
        self._decoder, self._pool = decoder, pool
        self._weights = PackedWeights()
        self._threads = StepThreads(threads)
        self._library = library.library()
        self._workspace = self._library.fathom_workspace_new()
        self.close = weakref.finalize(self, self._library.fathom_workspace_free, self._workspace)
        self._model = self._walk(Walker(self._weights))
        self._table: tuple[Tensor, ...] = ()
        self._follow_modules()
        self._versions = _versions(decoder)

    @classmethod
    def of(cls, decoder: Decoder, pool: PagePool, threads: int) -> NativeModel | Refusal:
        """Return the native form of a decoder, or why there is none; nothing is packed then."""
        if not library.available():
            return Refusal(library.unavailable_reason())
        if type(decoder) is not Decoder:
            return Refusal(f"{type(decoder).__name__} models")
        for reason in refusals(decoder):
            return Refusal(reason)
        if any(native_pages(pages) is None for layer in pool.layers for pages in layer):
            return Refusal("the cache's format")
        try:
            return cls(decoder, pool, threads)
        except Unknown as unknown:
            return Refusal(str(unknown))

    @property
    def threads(self) -> library.ThreadPool:
        """All threads that compute its steps while the processors are free."""
        return self._threads.all

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._weights.nbytes

    @property
    def attention_form(self) -> structs.AttentionForm:
        """How new tokens attend, by default as costs least: ``FATHOM_CHEAPEST`` and others of ``csrc/step.h``."""
        number: int = self._model.attention_form
        return structs.ATTENTION_FORMS[number]

    @attention_form.setter
    def attention_form(self, form: structs.AttentionForm) -> None:
        self._model.attention_form = structs.ATTENTION_FORMS.index(form)

    def refresh(self) -> None:
        """Pack the weights again after they have changed."""
        self._versions = _versions(self._decoder)
        self._weights.refresh()
        self._follow_modules()

    def follow_changes(self) -> None:
        """Refresh where a weight was written to, as PyTorch counts it, or replaced. Writes through ``data`` are not."""
        if self._versions != _versions(self._decoder):
            self.refresh()

    def step(
        self,
        tokens: Sequence[int],
        chunks: Sequence[SequenceChunk],
        *,
        logit_rows: Sequence[int] = (),
        routing: bool = False,
    ) -> StepOutput:
        """Compute a packed batch's hidden states as ``Decoder.forward`` does with a ``PagedStep`` of these chunks."""
        moe = self._decoder.spec.moe
        routes_NLK = None
        if routing and moe is not None:
            layers = self._decoder.spec.num_moe_layers
            routes_NLK = torch.empty(len(tokens), layers, moe.num_experts_per_tok, dtype=torch.int16)
        hidden_ND, logits_XV = self._run(tokens, chunks, logit_rows, routes_NLK, None, 0)
        return StepOutput(hidden_ND, logits_XV, routes_NLK)

    def forward_mtp(
        self, tokens: Sequence[int], chunks: Sequence[SequenceChunk], previous_ND: Tensor, *, empty_slots: int
    ) -> Tensor:
        """Run the first MTP module as ``Decoder.forward_mtp`` does; returns hidden states (N, D)."""
        previous_ND = previous_ND.to(torch.float32).contiguous()
        return self._run(tokens, chunks, (), None, previous_ND, empty_slots)[0]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Project hidden states (N, D) to the vocabulary, float32 (N, V)."""
        hidden_ND = hidden_ND.to(torch.float32).contiguous()
        logits_NV = torch.empty(len(hidden_ND), self._model.vocabulary)
        if len(hidden_ND):
            given = (self._threads.current.pointer, ctypes.byref(self._model), self._workspace)
            library.check(
                self._library.fathom_logits(*given, hidden_ND.data_ptr(), len(hidden_ND), logits_NV.data_ptr())
            )
        return logits_NV

    def _run(
        self,
        tokens: Sequence[int],
        chunks: Sequence[SequenceChunk],
        logit_rows: Sequence[int],
        routes_NLK: Tensor | None,
        previous_ND: Tensor | None,
        empty_slots: int,
    ) -> tuple[Tensor, Tensor]:
        hidden_ND = torch.empty(len(tokens), self._model.hidden)
        logits_XV = torch.empty(len(logit_rows), self._model.vocabulary)
        places, pages, end = list[int](), array("i"), 0
        for table, start, count, first in chunks:
            places += (len(pages), len(table), start, count, first)  # fathom_chunk
            pages.extend(table)
            end = max(end, start + count)
        self._reserve_positions(end)
        each = [array("i", tokens), array("i", places), pages, array("i", logit_rows)]
        token_ids, where, page_ids, row_ids = (ints.buffer_info()[0] for ints in each)
        batch = structs.Batch(
            rows=len(tokens),
            chunks=len(chunks),
            empty_slots=empty_slots,
            tokens=token_ids,
            chunk=where,
            pages=page_ids,
            previous=None if previous_ND is None else previous_ND.data_ptr(),
            hidden=hidden_ND.data_ptr(),
            logit_rows=len(logit_rows),
            logit_row=row_ids,
            logits=logits_XV.data_ptr(),
            routing=None if routes_NLK is None else routes_NLK.data_ptr(),
        )
        given = (ctypes.byref(self._model), self._workspace, ctypes.byref(batch))
        with self._threads.step() as pool:
            library.check(self._library.fathom_step(pool, *given))
        return hidden_ND, logits_XV

    def _reserve_positions(self, end: int) -> None:
        """Make the rotary table as long as the sequences are."""
        if end <= self._model.positions:
            return
        count = min(max(2 * self._model.positions, end, 256), max(end, self._decoder.spec.max_position_embeddings))
        table = self._decoder.rope.table(torch.arange(count)[None])
        self._table = (table.cos_BTZ.contiguous(), table.sin_BTZ.contiguous())
        self._model.cosine, self._model.sine = (each.data_ptr() for each in self._table)
        self._model.positions = count

    def _walk(self, walker: Walker) -> structs.Model:
        decoder, pool = self._decoder, self._pool
        layers = (structs.Layer * len(decoder.layers))(
            *(walker.layer(module, decoder.window) for module in decoder.layers)
        )
        for layer, pages in zip(layers, pool.layers, strict=False):
            self._point_to_pages(layer, pages)
        self._weights.keep(layers)
        model = structs.Model(
            hidden=decoder.spec.hidden_size,
            vocabulary=decoder.spec.vocab_size,
            layers=len(layers),
            half=decoder.rope.layout == "half",
            layer=layers,
            norm=walker.norm(decoder.norm),
            head=walker.head(decoder.lm_head),
            page_size=pool.page_size,
        )
        if len(pool.layers) > len(layers):
            mtp = walker.mtp(decoder.mtp[0])
            self._point_to_pages(mtp.layer, pool.layers[len(layers)])
            self._weights.keep(mtp)
            model.mtp = ctypes.pointer(mtp)
        return model

    def _point_to_pages(self, layer: structs.Layer, pages: Sequence[Pages]) -> None:
        each = [native_pages(stored) for stored in pages]
        for index in range(2):
            rows = each[min(index, len(each) - 1)]
            assert rows is not None
            layer.pages[index] = ctypes.pointer(rows)
        self._weights.keep(each)

    def _follow_modules(self) -> None:
        """Look tokens up in the module's own weights, and round activations as the modules do."""
        rounding = {each.round_activations for each in self._decoder.modules() if isinstance(each, QuantizedModule)}
        if len(rounding) > 1:
            raise Unknown("modules of which some round activations and some do not")
        self._model.quantize = rounding != {False}
        embedding = self._decoder.embed_tokens
        if type(embedding) is QuantizedEmbedding:
            self._weights.keep(embedding.qweight)
            self._model.embedding_packed = embedding.qweight.struct()
            return
        if type(embedding) is not nn.Embedding or not embedding.weight.is_contiguous():
            raise Unknown(f"{type(embedding).__name__} embeddings")
        if embedding.weight.dtype not in (torch.float32, torch.bfloat16):
            raise Unknown(f"embeddings in {embedding.weight.dtype}")
        self._embedding = embedding.weight.detach()
        self._model.embedding = self._embedding.data_ptr()
        self._model.embedding_bf16 = self._embedding.dtype == torch.bfloat16


def _versions(decoder: Decoder) -> list[tuple[int, int]]:
    tensors = (*decoder.parameters(), *decoder.buffers())
    versions = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]
    rounding = (each.round_activations for each in decoder.modules() if isinstance(each, QuantizedModule))
    return [*versions, *((0, int(each)) for each in rounding)]
