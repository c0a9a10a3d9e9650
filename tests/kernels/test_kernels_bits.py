"""Packing of 11-bit codes against a version that moves one bit at a time."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.kernels import pack_11, reference, unpack_11


def codes(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2048, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def test_every_code_survives_in_every_place() -> None:
    every_NM = torch.arange(2048, dtype=torch.int32)[:, None] + torch.arange(32, dtype=torch.int32) * 61
    assert torch.equal(unpack_11(pack_11(every_NM)), every_NM % 2048)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 3), count=st.integers(1, 50), seed=st.integers(0, 99))
def test_bytes_and_codes_equal_the_plain_versions(rows: int, count: int, seed: int) -> None:
    codes_NM = codes(rows, count, seed)
    packed_NY = pack_11(codes_NM)
    assert packed_NY.shape == (rows, 22 * -(-count // 16))
    assert torch.equal(packed_NY, reference.pack_11(codes_NM))
    unpacked_NM = unpack_11(packed_NY)
    assert torch.equal(unpacked_NM, reference.unpack_11(packed_NY))
    assert torch.equal(unpacked_NM[:, :count], codes_NM)
    assert not unpacked_NM[:, count:].any()


def test_negative_codes_are_their_low_11_bits() -> None:
    codes_NM = torch.arange(-1024, 1024, dtype=torch.int32).view(-1, 16)
    assert torch.equal(pack_11(codes_NM), reference.pack_11(codes_NM))
    assert torch.equal(unpack_11(pack_11(codes_NM)), codes_NM % 2048)


def test_any_bytes_unpack_to_codes_that_pack_to_them() -> None:
    packed_NY = torch.randint(0, 256, (5, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    unpacked_NM = unpack_11(packed_NY)
    assert 0 <= unpacked_NM.min() <= unpacked_NM.max() <= 2047
    assert torch.equal(pack_11(unpacked_NM), packed_NY)


def test_rows_may_lie_apart() -> None:
    rows_NY = torch.randint(0, 256, (7, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    inner_NY = rows_NY[:, 6:50]
    before_NY = rows_NY.clone()
    assert torch.equal(unpack_11(inner_NY), unpack_11(inner_NY.contiguous()))
    assert torch.equal(rows_NY, before_NY)
