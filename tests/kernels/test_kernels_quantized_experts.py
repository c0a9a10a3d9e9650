"""Experts as one operator equal the experts called one by one."""

from __future__ import annotations

import pytest
import torch

from fathom.kernels import quantized_grouped_swiglu
from fathom.kernels.quantized_experts import quantized_experts_op
from fathom.kernels.weight_formats import QuantFormat, quantize_experts


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_operator_gives_what_the_experts_give_one_by_one(form: QuantFormat, tokens: int) -> None:
    draw = torch.Generator().manual_seed(2)
    gate_up = quantize_experts(torch.randn(5, 128, 32, generator=draw), form)
    down = quantize_experts(torch.randn(5, 32, 64, generator=draw), form)
    x_ND, weights_NK = torch.randn(tokens, 32, generator=draw), torch.rand(tokens, 3, generator=draw)
    indices_NK = torch.tensor([[4, 0, 2], [1, 2, 3], [0, 1, 4], [3, 4, 2], [2, 1, 0]])[:tokens]
    got = quantized_experts_op(x_ND, indices_NK, weights_NK, gate_up, down)
    expected = quantized_grouped_swiglu(x_ND, indices_NK, weights_NK, gate_up, down)
    assert torch.equal(got, expected)
    assert not torch.equal(got, quantized_experts_op(x_ND, indices_NK.flip(1), weights_NK, gate_up, down))
    assert got.dtype == x_ND.dtype
