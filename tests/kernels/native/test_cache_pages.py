"""Rows of cache pages against the Python pages, byte for byte, on every instruction set."""

import math
from ctypes import addressof

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.kernels.native import library
from fathom.kernels.native.attention import describe_pages
from fathom.model.cache.pages import PlainPages, Scratch
from fathom.model.cache.quantized import QuantizedPages
from fathom.plan.cache_rows import EIGHT_BITS, PAIRED_MAX_CODE, QuantizedRow, Segment

pytestmark = pytest.mark.usefixtures("native")


def segments(*each: tuple[int, int, int]) -> QuantizedRow:
    return QuantizedRow(tuple(Segment(*one) for one in each))


ROWS = {
    "latent int8": segments((128, EIGHT_BITS, 128), (32, EIGHT_BITS, 16)),
    "latent int6": segments((512, PAIRED_MAX_CODE, 128), (64, EIGHT_BITS, 16)),
    "odd latent": segments((45, PAIRED_MAX_CODE, 15), (7, EIGHT_BITS, 7)),
    "heads int8": segments((3 * 64, EIGHT_BITS, 32)),
    "heads int6": segments((4 * 80, PAIRED_MAX_CODE, 20)),
    "wide int6": segments((2048, PAIRED_MAX_CODE, 32)),
    "odd int8": segments((27, EIGHT_BITS, 27)),
}


def pages_of(row: QuantizedRow) -> QuantizedPages:
    return QuantizedPages(2, 4, row, device=torch.device("cpu"), dtype=torch.float32)


def values(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 6, (count, 1), generator=generator)
    return scales * torch.randn(count, width, generator=generator)


def written(row: QuantizedRow | None, held: torch.Tensor, slots: list[int], rows: torch.Tensor) -> torch.Tensor:
    pages, slots_N = describe_pages(held, row), torch.tensor(slots)
    library.library().fathom_write_rows(
        addressof(pages), slots_N.data_ptr(), len(slots), rows.data_ptr(), rows.stride(0)
    )
    return held


def read(row: QuantizedRow | None, held: torch.Tensor, slot: int, count: int, column: int, columns: int):
    pages, out = describe_pages(held, row), torch.full((count, columns + 3), 7.0)
    library.library().fathom_read_rows(addressof(pages), slot, count, column, columns, out.data_ptr(), columns + 3)
    assert (out[:, columns:] == 7).all()
    return out[:, :columns]


@pytest.mark.parametrize("name", ROWS)
def test_bytes_and_values_are_those_of_the_python_pages(isa, name):
    row = ROWS[name]
    pages, rows, slots = pages_of(row), values(5, row.width), [6, 0, 3, 7, 2]
    rows[1] = 0.0
    rows[2, ::5] = 0.0
    pages.write(torch.tensor(slots), rows)
    held = written(row, torch.full((8, row.nbytes), 0, dtype=torch.uint8), slots, rows)
    assert torch.equal(held, pages.rows_NY)
    exact = pages.read(slice(0, 2), Scratch())
    assert torch.equal(read(row, held, 0, 8, 0, row.width), exact)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(ROWS)), data=st.data())
def test_any_columns_of_any_rows(name, data):
    row = ROWS[name]
    pages = pages_of(row)
    pages.write(torch.arange(8), values(8, row.width, seed=3))
    column = data.draw(st.integers(0, row.width - 1))
    columns = data.draw(st.integers(1, row.width - column))
    exact = pages.read(slice(0, 2), Scratch())[2:5, column : column + columns]
    for name in library.usable_isas():
        library.use_isa(name)
        assert torch.equal(read(row, pages.rows_NY, 2, 3, column, columns), exact), name


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(sorted(ROWS)), seed=st.integers(0, 10_000), size=st.floats(-36, 30))
def test_numbers_of_any_size_are_written_alike(name, seed, size):
    row = ROWS[name]
    pages, rows = pages_of(row), values(2, row.width, seed) * 10.0**size
    pages.write(torch.tensor([0, 1]), rows)
    for isa in library.usable_isas():
        library.use_isa(isa)
        held = written(row, torch.zeros(8, row.nbytes, dtype=torch.uint8), [0, 1], rows)
        assert torch.equal(held, pages.rows_NY), isa


def test_codes_halfway_are_rounded_to_even(isa):
    row = segments((64, EIGHT_BITS, 32))
    rows = torch.cat((torch.arange(32) / 2, -torch.arange(32) - 0.5)).view(1, 64)
    rows[0, 31] = rows[0, 32] = 127.0
    pages = pages_of(row)
    pages.write(torch.tensor([1]), rows)
    assert torch.equal(written(row, torch.zeros(8, row.nbytes, dtype=torch.uint8), [1], rows), pages.rows_NY)


def test_a_nan_and_an_infinity_stay_what_is_not_finite(isa):
    for name, row in ROWS.items():
        rows = values(2, row.width)
        rows[0, 3], rows[1, 5] = math.nan, math.inf
        held = written(row, torch.zeros(8, row.nbytes, dtype=torch.uint8), [0, 1], rows)
        found = read(row, held, 0, 2, 0, row.width)
        group = row.segments[0].group
        assert found[0, :group].isnan().all(), name
        assert not found[1, 5].isfinite(), name
        if row.width > group:
            assert found[:, group:].isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_rows(isa, dtype):
    pages, rows = PlainPages(2, 4, 37, device=torch.device("cpu"), dtype=dtype), values(3, 37)
    pages.write(torch.tensor([5, 1, 2]), rows.to(dtype))
    held = written(None, torch.zeros(8, 37, dtype=dtype), [5, 1, 2], rows)
    assert torch.equal(held, pages.rows_NX)
    assert torch.equal(read(None, held, 1, 5, 4, 30), held[1:6, 4:34].float())
