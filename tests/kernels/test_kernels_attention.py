"""Attention against the plain form: grouped heads, narrow values, masks, one query, chunks, gradients, merging."""

from __future__ import annotations

import itertools
import random
from types import ModuleType

import pytest
import torch

from fathom import kernels
from fathom.kernels import reference


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("how", ["causal", "chunk", "mask", "open", "one"])
def test_attention_equals_the_plain_form(heads: int, kv_heads: int, width: int, how: str) -> None:
    generator = torch.Generator().manual_seed(heads * 10 + width)
    queries = {"one": 1, "chunk": 3}.get(how, 7)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = drawn(2, heads, queries, 8), drawn(2, kv_heads, 7, 8), drawn(2, kv_heads, 7, width)
    mask = None
    if how in ("mask", "one"):
        mask = torch.rand(2, 1, queries, 7, generator=generator) < 0.6
        mask[..., 0] = True
    outputs, gradients = [], []
    for version in (kernels.attention, reference.attention):
        out = version(*inputs, mask_B1TS=mask, causal=how in ("causal", "chunk"), scale=0.4)
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    assert outputs[0].shape == (2, heads, queries, width)
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_chunk_behind_cached_keys_equals_the_end_of_the_whole(
    heads: int, kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(heads + kv_heads)
    q, k, v = (
        torch.randn(2, count, 20, width, generator=generator).to(dtype)
        for count, width in ((heads, 8), (kv_heads, 8), (kv_heads, 6))
    )
    whole = reference.attention(q, k, v, mask_B1TS=None, causal=True, scale=0.4)
    for tokens in (2, 7, 19):
        found = kernels.attention(q[:, :, -tokens:], k, v, mask_B1TS=None, causal=True, scale=0.4)
        assert found.dtype == dtype
        torch.testing.assert_close(found, whole[:, :, -tokens:], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("version", [kernels, reference])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_attention_merged_over_any_cut_of_the_keys_equals_attention_over_all(
    version: ModuleType, gradients: bool, seed: int
) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens, keys = draw.randint(1, 9), draw.randint(3, 40)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(gradients)

    q, k, v = drawn(2, 3, tokens, 8), drawn(2, 3, keys, 8), drawn(2, 3, keys, 5)
    mask = torch.rand(2, 1, tokens, keys, generator=generator) < 0.2
    mask[..., 0] = True
    cuts = [0, *sorted(draw.sample(range(1, keys), draw.randint(1, 2))), keys]
    merged = None
    for start, stop in itertools.pairwise(cuts):
        found = version.attention_with_lse(
            q, k[:, :, start:stop], v[:, :, start:stop], mask_B1TS=mask[..., start:stop], causal=False, scale=0.4
        )
        merged = found if merged is None else kernels.merge_attention(*merged, *found)
    assert merged is not None
    expected = reference.attention(q, k, v, mask_B1TS=mask, causal=False, scale=0.4)
    torch.testing.assert_close(merged[0], expected)
    if gradients:
        both = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (merged[0], expected)]
        for found, plain in zip(*both, strict=True):
            torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("version", [kernels, reference])
def test_a_query_that_sees_no_key_has_nothing_and_minus_infinity(version: ModuleType) -> None:
    q, k, v = (torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])[None, None]
    out, lse = version.attention_with_lse(q, k, v, mask_B1TS=mask, causal=False, scale=0.4)
    assert out[:, :, 1].eq(0).all()
    assert lse[:, :, 1].eq(float("-inf")).all()
    assert lse[:, :, [0, 2]].isfinite().all()
