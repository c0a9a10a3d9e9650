"""Attention against the plain form: grouped heads, narrow values, masks, one query, gradients."""

from __future__ import annotations

import pytest
import torch

from fathom import kernels
from fathom.kernels import reference


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("how", ["causal", "mask", "open", "one"])
def test_attention_equals_the_plain_form(heads: int, kv_heads: int, width: int, how: str) -> None:
    generator = torch.Generator().manual_seed(heads * 10 + width)
    queries = 1 if how == "one" else 7

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = drawn(2, heads, queries, 8), drawn(2, kv_heads, 7, 8), drawn(2, kv_heads, 7, width)
    mask = None
    if how in ("mask", "one"):
        mask = torch.rand(2, 1, queries, 7, generator=generator) < 0.6
        mask[..., 0] = True
    outputs, gradients = [], []
    for version in (kernels.attention, reference.attention):
        out = version(*inputs, mask_B1TS=mask, causal=how == "causal", scale=0.4)
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    assert outputs[0].shape == (2, heads, queries, width)
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)
