"""What a step tells about itself."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.train.measure import ExpertLoad, bits_per_byte, peak_flops, peak_memory


def test_expert_load_by_layer() -> None:
    load = ExpertLoad.of(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert load.fractions[2] == [0.5, 0.5, 0.0, 0.0]
    assert load.entropy == pytest.approx([1.0, 0.0, 0.5])
    assert load.peak == pytest.approx([1.0, 4.0, 2.0])


def test_a_router_counts_as_collapsed_below_the_geometric_mean_of_k_and_e() -> None:
    even, few = [6] * 64, [64] * 6 + [0] * 58
    bound = math.sqrt(6 * 64)
    just_above, just_below = [1] * 20 + [0] * 44, [1] * 19 + [0] * 45
    assert 19 < bound < 20
    load = ExpertLoad.of(torch.tensor([even, few, just_above, just_below]))
    assert load.collapsed(6) == [1, 3]
    assert ExpertLoad.of(torch.tensor([[1, 0]])).collapsed(2) == []


def test_bits_per_byte_by_source_and_over_all() -> None:
    # 10 tokens of 4 bytes at 2 ln 2 nats each: 20 bits over 40 bytes; 30 tokens of 2 bytes at 1 ln 2: 30 over 60.
    nats = [10 * 2 * math.log(2), 30 * math.log(2), 0.0]
    overall, by_source = bits_per_byte(nats, [10, 30, 0], {"stories": 4.0, "code": 2.0, "zh": 3.0})
    assert by_source == pytest.approx({"stories": 0.5, "code": 0.5})
    assert overall == pytest.approx(50 / 100)
    assert bits_per_byte([0.0], [0], {"stories": 4.0}) == (None, {})
    assert bits_per_byte([], [], {}) == (None, {})


def test_peaks_of_this_machine() -> None:
    before = torch.get_rng_state()
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None
    assert peak > 1e8
    assert torch.equal(before, torch.get_rng_state())
    assert peak_flops(torch.device("meta"), torch.float32) is None
    narrow = peak_flops(torch.device("cpu"), torch.bfloat16)
    assert narrow is not None
    assert narrow > 1e8
    memory = peak_memory(torch.device("cpu"))
    assert memory is None or memory > 10_000_000
