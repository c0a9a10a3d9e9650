from functools import cache
from itertools import product as every

import pytest
import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native import library
from fathom.kernels.native.matrix import PACKED_FORMATS, PackedFormat, PackedMatrix, pack, pack_gguf

pytestmark = pytest.mark.usefixtures("native")
ROWS, COLUMNS, ODD_COLUMNS = (1, 15, 16, 17, 100), (32, 64, 96, 160), (1, 7, 33)
COUNTS = (*range(1, 10), 17, 40)
FORMATS = [
    (format, quantize) for format in PACKED_FORMATS for quantize in (False, True) if format[0] == "q" or quantize
]


@cache
def pool() -> library.ThreadPool:
    return library.ThreadPool(2)


def multiply(packed: PackedMatrix, x_NY: Tensor, quantize: bool = True) -> Tensor:
    return packed.product(x_NY, quantize=quantize, pool=pool())


def rounded(x_NY: Tensor) -> Tensor:
    """8 bits for each group of 32: the largest magnitude becomes 127, ties go to even."""
    x_NZJ = x_NY.view(len(x_NY), -1, 32)
    largest_NZ1 = x_NZJ.abs().amax(-1, keepdim=True)
    q_NZJ = torch.where(largest_NZ1 < 1e-36, 0.0, (x_NZJ * (torch.tensor(127.0) / largest_NZ1)).round())
    return (q_NZJ.double() * (largest_NZ1 / 127).double()).flatten(1)


def check(packed: PackedMatrix, x_NY: Tensor, quantize: bool) -> None:
    """Compare with float64 products of the unpacked weights, relative to the sum of magnitudes."""
    w_XY = packed.unpack().double()
    wide_NY = rounded(x_NY) if quantize and packed.format[0] == "q" else x_NY.double()
    y_NX = multiply(packed, x_NY, quantize)
    assert y_NX.dtype == torch.float32
    size_NX = wide_NY.abs() @ w_XY.abs().t() + (8 * wide_NY.abs().sum(1, keepdim=True) * w_XY.abs().amax() / 127)
    assert ((y_NX - wide_NY @ w_XY.t()).abs() <= 2e-6 * size_NX + 1e-37).all()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("format", "quantize"), FORMATS)
def test_products_are_those_of_the_unpacked_weights_for_every_shape(isa: str, format: PackedFormat, quantize: bool):
    columns = COLUMNS if format[0] == "q" else (*COLUMNS, *ODD_COLUMNS)
    for rows, width in every(ROWS, columns):
        packed = pack(draw(rows, width), format)
        for count in COUNTS:
            check(packed, draw(count, width, seed=count), quantize)


@pytest.mark.parametrize(("format", "quantize"), FORMATS)
def test_a_row_does_not_depend_on_the_others_however_many_blocks_there_are(
    isa: str, format: PackedFormat, quantize: bool
):
    packed = pack(draw(70, 1120), format)
    x_NY = draw(243 if isa != "scalar" else 20, 1120, seed=1)
    check(packed, x_NY, quantize)
    y_NX = multiply(packed, x_NY, quantize)
    for first, last in ((0, 1), (1, 3), (3, 8), (8, 20)):
        assert torch.equal(multiply(packed, x_NY[first:last], quantize), y_NX[first:last])


def test_strided_rows_and_other_dtypes_are_read_as_they_are(isa: str):
    packed, x_NY = pack(draw(17, 64), "q4"), draw(5, 128)[:, 32:96]
    assert torch.equal(multiply(packed, x_NY), multiply(packed, x_NY.contiguous()))
    assert torch.equal(multiply(packed, x_NY.t().contiguous().t()), multiply(packed, x_NY.contiguous()))
    half = x_NY.bfloat16()
    assert torch.equal(multiply(packed, half), multiply(packed, half.float()).bfloat16())
    assert multiply(packed, x_NY.reshape(1, 5, 64)).shape == (1, 5, 17)
    assert multiply(packed, x_NY[:0]).shape == (0, 17)


@pytest.mark.parametrize(("kind", "quantum"), [("Q8_0", 128), ("Q8_0", 127), ("Q4_0", 0), ("Q4_0", 15), ("Q4_1", 15)])
def test_the_largest_quanta_of_weights_and_activations_do_not_overflow(isa: str, kind: str, quantum: int):
    """All weights -128, or nibbles of 15, by all activations 127 or -127."""
    head = b"\x00\x3c" * (2 if kind == "Q4_1" else 1)
    body = bytes([quantum]) * 32 if kind == "Q8_0" else bytes([quantum * 17]) * 16
    raw = torch.frombuffer(bytearray((head + body) * 20 * 4), dtype=torch.uint8)
    packed = pack_gguf(raw, kind, 20, 128)
    for count, sign in every((1, 2, 5, 17), (1.0, -1.0)):
        x_NY = torch.full((count, 128), sign * 127.0)
        assert torch.equal(multiply(packed, x_NY), (x_NY @ packed.unpack().t()))


def test_activations_are_rounded_to_the_nearest_of_8_bits_exactly(isa: str):
    """Through weights of one: a product is then scale q itself."""
    raw = torch.zeros(32, 34, dtype=torch.uint8)
    raw[:, 1] = 0x3C
    raw[:, 2:] = torch.eye(32, dtype=torch.uint8)
    packed = pack_gguf(raw, "Q8_0", 32, 32)
    ties = (torch.arange(32) - 16 + 0.5) * 2
    x_NY = torch.stack([ties, draw(32), draw(32) * 1e-30, draw(32) * 1e30, torch.zeros(32), torch.full((32,), 1e-38)])
    x_NY[0, 0] = 127.0
    assert torch.equal(multiply(packed, x_NY), rounded(x_NY).float())


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_others(isa: str, format: PackedFormat):
    nan, infinity = float("nan"), float("inf")
    w_XY, x_NY = draw(20, 33), draw(14, 33, seed=1)
    w_XY[2, 7], w_XY[18, 32], x_NY[1, 3], x_NY[13, 32], x_NY[5, 0] = nan, infinity, nan, infinity, 1e-40
    wanted_NX = x_NY.double() @ pack(w_XY, format).unpack().double().t()
    y_NX = multiply(pack(w_XY, format), x_NY)
    assert torch.equal(y_NX.isnan(), wanted_NX.isnan())
    assert torch.equal(y_NX.isinf(), wanted_NX.isinf())
    assert torch.equal(y_NX.nan_to_num(0, 9, -9).sign(), wanted_NX.nan_to_num(0, 9, -9).sign())


@pytest.mark.parametrize(("format", "quantize"), FORMATS)
def test_a_row_that_is_not_finite_makes_its_own_results_nan_only(isa: str, format: PackedFormat, quantize: bool):
    x_NY = draw(3, 64)
    x_NY[1, 40] = float("nan")
    y_NX = multiply(pack(draw(17, 64, seed=1), format), x_NY, quantize)
    assert y_NX[1].isnan().all()
    assert y_NX[::2].isfinite().all()


def test_denormal_weights_and_activations_count(isa: str):
    packed = pack(torch.full((17, 32), 1e-40), "float32")
    y_NX = multiply(packed, torch.full((2, 32), 2.0**20))
    assert torch.allclose(y_NX, torch.full((2, 17), 1e-40 * 2**20 * 32), rtol=1e-4, atol=0)


def test_a_product_of_another_width_or_with_gradients_is_refused():
    packed = pack(draw(4, 32), "q8")
    with pytest.raises(SpecError, match=r"is \(2, 33\) on cpu; pass \(..., 32\) on the CPU"):
        packed.product(draw(2, 33))
    with pytest.raises(SpecError, match="packed q8 weights pass no gradient"):
        packed.product(draw(2, 32).requires_grad_())
