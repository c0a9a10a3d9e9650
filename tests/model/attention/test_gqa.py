"""Grouped-query attention: shards of its heads, and chunks behind long caches."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from fathom.model import build
from fathom.model.cache import StaticCache, static
from fathom.spec import ModelSpec
from tests.model.attention.shards import keep_heads, run_cached, run_uncached


def _cache(spec: ModelSpec, kv_heads: int) -> StaticCache:
    whole = StaticCache.allocate(spec, batch_size=2, max_length=16)
    for layer in whole.layers:
        layer.tensors = tuple(tensor[:, :kv_heads] for tensor in layer.tensors)
    return whole


@torch.inference_mode()
def test_shards_of_the_heads_add_up_to_the_layer(grouped_spec: Callable[..., ModelSpec]) -> None:
    spec, width = grouped_spec(), 8
    layer = build(spec, seed=1).layers[0].self_attn
    torch.nn.init.normal_(layer.k_proj.bias)
    x_BTD = torch.randn(2, 9, spec.hidden_size, generator=torch.Generator().manual_seed(2))
    shards = []
    for kv_head in (0, 1):
        shard = copy.deepcopy(layer)
        for linear, heads in (
            (shard.q_proj, (2 * kv_head, 2 * kv_head + 1)),
            (shard.k_proj, (kv_head,)),
            (shard.v_proj, (kv_head,)),
        ):
            keep_heads(linear, 0, heads, width)
        keep_heads(shard.o_proj, 1, (2 * kv_head, 2 * kv_head + 1), width)
        shards.append(shard)
    whole = run_uncached(layer, x_BTD, spec)
    torch.testing.assert_close(sum(run_uncached(shard, x_BTD, spec) for shard in shards), whole, rtol=1e-5, atol=1e-6)
    cached = sum(run_cached(shard, x_BTD, spec, _cache(spec, 1)) for shard in shards)
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.inference_mode()
def test_chunks_behind_a_long_cache_equal_whole_sequences(
    grouped_spec: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch, kv_heads: int
) -> None:
    monkeypatch.setattr(static, "MAX_MASKED_KEYS", 4)
    spec = grouped_spec(kv_heads=kv_heads)
    layer = build(spec, seed=1).layers[0].self_attn
    x_BTD = torch.randn(2, 15, spec.hidden_size, generator=torch.Generator().manual_seed(2))
    cache = StaticCache.allocate(spec, batch_size=2, max_length=16)
    expected = run_uncached(layer, x_BTD, spec)
    torch.testing.assert_close(run_cached(layer, x_BTD, spec, cache), expected, rtol=1e-5, atol=1e-6)
