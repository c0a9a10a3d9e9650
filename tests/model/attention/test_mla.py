"""Latent attention over long caches: tiles against one product, what they allocate and rebuild, and shards of heads."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fathom.families import preset
from fathom.model import build
from fathom.model.attention import mla
from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.cache import AttentionGroup, PagedStep, PagePool, SequenceChunk, StaticCache, paged
from fathom.model.rope import Rope
from fathom.spec import LatentAttention, ModelSpec
from tests.model.attention.shards import keep_heads, run_cached, run_uncached

MIB = 2**20


class AllocationPeak(TorchDispatchMode):
    """Sums the bytes of the tensors made under it that are alive, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and storage not in self._known:
                    self._known.add(storage)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, storage.nbytes())
        return made

    def _free(self, nbytes: int) -> None:
        self.live -= nbytes


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile whatever has more than 10 cached tokens, 5 at a time, and mask nothing that is causal."""
    monkeypatch.setattr(mla, "TILE_ROWS", 20)
    monkeypatch.setattr(mla, "_LEAST_TILE", 1)
    monkeypatch.setattr(paged, "MAX_MASKED_KEYS", 4)


def _count_rebuilt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record of how many latents every rebuild of keys and values takes."""
    rebuilt: list[int] = []
    whole = mla.MLA._keys_values

    def counted(self: mla.MLA, latent_BSC: Tensor, rope_key_BSR: Tensor) -> tuple[Tensor, Tensor]:
        rebuilt.append(latent_BSC.shape[1])
        return whole(self, latent_BSC, rope_key_BSR)

    monkeypatch.setattr(mla.MLA, "_keys_values", counted)
    return rebuilt


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("form", ["expanded", "absorbed", "auto"])
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_any_mixture_of_chunks_over_tiles_equals_whole_forward_passes(
    latent_spec: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch, form: LatentForm, seed: int
) -> None:
    spec, draw, page = latent_spec(q_lora_rank=12), random.Random(seed), 4
    model = build(spec, seed=3, dtype=torch.float64).eval()
    lengths = [draw.randint(20, 60) for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 100, (length,), generator=generator) for length in lengths]
    expected = [model(text[None]).hidden_BTD[0] for text in texts]
    rebuilt = _count_rebuilt(monkeypatch)
    pool, done = PagePool.allocate(spec, pages=64, page_size=page, dtype=torch.float64), [0] * 4
    order = draw.sample(range(64), 64)
    tables = [order[16 * i : 16 * i + 16] for i in range(4)]
    while any(done[i] < lengths[i] for i in range(4)):
        size = draw.choice([1, 2, 7, 9])
        chosen = [i for i in range(4) if done[i] < lengths[i] and draw.random() < 0.8]
        pieces = [SequenceChunk(tables[i], done[i], min(size, lengths[i] - done[i])) for i in chosen]
        if not pieces:
            continue
        tokens = torch.cat([texts[i][p.start : p.end] for i, p in zip(chosen, pieces, strict=True)])
        hidden_ND = model(tokens[None], cache=PagedStep(pool, pieces), form=form).hidden_BTD[0]
        parts = hidden_ND.split([piece.tokens for piece in pieces])
        for i, piece, part in zip(chosen, pieces, parts, strict=True):
            torch.testing.assert_close(part, expected[i][piece.start : piece.end], rtol=1e-5, atol=1e-7)
            done[i] = piece.end
    assert max(rebuilt, default=0) <= 2 * 5 + 9
    assert form == "auto" or bool(rebuilt) == (form == "expanded")


@torch.inference_mode()
def test_tiles_of_the_real_size_equal_one_product_over_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = LatentAttention(num_heads=64, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)
    layer = mla.MLA(preset("bench-t"), attention)
    generator = torch.Generator().manual_seed(0)
    q_BTHW = torch.randn(2, 40, 64, 12, generator=generator)
    latent_BSC, rope_BSR = (torch.randn(2, 1200, width, generator=generator) for width in (16, 4))
    torch.nn.init.normal_(layer.kv_b_proj.weight, std=0.3, generator=generator)
    starts_B1 = torch.tensor([[1160], [200]])
    seen_BTS = torch.arange(1200) <= (starts_B1 + torch.arange(40))[:, :, None]
    for mask_BTS, causal in ((None, True), (seen_BTS, False)):
        part = AttentionGroup(40, 1200, mask_BTS, causal)
        whole = layer._expanded(part, q_BTHW, latent_BSC, rope_BSR)
        tiled = layer._tiled(part, q_BTHW, latent_BSC, rope_BSR, mla.tile_size(64))
        torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def _run_chunk(tokens: int, context: int) -> int:
    """Run one layer of V2-Lite on the last chunk of a prompt in a paged cache, without computing; return peak bytes."""
    spec, page = preset("deepseek-v2-lite"), 64
    assert isinstance(spec.attention, LatentAttention)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        layer = mla.MLA(spec, spec.attention)
        pool = PagePool.allocate(replace(spec, num_hidden_layers=1), pages=context // page, page_size=page)
        step = PagedStep(pool, [SequenceChunk(range(context // page), context - tokens, tokens)])
        x_BTD = torch.zeros(1, tokens, spec.hidden_size)
        with AllocationPeak() as memory:
            span = step.advance(tokens)
            table = Rope(spec.rope, spec.attention.qk_rope_head_dim).table(span.positions_BT)
            layer(x_BTD, AttentionContext(span, table, spec.rope.layout), step.layers[0])
    return memory.peak


@pytest.mark.parametrize("tokens", [512, 128])
def test_a_chunk_at_128k_tokens_of_context_allocates_what_it_does_at_8k(tokens: int) -> None:
    at_8k, at_128k = (_run_chunk(tokens, context * 1024) for context in (8, 128))
    assert at_8k == at_128k
    assert at_128k <= 96 * MIB


def test_the_peak_counts_what_is_alive_together() -> None:
    with AllocationPeak() as memory:
        for _ in range(3):
            torch.zeros(2**18).add_(1).view(2, -1)
        held = torch.zeros(2**18)
        torch.cat((held, held))
    assert (memory.peak, memory.live) == (3 * MIB, MIB)


def test_small_chunks_rebuild_nothing_behind_a_long_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt = _count_rebuilt(monkeypatch)
    for tokens in (2, 16, 64, 128):
        _run_chunk(tokens, 16 * 1024)
    assert not rebuilt
    _run_chunk(512, 16 * 1024)
    assert sum(rebuilt) == 16 * 1024


@pytest.mark.parametrize("q_lora_rank", [None, 12])
@torch.inference_mode()
def test_shards_of_the_heads_add_up_to_the_layer(
    latent_spec: Callable[..., ModelSpec], q_lora_rank: int | None
) -> None:
    spec = latent_spec(q_lora_rank=q_lora_rank)
    shape = spec.attention
    assert isinstance(shape, LatentAttention)
    layer = build(spec, seed=1).layers[0].self_attn
    x_BTD = torch.randn(2, 9, spec.hidden_size, generator=torch.Generator().manual_seed(2))
    shards = []
    for heads in ([0], [1, 2], [3]):
        shard = copy.deepcopy(layer)
        keep_heads(shard.q_proj if q_lora_rank is None else shard.q_b_proj, 0, heads, shape.qk_head_dim)
        keep_heads(shard.kv_b_proj, 0, heads, shape.qk_nope_head_dim + shape.v_head_dim)
        keep_heads(shard.o_proj, 1, heads, shape.v_head_dim)
        shards.append(shard)
    for form in ("expanded", "absorbed"):
        whole, *parts = (
            run_cached(one, x_BTD, spec, StaticCache.allocate(spec, batch_size=2, max_length=16), form)
            for one in (layer, *shards)
        )
        torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)
    whole, *parts = (run_uncached(one, x_BTD, spec) for one in (layer, *shards))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)
