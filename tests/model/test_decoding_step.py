"""A decoding step in the shapes of its bucket: equal to the paged step, and one graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.kernels import experts
from fathom.model.build import build
from fathom.model.cache import DecodingStep, PagedStep, PagePool, SequenceChunk, decoding_rows
from fathom.model.decoder import Decoder
from fathom.spec import ModelSpec

CHUNKS = [SequenceChunk((0, 4, 2), 8, 1), SequenceChunk((1,), 2, 1), SequenceChunk((3, 5, 7, 9, 10), 18, 1)]
OTHERS = [SequenceChunk((11, 0), 4, 1), SequenceChunk((6, 8, 1, 2, 13), 16, 1), SequenceChunk((3,), 0, 1)]


def filled(spec: ModelSpec, dtype: torch.dtype) -> tuple[Decoder, PagePool]:
    model = build(replace(spec, num_nextn_predict_layers=0), seed=0, dtype=dtype).eval()
    pool = PagePool.allocate(model.spec, pages=16, page_size=4, dtype=dtype)
    for number, layer in enumerate(pool.layers):
        for pages in layer:
            rows_NX = pages.rows_NX  # type: ignore[attr-defined]
            rows_NX.copy_(torch.randn(rows_NX.shape, generator=torch.Generator().manual_seed(number)))
    return model, pool


@pytest.mark.parametrize("chunks", [CHUNKS, OTHERS, CHUNKS[:1]])
def test_a_bucket_computes_what_the_paged_step_computes(spec: ModelSpec, chunks: list[SequenceChunk]) -> None:
    if "mistral" in spec.family and spec.attention.sliding_window:  # type: ignore[union-attr]
        spec = replace(spec, attention=replace(spec.attention, sliding_window=None))
    tokens = list(range(7, 7 + len(chunks)))
    with torch.inference_mode():
        model, pool = filled(spec, torch.float32)
        expected = model(torch.tensor([tokens]), cache=PagedStep(pool, chunks)).hidden_BTD
        written = [pages.rows_NX.clone() for layer in pool.layers for pages in layer]  # type: ignore[attr-defined]
        model, pool = filled(spec, torch.float32)
        rows = decoding_rows(chunks, 4)
        more = tokens + tokens[-1:] * (len(rows) - len(tokens))
        actual = model(torch.tensor([more]), cache=DecodingStep(pool, rows, 19)).hidden_BTD
    torch.testing.assert_close(actual[:, : len(tokens)], expected, rtol=1e-4, atol=1e-5)
    after = [pages.rows_NX for layer in pool.layers for pages in layer]  # type: ignore[attr-defined]
    for one, two in zip(written, after, strict=True):
        torch.testing.assert_close(two, one)


def test_shapes_are_those_of_the_bucket() -> None:
    assert decoding_rows(CHUNKS, 4).shape == decoding_rows(OTHERS, 4).shape == (4, 2 + 8)
    assert decoding_rows(CHUNKS[:2], 4).shape == (2, 2 + 4)
    for wrong in (SequenceChunk((0, 1), 2, 3), SequenceChunk((0, 1), 9, 1, first=4)):
        with pytest.raises(ContextError, match="one new token each"):
            decoding_rows([wrong], 4)


@pytest.mark.slow
def test_a_bucket_is_one_graph(latent: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled whole, without a break: nothing depends on what the rows say. Experts are a GPU's grouped products."""
    monkeypatch.setattr(experts, "takes_grouped", lambda x_ND: True)
    model, pool = filled(latent, torch.bfloat16)

    def step(tokens_1B: Tensor, rows_BX: Tensor) -> Tensor:
        hidden_1BD: Tensor = model(tokens_1B, cache=DecodingStep(pool, rows_BX, 19)).hidden_BTD
        return hidden_1BD

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=keep)
    tokens = torch.tensor([[1, 2, 3, 3]])
    with torch.no_grad():
        step(tokens, decoding_rows(CHUNKS, 4))  # buffers that all layers share are made
        for chunks in (CHUNKS, OTHERS):
            rows = decoding_rows(chunks, 4)
            torch.testing.assert_close(compiled(tokens, rows), step(tokens, rows), rtol=0.05, atol=0.05)
    assert len(graphs) == 1
