"""Quantized pages against the formula they follow, written out, and against what they were given.

N tokens, X numbers of a token, G groups of K numbers.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom import kernels
from fathom.families import PRESETS
from fathom.model import build
from fathom.model.cache import PagedStep, PagePool, SequenceChunk
from fathom.model.cache.pages import PlainPages, Scratch
from fathom.model.cache.quantized import QuantizedPages
from fathom.plan import cache_bytes_per_token
from fathom.plan.cache_rows import EIGHT_BITS, PAIRED_MAX_CODE, QuantizedFormat, QuantizedRow, Segment, quantized_rows
from fathom.spec import GroupedQueryAttention, LatentAttention, ModelSpec

PAGE = 4
CPU = torch.device("cpu")
FORMATS: tuple[QuantizedFormat, ...] = ("int8", "int6")


@pytest.fixture(params=["mla", "gqa", "window"])
def spec(request: pytest.FixtureRequest, latent_spec, grouped_spec) -> ModelSpec:  # type: ignore[no-untyped-def]
    made = {"mla": latent_spec(), "gqa": grouped_spec(), "window": grouped_spec(window=10)}
    return made[request.param]


def draw(rows: int, width: int, seed: int = 0) -> Tensor:
    """Numbers of very different sizes, as latents and keys are."""
    generator = torch.Generator().manual_seed(seed)
    sizes_X = torch.randn(width, generator=generator).mul(1.5).exp()
    return torch.randn(rows, width, generator=generator) * sizes_X


def pages_of(row: QuantizedRow, count: int, dtype: torch.dtype = torch.float32) -> QuantizedPages:
    return QuantizedPages(count, PAGE, row, device=CPU, dtype=dtype)


def whole(pages: QuantizedPages, count: int) -> Tensor:
    return pages.read(slice(0, count), Scratch()).clone()


def by_formula(x_NX: Tensor, row: QuantizedRow) -> tuple[Tensor, Tensor]:
    """What is read back, and the scale of each number: x / s rounded, times s.

    The scale s is the largest magnitude by the largest code, rounded up to bfloat16.
    """
    found, scales = [], []
    for segment, part in zip(row.segments, x_NX.float().split([s.width for s in row.segments], 1), strict=True):
        for group_NK in part.split(segment.group, 1):
            exact_N1 = group_NK.abs().max(1, keepdim=True).values / segment.largest
            near_N1 = exact_N1.bfloat16()
            above_N1 = near_N1.nextafter(torch.full_like(near_N1, math.inf))
            scale_N1 = torch.where(near_N1 < exact_N1, above_N1, near_N1).float()
            found.append((group_NK / scale_N1).round() * scale_N1)
            scales.append(scale_N1.expand_as(group_NK))
    return torch.cat(found, 1), torch.cat(scales, 1)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["heads", "latent"]),
    heads=st.integers(1, 4),
    half=st.integers(1, 40),
    rotary=st.integers(1, 20),
    cache_format=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
)
def test_what_is_read_follows_the_formula_and_is_half_a_scale_away_at_most(
    kind: str, heads: int, half: int, rotary: int, cache_format: QuantizedFormat, seed: int
) -> None:
    attention = (
        GroupedQueryAttention(num_heads=heads, num_kv_heads=heads, head_dim=2 * half)
        if kind == "heads"
        else LatentAttention(
            num_heads=heads, kv_lora_rank=3 * half, qk_nope_head_dim=4, qk_rope_head_dim=2 * rotary, v_head_dim=4
        )
    )
    for row in quantized_rows(attention, cache_format):
        x_NX = draw(2 * PAGE, row.width, seed)
        pages = pages_of(row, 2)
        pages.write(torch.arange(2 * PAGE), x_NX)
        expected_NX, scales_NX = by_formula(x_NX, row)
        assert torch.equal(whole(pages, 2), expected_NX)
        # Quotients are rounded to 24 bits before they are rounded to whole codes.
        assert ((x_NX - expected_NX).abs() <= scales_NX * (0.5 + EIGHT_BITS * 2**-24)).all()


@pytest.mark.parametrize(("largest", "group"), [(EIGHT_BITS, 16), (PAIRED_MAX_CODE, 32), (PAIRED_MAX_CODE, 128)])
def test_every_code_of_a_group_is_read_back_exactly(largest: int, group: int) -> None:
    codes = torch.arange(-largest, largest + 1, dtype=torch.float32)
    row = QuantizedRow((Segment(group, largest, group),))
    x_NX = codes[:, None].expand(-1, group).clone()
    x_NX[:, 1::3] = codes.roll(5)[:, None]
    x_NX[:, 2] = largest
    pages = pages_of(row, math.ceil(len(codes) / PAGE))
    pages.write(torch.arange(len(codes)), x_NX)
    assert torch.equal(whole(pages, math.ceil(len(codes) / PAGE))[: len(codes)], x_NX)


@pytest.mark.parametrize("largest", [EIGHT_BITS, PAIRED_MAX_CODE])
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 3e4, 1e30])
def test_numbers_of_any_size_have_room(largest: int, size: float) -> None:
    """A group's largest number must not lose its place to the rounding of the scale, which is 2^-7 at most."""
    row = QuantizedRow((Segment(32, largest, 32),))
    x_NX = torch.linspace(-1, 1, 32) * torch.linspace(1, 2, 4 * PAGE)[:, None] * size
    pages = pages_of(row, 4)
    pages.write(torch.arange(4 * PAGE), x_NX)
    scale_N1 = x_NX.abs().amax(1, keepdim=True) / largest
    lost = 1e-30 / largest  # groups smaller than 1e-30 share its scale
    assert ((whole(pages, 4) - x_NX).abs() <= 0.5 * (1 + 2**-7) * scale_N1 + lost).all()


@pytest.mark.parametrize("cache_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_come_in_the_models_type_rounded_once(dtype: torch.dtype, cache_format: QuantizedFormat) -> None:
    (row,) = quantized_rows(PRESETS["bench-t"].spec.attention, cache_format)
    x_NX = draw(PAGE, row.width).to(dtype)
    pages = pages_of(row, 1, dtype)
    pages.write(torch.arange(PAGE), x_NX)
    got_NX = whole(pages, 1)
    assert got_NX.dtype == dtype
    assert torch.equal(got_NX, by_formula(x_NX, row)[0].to(dtype))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_a_tokens_bytes_depend_on_nothing_but_its_numbers(cache_format: QuantizedFormat) -> None:
    (row,) = quantized_rows(PRESETS["bench-l"].spec.attention, cache_format)
    x_NX = draw(3 * PAGE, row.width)
    together, apart, backwards = (pages_of(row, 3) for _ in range(3))
    together.write(torch.arange(3 * PAGE), x_NX)
    for slot in torch.randperm(3 * PAGE, generator=torch.Generator().manual_seed(1)).tolist():
        apart.write(torch.tensor([slot]), x_NX[slot : slot + 1])
    x_NX[:2] = math.nan  # and a broken neighbour reaches no other token
    backwards.write(torch.arange(3 * PAGE).flip(0), x_NX.flip(0))
    assert torch.equal(whole(together, 3), whole(apart, 3))
    assert torch.equal(whole(together, 3)[2:], whole(backwards, 3)[2:])
    assert whole(backwards, 3)[:2].isnan().any(1).all()


@pytest.mark.parametrize("cache_format", FORMATS)
def test_pages_are_read_in_any_order_and_unwritten_or_cleared_ones_as_zeros(cache_format: QuantizedFormat) -> None:
    (row,) = quantized_rows(PRESETS["bench-t"].spec.attention, cache_format)
    pages = pages_of(row, 4)
    pages.write(torch.arange(2 * PAGE), draw(2 * PAGE, row.width))
    before_NX = whole(pages, 4)
    assert before_NX[: 2 * PAGE].any(1).all()
    assert torch.equal(before_NX[2 * PAGE :], torch.zeros(2 * PAGE, row.width))
    order = torch.tensor([3, 1, 0, 1])
    gathered_NX = pages.read(order, Scratch())
    assert torch.equal(gathered_NX.view(4, PAGE, -1), before_NX.view(4, PAGE, -1)[order])
    pages.clear(torch.tensor([1]))
    after_NX = whole(pages, 4)
    assert torch.equal(after_NX[:PAGE], before_NX[:PAGE])
    assert torch.equal(after_NX[PAGE:], torch.zeros(3 * PAGE, row.width))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_the_pool_reserves_the_bytes_that_the_arithmetic_says(spec: ModelSpec, cache_format: QuantizedFormat) -> None:
    pool = PagePool.allocate(spec, pages=3, page_size=PAGE, cache_format=cache_format)
    assert pool.bytes_per_token == cache_bytes_per_token(spec, cache_format=cache_format)
    assert pool.nbytes == 3 * PAGE * pool.bytes_per_token


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("cache_format", FORMATS)
def test_pools_of_published_shapes_take_what_the_arithmetic_says(name: str, cache_format: QuantizedFormat) -> None:
    published = PRESETS[name].spec
    pool = PagePool.allocate(published, pages=1, page_size=2, cache_format=cache_format)
    assert pool.bytes_per_token == cache_bytes_per_token(published, cache_format=cache_format)


class FormulaPages(PlainPages):
    """Plain pages of numbers already rounded as the formula says."""

    row: QuantizedRow

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        super().write(slots_N, by_formula(rows_NX, self.row)[0].to(rows_NX.dtype))


def formula_pool(spec: ModelSpec, cache_format: QuantizedFormat, pages: int, dtype: torch.dtype) -> PagePool:
    def page(row: QuantizedRow) -> FormulaPages:
        made = FormulaPages(pages, PAGE, row.width, device=CPU, dtype=dtype)
        made.row = row
        return made

    rows = quantized_rows(spec.attention, cache_format)
    layers = [tuple(map(page, rows)) for _ in range(spec.num_hidden_layers)]
    kv_shapes = PagePool.allocate(spec, pages=1, page_size=PAGE).kv_shapes
    return PagePool(layers, kv_shapes, page_size=PAGE, num_pages=pages, device=CPU)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_format", FORMATS)
def test_a_model_over_quantized_pages_is_one_over_rounded_numbers(
    spec: ModelSpec, cache_format: QuantizedFormat, dtype: torch.dtype
) -> None:
    model = build(spec, seed=3, dtype=dtype).eval()
    texts = [torch.randint(0, spec.vocab_size, (n,), generator=torch.Generator().manual_seed(n)) for n in (19, 23)]
    tables = ((9, 4, 2, 7, 0, 5), (1, 3, 10, 8, 6, 11))

    def run(pool: PagePool) -> Tensor:
        found = []
        for bounds in ([(0, 7), (0, 11)], [(7, 8), (11, 12)], [(8, 19), (12, 23)]):
            chunks = [
                SequenceChunk(table, start, end - start) for table, (start, end) in zip(tables, bounds, strict=True)
            ]
            tokens = torch.cat([text[start:end] for text, (start, end) in zip(texts, bounds, strict=True)])
            found.append(model(tokens[None], cache=PagedStep(pool, chunks, window=model.window)).hidden_BTD[0])
        return torch.cat(found)

    got = run(PagePool.allocate(spec, pages=12, page_size=PAGE, cache_format=cache_format, dtype=dtype))
    assert torch.equal(got, run(formula_pool(spec, cache_format, 12, dtype)))
    plain = run(PagePool.allocate(spec, pages=12, page_size=PAGE, dtype=dtype))
    assert not torch.equal(got, plain)


@pytest.mark.parametrize("cache_format", FORMATS)
def test_attention_over_quantized_history_errs_no_more_than_the_scales_allow(cache_format: QuantizedFormat) -> None:
    """|o' - o| <= max |v' - v| + (e^(2 e) - 1) max |v|, where e bounds the error of a score.

    Each weight changes by a factor within e^(-2 e) and e^(2 e), and e is scale x sum |q| s / 2 by Hölder's inequality.
    """
    heads, width, keys = 2, 64, 48
    attention = GroupedQueryAttention(num_heads=heads, num_kv_heads=heads, head_dim=width)
    key_row, value_row = quantized_rows(attention, cache_format)
    generator = torch.Generator().manual_seed(5)
    k_NX, v_NX = (torch.randn(keys, heads * width, generator=generator) for _ in range(2))
    q_1HTK = torch.randn(1, heads, 1, width, generator=generator)
    k_scale_NX, v_scale_NX = by_formula(k_NX, key_row)[1], by_formula(v_NX, value_row)[1]

    def stored(x_NX: Tensor, row: QuantizedRow) -> Tensor:
        pages = pages_of(row, keys // PAGE)
        pages.write(torch.arange(keys), x_NX)
        return whole(pages, keys // PAGE)

    def attend(k_NX: Tensor, v_NX: Tensor) -> Tensor:
        k_1GSK, v_1GSK = (x.view(1, keys, heads, width).transpose(1, 2) for x in (k_NX, v_NX))
        return kernels.attention(q_1HTK, k_1GSK, v_1GSK, mask_B1TS=None, causal=False, scale=width**-0.5)

    error = (attend(stored(k_NX, key_row), stored(v_NX, value_row)) - attend(k_NX, v_NX)).abs().amax((0, 2, 3))
    spread_GSK = k_scale_NX.view(keys, heads, width).transpose(0, 1)
    score_G = width**-0.5 * (q_1HTK[0].abs() * spread_GSK / 2).sum(-1).amax(-1)
    value_G = v_scale_NX.view(keys, heads, width).amax((0, 2)) / 2
    largest_G = v_NX.view(keys, heads, width).abs().amax((0, 2))
    bound_G = value_G + (torch.exp(2 * score_G) - 1) * largest_G
    assert (error <= bound_G).all()
    assert (error > 0).all()
