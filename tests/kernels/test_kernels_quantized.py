"""Quantized weights: the error of quantizing by its formula, and products against the dequantized weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.checkpoint import fp8 as released
from fathom.errors import SpecError
from fathom.kernels import (
    fp8,
    fp8_block_linear,
    grouped_swiglu,
    products,
    quantized_experts,
    quantized_grouped_swiglu,
    quantized_linear,
    quantized_products,
    reference,
    weight_formats,
)
from fathom.kernels.weight_formats import (
    LAYOUTS,
    QuantFormat,
    dequantize,
    quantize_experts,
    quantize_int4,
    quantize_int8,
    quantize_weight,
    row_tiles,
)
from fathom.products import VARIABLE, ProductChoice

ROUNDING = 2.0**-8  # one rounding of a number to bfloat16 loses up to this share of it, half a step either way
FORMATS = pytest.mark.parametrize("form", ["int8", "int4"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def steps(matrix: weight_formats.QuantizedWeight) -> Tensor:
    """The step of every weight, (N, K)."""
    if matrix.format == "int8":
        return matrix.scales.float().unsqueeze(1).expand(matrix.rows, matrix.columns)
    return matrix.scales[..., 0].float().t()[: matrix.rows].repeat_interleave(matrix.group_size, 1)


@pytest.fixture(params=[True, False], ids=["fast bfloat16", "float32"])
def half_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """As on a CPU where bfloat16 products are fast, and as on one where they are not."""
    monkeypatch.setattr(quantized_products, "product_choice", lambda: ProductChoice(bfloat16=request.param))
    return request.param


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 140),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([32, 64, 128]),
    shift=st.floats(-100, 100),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 10),
)
def test_a_weight_is_never_further_off_than_half_its_step(
    rows: int, groups: int, group_size: int, shift: float, scale: float, seed: int
) -> None:
    weight = (normal(rows, groups * group_size, seed=seed) + shift) * scale
    for matrix in (quantize_int4(weight, group_size), quantize_int8(weight)):
        error = (dequantize(matrix) - weight).abs()
        assert bool((error <= steps(matrix) / 2 + 1e-6 * weight.abs()).all())


def test_steps_of_int4_span_the_group_and_steps_of_int8_the_row() -> None:
    weight = normal(64, 128)
    grouped = weight.view(64, 4, 32)
    spread = (grouped.amax(-1) - grouped.amin(-1)) / 15
    torch.testing.assert_close(quantize_int4(weight).scales[..., 0].float().t(), spread, rtol=ROUNDING, atol=0)
    largest = weight.abs().amax(1) / 127
    torch.testing.assert_close(quantize_int8(weight).scales.float(), largest, rtol=ROUNDING, atol=0)


def test_sixteen_equally_spaced_values_survive_int4() -> None:
    q = torch.arange(16).repeat(64, 8)[:, torch.randperm(128, generator=torch.Generator().manual_seed(1))]
    q[:, ::32], q[:, 1::32] = 0, 15
    weight = q * 0.25 - 1.5
    torch.testing.assert_close(dequantize(quantize_int4(weight)), weight, rtol=0, atol=0)


@FORMATS
def test_groups_of_one_value_keep_it_to_its_rounding(form: QuantFormat) -> None:
    for value in (0.0, 3.0, -0.7, 1e-30):
        weight = torch.full((16, 64), value)
        torch.testing.assert_close(dequantize(quantize_weight(weight, form)), weight, rtol=ROUNDING, atol=1e-37)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_nibbles_reads_back(layout: weight_formats.Int4Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(100, 96)
    expected = dequantize(quantize_int4(weight))
    monkeypatch.setattr(weight_formats, "cpu_layout", lambda: layout)
    matrix = quantize_int4(weight)
    assert matrix.layout == layout
    torch.testing.assert_close(dequantize(matrix), expected, rtol=0, atol=0)
    monkeypatch.undo()
    x = normal(3, 96)
    torch.testing.assert_close(quantized_linear(x, matrix), x @ expected.t(), rtol=0.02, atol=0.1)


def test_the_layout_of_this_processor_is_known() -> None:
    assert weight_formats.cpu_layout() in LAYOUTS


@FORMATS
def test_tiles_are_the_rows_of_the_whole(form: QuantFormat) -> None:
    matrix = quantize_weight(normal(150, 64), form)
    cut = list(row_tiles(matrix, 64 * 70))
    assert len(cut) > 1
    torch.testing.assert_close(torch.cat([dequantize(matrix, rows=rows) for rows in cut]), dequantize(matrix))


def close(actual: Tensor, x: Tensor, weight: Tensor) -> None:
    """Within the roundings of the input, the weight and the result, by the sums of magnitudes they act on."""
    exact = x.double() @ weight.double().t()
    bound = 1.5 * ROUNDING * (x.double().abs() @ weight.double().abs().t())
    assert actual.dtype == x.dtype
    assert bool(((actual.double() - exact).abs() <= bound + 1e-6).all())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 130),
    columns=st.sampled_from([32, 64, 96, 160]),
    tokens=st.sampled_from([1, 2, 7, 33, 80]),
    form=st.sampled_from(["int8", "int4"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_products_are_those_of_the_dequantized_weights(
    rows: int, columns: int, tokens: int, form: QuantFormat, dtype: torch.dtype
) -> None:
    matrix = quantize_weight(normal(rows, columns), form)
    x = normal(tokens, columns, seed=1, dtype=dtype)
    close(quantized_linear(x, matrix), x, dequantize(matrix))
    close(quantized_products.dequantized_matmul(x, matrix), x, dequantize(matrix))


@FORMATS
def test_tiles_multiply_in_the_dtype_of_the_input(form: QuantFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_products, "_TILE_WEIGHTS", 64 * 64)
    matrix = quantize_weight(normal(150, 64), form)
    for dtype in (torch.float32, torch.float64):
        x = normal(2, 70, 64, seed=1, dtype=dtype)
        torch.testing.assert_close(quantized_linear(x, matrix), reference.quantized_linear(x, matrix))
    x = normal(70, 64, seed=1, dtype=torch.float16) * 200
    torch.testing.assert_close(quantized_linear(x, matrix), reference.quantized_linear(x, matrix), rtol=0.01, atol=1.0)


@pytest.fixture(params=["blas", "blas,bfloat16"])
def forced_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The dtype that FATHOM_PRODUCTS asks for."""
    monkeypatch.setenv(VARIABLE, request.param)
    products.product_choice.cache_clear()
    yield torch.bfloat16 if request.param.endswith("bfloat16") else torch.float32
    products.product_choice.cache_clear()


@FORMATS
def test_tiles_multiply_in_the_precision_that_was_chosen(form: QuantFormat, forced_dtype: torch.dtype) -> None:
    matrix, x = quantize_weight(normal(64, 64), form), normal(70, 64, seed=1)
    weight, scales = (matrix.values, matrix.scales.float()) if form == "int8" else (dequantize(matrix), torch.ones(64))
    for dtype in (torch.float32, torch.bfloat16):
        narrowed = x.to(dtype)
        expected = (narrowed.to(forced_dtype) @ weight.to(forced_dtype).t()).to(dtype) * scales
        torch.testing.assert_close(
            quantized_products.dequantized_matmul(narrowed, matrix), expected.to(dtype), rtol=1e-5, atol=1e-5
        )


@FORMATS
def test_a_row_alone_equals_the_row_among_others(form: QuantFormat, half_units: bool) -> None:
    matrix = quantize_weight(normal(96, 256), form)
    x = normal(200, 256, seed=1)
    x[1] *= 1e4  # an outlier must not disturb its neighbours
    alone = quantized_linear(x[:1], matrix)
    size = (x[:1].abs() @ dequantize(matrix).abs().t()).max()
    for count in (2, 12, 40, 200):
        torch.testing.assert_close(quantized_linear(x[:count], matrix)[:1], alone, rtol=0, atol=float(ROUNDING * size))
    among = quantized_linear(x[:12], matrix)[:1]
    torch.testing.assert_close(among, alone, rtol=2 * ROUNDING, atol=1e-5)  # one product: one rounding of the result


def make_experts(tokens: int, form: QuantFormat, width: int = 32) -> tuple[Tensor, ...]:
    chosen = torch.rand(tokens, 8, generator=torch.Generator().manual_seed(2)).argsort(-1)[:, :3]
    weights = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(3))
    stacked = (normal(8, 2 * width, 64, seed=4) / 8, normal(8, 64, width, seed=5) / width**0.5)
    return normal(tokens, 64), chosen, weights, *(quantize_experts(weight, form) for weight in stacked)  # type: ignore[return-value]


@FORMATS
@pytest.mark.parametrize("tokens", [0, 1, 2, 50, 400])
@pytest.mark.parametrize("drop", [False, True])
def test_experts_are_those_of_the_dequantized_weights(
    form: QuantFormat, tokens: int, drop: bool, half_units: bool
) -> None:
    parts = make_experts(tokens, form)
    kept = torch.rand(parts[1].shape, generator=torch.Generator().manual_seed(6)) < 0.5 if drop else None
    expected = reference.quantized_grouped_swiglu(*parts, kept)  # type: ignore[arg-type]
    actual = quantized_grouped_swiglu(*parts, kept)  # type: ignore[arg-type]
    assert actual.dtype == torch.float32
    assert actual.shape == parts[0].shape
    assert float((actual - expected).norm()) <= 0.01 * float(expected.norm())
    norms = (actual - expected).norm(dim=-1), expected.norm(dim=-1)
    assert bool((norms[0] <= 0.03 * norms[1] + 1e-6).all())


@FORMATS
def test_wide_experts_equal_the_reference_exactly_in_float64(form: QuantFormat) -> None:
    x, indices, weights, gate_up, down = make_experts(30, form)
    x, weights = x.double(), weights.double()
    wide = [torch.stack([dequantize(each, torch.float64) for each in part.experts]) for part in (gate_up, down)]  # type: ignore[attr-defined]
    expected = grouped_swiglu(x, indices, weights, *wide)
    torch.testing.assert_close(quantized_grouped_swiglu(x, indices, weights, gate_up, down), expected)  # type: ignore[arg-type]


@FORMATS
def test_one_token_multiplies_its_experts_only(form: QuantFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_experts(1, form)
    seen: list[int] = []
    multiply = quantized_experts.fused_matmul

    def watched(x: Tensor, matrix: weight_formats.QuantizedWeight) -> Tensor:
        seen.append(matrix.values.data_ptr())
        return multiply(x, matrix)

    monkeypatch.setattr(quantized_experts, "fused_matmul", watched)
    quantized_grouped_swiglu(*parts)  # type: ignore[arg-type]
    chosen = parts[1][0].tolist()
    assert seen == [part.experts[expert].values.data_ptr() for part in parts[3:] for expert in chosen]  # type: ignore[attr-defined]


def test_memory_is_what_the_formats_promise() -> None:
    weight = normal(128, 256)
    assert quantize_int8(weight).nbytes == 128 * 256 + 2 * 128
    assert quantize_int4(weight, 64).nbytes == 128 * 256 // 2 + 4 * 128 * 4
    experts = quantize_experts(normal(3, 128, 256), "int4")
    assert experts.nbytes == 3 * quantize_int4(weight, 32).nbytes
    assert all(each.values.data_ptr() >= experts.values.data_ptr() for each in experts.experts)


def test_what_cannot_be_packed_is_refused() -> None:
    for size in (0, 16, 48, 256):
        with pytest.raises(SpecError, match="group_size"):
            quantize_int4(normal(16, 256), size)
    with pytest.raises(SpecError, match="96 columns are not a multiple of 64"):
        quantize_int4(normal(16, 96), 64)
    with pytest.raises(SpecError, match="24 columns are not a multiple of 16"):
        quantize_int8(normal(16, 24))
    with pytest.raises(SpecError, match="dimensions"):
        quantize_int8(normal(16))
    for bad in (float("nan"), float("inf")):
        weight = normal(16, 64)
        weight[3, 5] = bad
        with pytest.raises(SpecError, match="not finite"):
            quantize_int4(weight)
        with pytest.raises(SpecError, match="not finite"):
            quantize_int8(weight)


@FORMATS
def test_gradients_are_refused(form: QuantFormat) -> None:
    with pytest.raises(SpecError, match="gradient"):
        quantized_linear(normal(1, 64).requires_grad_(), quantize_weight(normal(16, 64), form))
    x, *rest = make_experts(2, form)
    with pytest.raises(SpecError, match="gradient"):
        quantized_grouped_swiglu(x.requires_grad_(), *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(256, 512), (200, 300)])
def test_fp8_blocks_multiply_as_the_released_weights_read_back(shape: tuple[int, int]) -> None:
    values, scales = released.quantize(normal(*shape))
    x = normal(5, shape[1], seed=1)
    expected = x @ released.dequantize(values, scales, dtype=torch.float32).t()
    torch.testing.assert_close(fp8_block_linear(x, values, scales), expected)


def test_rows_round_to_fp8_each_on_its_own() -> None:
    x = normal(4, 256)
    x[1] *= 1e3
    x[2] = 0
    values, scales = fp8.quantize_rows(x)
    assert scales.shape == (4, 2)
    back = (values.float().view(4, 2, 128) * scales.unsqueeze(-1)).view(4, 256)
    largest = x.view(4, 2, 128).abs().amax(-1).repeat_interleave(128, -1)
    assert bool(((back - x).abs() <= torch.maximum(x.abs() / 16, largest * 2.0**-9 / 448 * 1.01)).all())
    alone, _ = fp8.quantize_rows(x[:1])
    assert torch.equal(alone.float(), values[:1].float())


@pytest.mark.parametrize("rows", [1, 64, 128])
def test_int4_numbers_lie_contiguous_whatever_their_rows(rows: int) -> None:
    assert quantize_int4(normal(rows, 64)).values.is_contiguous()
