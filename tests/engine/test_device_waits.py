"""What the model computes of an engine's step never makes the host wait: prefill and decoding, on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fathom.engine.forward_pass import ForwardPass
from fathom.families import PRESETS
from fathom.model.cache import PagePool, SequenceChunk
from fathom.model.decoder import Decoder
from fathom.spec import CacheFormat
from tests.device_waits import NoDeviceWaits

META = torch.device("meta")
PREFILL = [SequenceChunk((0, 4, 2), 0, 40), SequenceChunk((1, 3, 5), 16, 20)]
DECODE = [SequenceChunk((0, 4, 2), 40, 1), SequenceChunk((6,), 9, 1), SequenceChunk((1, 3, 5), 36, 1)]
DRAFTS = [SequenceChunk((0, 4, 2), 40, 4), SequenceChunk((1, 3, 5), 36, 4)]


@pytest.mark.parametrize(
    ("name", "cache_format"),
    [
        ("deepseek-llm-67b", "plain"),
        ("deepseek-v2", "plain"),
        ("deepseek-v3", "int8"),
        ("hash-2b", "plain"),
        ("mistral-7b", "plain"),
    ],
)
def test_prefill_and_decoding(name: str, cache_format: CacheFormat) -> None:
    spec = PRESETS[name].spec
    layers = 2 if spec.moe is None else (spec.first_k_dense_replace or 0) + 1
    spec = replace(spec, num_hidden_layers=min(layers, spec.num_hidden_layers), num_nextn_predict_layers=0)
    with META:
        model = Decoder(spec).to(torch.bfloat16).eval()
    pool = PagePool.allocate(spec, pages=8, page_size=16, cache_format=cache_format, device=META, dtype=torch.bfloat16)
    forward = ForwardPass(model, pool)
    chunks: Sequence[SequenceChunk]
    with torch.inference_mode(), NoDeviceWaits():
        for chunks in (PREFILL, DECODE, DRAFTS):
            tokens = [1] * sum(chunk.tokens for chunk in chunks)
            output = forward.run(tokens, chunks, [0, len(tokens) - 1])
            assert output.logits_XV.shape == (2, spec.vocab_size)
