"""Attention as a GPU computes it, against the CPU's.

The shapes that fused kernels ask for are computed here by PyTorch's CPU; the one kernel a CPU has not,
``varlen_attn``, is replaced by its documentation: every sequence by itself, causal, within (left, right).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import attention, device_attention, reference, rms_norm
from fathom.model.attention.context import AttentionContext
from fathom.model.cache import causal_metadata, packed_metadata
from fathom.model.cache.attention_metadata import AttentionMetadata, SequenceSpans
from fathom.model.rope import RopeTable

CASES: list[tuple[int, int, int, int, int, int, str]] = [
    # heads, key-value heads, queries, keys, width of keys, of values, what queries see
    (4, 4, 7, 7, 24, 16, "causal"),
    (4, 2, 7, 7, 16, 16, "causal"),
    (4, 2, 7, 7, 16, 16, "mask"),
    (4, 1, 5, 9, 24, 24, "mask"),
    (4, 2, 1, 9, 16, 16, "mask"),
    (4, 2, 1, 9, 16, 16, "all"),
    (4, 2, 3, 9, 16, 8, "causal"),
]


def inputs(case: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    heads, kv_heads, tokens, keys, width, value, seen = case
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, *shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((heads, tokens, width), (kv_heads, keys, width), (kv_heads, keys, value))
    )
    mask = torch.rand(2, 1, tokens, keys, generator=generator) < 0.5 if seen == "mask" else None
    if mask is not None:
        mask[..., 0] = True
    return q, k, v, mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_cpus(
    case: tuple[Any, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, causal = inputs(case, dtype), case[-1] == "causal"
    q, k, v, mask = given
    expected = attention(q, k, v, mask_B1TS=mask, causal=causal, scale=0.3)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    taken: dict[str, Any] = {}
    original = F.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        taken.update(options, widths={q.shape[-1], k.shape[-1], v.shape[-1]}, heads={q.shape[1], k.shape[1]})
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    if causal and q.shape[2] < k.shape[2]:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])[None, None]
        causal = False
    actual = device_attention.device_attention(q, k, v, mask_B1TS=mask, causal=causal, scale=0.3)
    limit = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(actual, expected, **limit)
    for got, each in zip(torch.autograd.grad(actual, (q, k, v), upstream), wanted, strict=True):
        torch.testing.assert_close(got, each, **limit)
    if mask is None and dtype == torch.bfloat16:  # FlashAttention
        assert len(taken["widths"]) == 1
    elif len(taken["heads"]) > 1:  # only FlashAttention takes groups of heads
        assert not taken["enable_gqa"]


def documented(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, ends_k: Tensor, longest: int, longest_k: int, **options: Any
) -> Tensor:
    """Compute ``varlen_attn`` sequence by sequence."""
    assert ends.dtype == torch.int32
    assert ends is ends_k
    assert q.shape[-1] == k.shape[-1] == v.shape[-1]
    assert options["enable_gqa"] == (q.shape[1] != k.shape[1])
    limits, outputs = ends.tolist(), []
    assert longest == longest_k == max(b - a for a, b in pairwise(limits))
    left, right = options["window_size"]
    assert right == 0
    for start, end in pairwise(limits):
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        mask = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        rows = (x[start:end].transpose(0, 1) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*rows, attn_mask=mask, scale=options["scale"], enable_gqa=True)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [(5, 2, 2, 9), None])
def test_packed_sequences_and_windows_in_one_call_are_the_groups(
    window: int | None, lengths: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, tokens = (1, 18) if lengths else (2, 7)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, tokens, heads, width, generator=generator).requires_grad_()
        for heads, width in ((4, 16), (2, 16), (2, 12))
    )
    cpu = torch.device("cpu")
    made = causal_metadata(tokens, window, cpu) if lengths is None else packed_metadata(lengths, window, cpu)
    table = RopeTable(torch.empty(0), torch.empty(0))
    expected = AttentionContext(made, table, "half").attend(q, k, v, 0.3)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    meta = torch.device("meta")
    spans = (causal_metadata(tokens, window, meta) if lengths is None else packed_metadata(lengths, window, meta)).spans
    if lengths is None and window is None:
        assert spans is None
        return
    assert spans is not None
    ends = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0).int()
    on_device = SequenceSpans(ends, spans.longest, spans.window)
    monkeypatch.setattr(device_attention, "_variable_length", lambda: documented)
    monkeypatch.setattr("fathom.kernels.takes_packed_attention", lambda q: True)
    whole = AttentionMetadata(made.positions_BT, made.groups, made.start, None, on_device)
    actual = AttentionContext(whole, table, "half").attend(q, k, v, 0.3)
    torch.testing.assert_close(actual, expected)
    for got, each in zip(torch.autograd.grad(actual.square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(got, each, rtol=1e-4, atol=1e-5)


def test_the_norm_of_a_gpu_in_bfloat16_is_that_of_a_cpu_to_one_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((5, 64), (64,)))
    one_kernel, expected = F.rms_norm(x, (64,), weight, 1e-6), rms_norm(x, weight, 1e-6)
    exact = reference.rms_norm(x.double(), weight.double(), 1e-6)
    assert (one_kernel.double() - exact).norm() <= (expected.double() - exact).norm()
    torch.testing.assert_close(one_kernel, expected, rtol=2**-7, atol=0)
    meta = torch.empty(5, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    assert rms_norm(meta, weight.to("meta"), 1e-6).grad_fn is not None
