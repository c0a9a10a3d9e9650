"""Shared-prefix attention against ordinary attention over keys copied to every sequence."""

from __future__ import annotations

import pytest
import torch

from fathom import kernels
from fathom.kernels import reference
from fathom.kernels.shared_prefix import _concat_attention

FIRST, TOKENS = 5, 7


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_continued_attention_equals_the_plain_form(heads: int, kv_heads: int, width: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(heads * 10 + width)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_()

    inputs = (
        drawn(3, TOKENS, heads, 8),
        drawn(3, TOKENS, kv_heads, 8),
        drawn(3, TOKENS, kv_heads, width),
        drawn(1, FIRST, kv_heads, 8),
        drawn(1, FIRST, kv_heads, width),
    )
    mask = None
    if masked:
        mask = torch.rand(1, TOKENS, FIRST + TOKENS, generator=generator) < 0.5
        mask[..., 1] = True
    outputs, gradients = [], []
    for version in (kernels.shared_prefix_attention, reference.shared_prefix_attention):
        out = version(*inputs, mask_1TS=mask, scale=0.4)
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    assert outputs[0].shape == (3, heads, TOKENS, width)
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_sequence_attends_as_if_the_prefix_were_its_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, FIRST + TOKENS, 16, generator=generator).to(dtype) for _ in range(3))
    whole = reference.attention(q, k, v, mask_B1TS=None, causal=True, scale=0.25)
    own = (x[:, :, FIRST:].expand(2, -1, -1, -1) for x in (q, k, v))
    found = kernels.shared_prefix_attention(*own, k[:, :, :FIRST], v[:, :, :FIRST], mask_1TS=None, scale=0.25)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one in found:
        torch.testing.assert_close(one, whole[0, :, FIRST:], rtol=tolerance, atol=tolerance)


def test_concatenated_prefixes_give_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, 2, TOKENS, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    first = tuple(torch.randn(1, 2, FIRST, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = reference.shared_prefix_attention(q, k, v, *first, mask_1TS=None, scale=0.3)
    torch.testing.assert_close(_concat_attention(q, k, v, *first, None, 0.3), expected)
