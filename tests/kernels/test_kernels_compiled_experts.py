"""One token's packed experts as one operator equal the experts called one by one."""

from __future__ import annotations

import pytest
import torch

from fathom.kernels import packed_grouped_swiglu
from fathom.kernels.compiled_experts import packed_experts_of_one
from fathom.kernels.packed import PackedFormat, pack_experts


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_operator_gives_what_the_experts_give_one_by_one(form: PackedFormat) -> None:
    draw = torch.Generator().manual_seed(2)
    gate_up = pack_experts(torch.randn(5, 128, 32, generator=draw), form)
    down = pack_experts(torch.randn(5, 32, 64, generator=draw), form)
    x_1D, weights_1K = torch.randn(1, 32, generator=draw), torch.rand(1, 3, generator=draw)
    indices_1K = torch.tensor([[4, 0, 2]])
    got = packed_experts_of_one(x_1D, indices_1K, weights_1K, gate_up, down)
    expected = packed_grouped_swiglu(x_1D, indices_1K, weights_1K, gate_up, down)
    assert torch.equal(got, expected)
    assert not torch.equal(got, packed_experts_of_one(x_1D, indices_1K.flip(1), weights_1K, gate_up, down))
    assert got.dtype == x_1D.dtype
