"""Attention over pages on every instruction set and any number of threads, against softmax in float64.

J query heads of a key-value head, W columns of keys, U of values, S cached tokens.
"""

import math
from ctypes import addressof
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.kernels.native import library
from fathom.kernels.native.attention import Attention, attend, attend_in_tiles, describe_pages
from fathom.model.cache.pages import PlainPages, Scratch
from fathom.model.cache.quantized import QuantizedPages
from fathom.plan.cache_rows import QuantizedFormat, quantized_rows
from fathom.spec import GroupedQueryAttention, LatentAttention

pytestmark = pytest.mark.usefixtures("native")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Sequence:
    """Tokens of one sequence in pages in disorder, and what attends to them."""

    keys: torch.Tensor  # all slots as floats, in the order of the pages
    values: torch.Tensor
    table: torch.Tensor
    page_size: int
    heads: int
    width: int
    value_width: int
    position: int
    tokens: int
    window: int = 0
    first: int = 0
    begin: int = 0
    kv_head: int = 0
    latent: bool = False
    scale: float = 0.3
    seed: int = 0
    q: torch.Tensor = field(init=False)
    out: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.q = numbers(self.tokens, self.heads, self.width, seed=self.seed + 100)
        self.out = torch.full((self.tokens, self.heads, self.value_width), 7.0)

    def item(self, keys, values) -> Attention:
        """Describe the work; ``keys`` and ``values`` are pages."""
        return Attention(
            addressof(keys), addressof(values), self.table.data_ptr(), self.page_size, self.first, self.begin,
            self.position, self.tokens, self.heads, self.window, self.kv_head * self.width, self.width,
            0 if self.latent else self.kv_head * self.value_width, self.value_width, self.scale,
            self.q.data_ptr(), self.heads * self.width, self.width,
            self.out.data_ptr(), self.heads * self.value_width, self.value_width,
        )  # fmt: skip

    def expected(self) -> torch.Tensor:
        """Softmax over the keys that each token sees, in float64; zeros where it sees none."""
        index_S = torch.arange(self.first, self.first + len(self.table) * self.page_size)
        slots_S = self.table.long().repeat_interleave(self.page_size) * self.page_size
        slots_S += torch.arange(self.page_size).repeat(len(self.table))
        key_at, value_at = self.kv_head * self.width, 0 if self.latent else self.kv_head * self.value_width
        k_SW = self.keys[slots_S, key_at : key_at + self.width].double()
        v_SU = self.values[slots_S, value_at : value_at + self.value_width].double()
        outputs = []
        for token in range(self.tokens):
            at = self.position + token
            seen_S = (index_S <= at) & (index_S >= self.begin)
            if self.window:
                seen_S &= index_S > at - self.window
            scores = self.scale * self.q[token].double() @ k_SW[seen_S].T
            outputs.append(scores.softmax(-1) @ v_SU[seen_S])
        return torch.stack(outputs)


def shuffled_table(pages: int, count: int, seed: int) -> torch.Tensor:
    return torch.randperm(pages, generator=torch.Generator().manual_seed(seed))[:count].to(torch.int32)


def check(pool, keys, values, sequences, tolerance: float = 2e-5) -> None:
    """Compare all sequences with what is expected, by rows and in tiles; ``values`` of None are the keys."""
    expected = [sequence.expected() for sequence in sequences]
    for form in FORMS:
        form(pool, [sequence.item(keys, keys if values is None else values) for sequence in sequences])
        for sequence, out in zip(sequences, expected, strict=True):
            torch.testing.assert_close(sequence.out.double(), out, atol=tolerance, rtol=tolerance)
            sequence.out.fill_(7.0)


def in_tiles(pool, items) -> None:
    for item in items:
        attend_in_tiles(pool, item)


FORMS = (attend, in_tiles)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_shape_any_window_and_any_pages(data):
    """Grouped heads in float32: several sequences at once, each at its own length."""
    pool = library.ThreadPool(data.draw(st.integers(1, 3)))
    library.use_isa(data.draw(st.sampled_from(library.usable_isas())))
    kv_heads = data.draw(st.integers(1, 3))
    width, value_width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    page_size = data.draw(st.sampled_from([1, 2, 5, 16, 32, 64]))
    pages = 200 // page_size + 1
    keys, values = (
        numbers(pages * page_size, kv_heads * width),
        numbers(pages * page_size, kv_heads * value_width, seed=1),
    )
    sequences = []
    for seed in range(data.draw(st.integers(1, 4))):
        heads, tokens = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
        length = data.draw(st.integers(tokens, 200))
        first = data.draw(st.integers(0, (length - tokens) // page_size)) * page_size
        window = data.draw(st.one_of(st.just(0), st.integers(1, 220)))
        if first:
            window = min(window or 220, length - tokens - first + 1)  # older tokens have no pages
        begin = 0 if first else data.draw(st.integers(0, length - tokens))
        sequences += [
            Sequence(
                keys, values, shuffled_table(pages, -(-(length - first) // page_size), seed), page_size, heads, width,
                value_width, length - tokens, tokens, window, first, begin, kv_head, seed=seed,
            )
            for kv_head in range(kv_heads)
        ]  # fmt: skip
    check(pool, describe_pages(keys), describe_pages(values), sequences)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130])
def test_any_number_of_rows(isa, rows):
    """Panels of every size, and tiles of rows."""
    keys, pool = numbers(4 * 32, 80), library.ThreadPool(2)
    latent = Sequence(keys, keys, torch.tensor([2, 0, 3, 1], dtype=torch.int32), 32, rows, 80, 64, 99, 1, latent=True)
    check(pool, describe_pages(keys), None, [latent])


@pytest.mark.parametrize("tokens", [1, 7, 70])
@pytest.mark.parametrize("cache_format", ["int8", "int6"])
def test_latents_in_quantized_pages(isa, tokens, cache_format: QuantizedFormat):
    """Absorbed MLA: the values are the first columns of the keys."""
    spec = LatentAttention(
        num_heads=4, q_lora_rank=None, kv_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
    )
    (row,) = quantized_rows(spec, cache_format)
    pages = QuantizedPages(8, 32, row, device=torch.device("cpu"), dtype=torch.float32)
    pages.write(torch.arange(256), numbers(256, row.width))
    keys, described = pages.read(slice(0, 8), Scratch()), describe_pages(pages.rows_NY, row)
    table = shuffled_table(8, 7, 1)
    sequence = Sequence(keys, keys, table, 32, 4, row.width, 96, 210 - tokens, tokens, latent=True)
    check(library.ThreadPool(2), described, None, [sequence])


@pytest.mark.parametrize("cache_format", ["int8", "int6", "bfloat16"])
def test_heads_in_pages_of_other_formats(isa, cache_format):
    spec = GroupedQueryAttention(num_heads=6, num_kv_heads=3, head_dim=40)
    if cache_format == "bfloat16":
        both = [PlainPages(4, 16, 120, device=torch.device("cpu"), dtype=torch.bfloat16) for _ in range(2)]
        described = [describe_pages(pages.rows_NX) for pages in both]
    else:
        rows = quantized_rows(spec, cache_format)
        both = [QuantizedPages(4, 16, row, device=torch.device("cpu"), dtype=torch.float32) for row in rows]
        described = [describe_pages(pages.rows_NY, row) for pages, row in zip(both, rows, strict=True)]
    for seed, pages in enumerate(both):
        x = numbers(64, 120, seed=seed)
        pages.write(torch.arange(64), x.bfloat16() if cache_format == "bfloat16" else x)
    keys, values = (pages.read(slice(0, 4), Scratch()).float() for pages in both)
    table = torch.tensor([3, 1, 0], dtype=torch.int32)
    sequences = [Sequence(keys, values, table, 16, 2, 40, 40, 40, 3, kv_head=head, seed=head) for head in range(3)]
    check(library.ThreadPool(2), *described, sequences)


def test_a_long_sequence_is_cut_by_keys_and_merged(isa):
    keys = numbers(64 * 32, 48)
    table = shuffled_table(64, 63, 5)
    for threads in (2, 3, 7):
        pool = library.ThreadPool(threads)
        for end in (64, 65, 129, 1000, 2000):
            one = Sequence(keys, keys, table, 32, 5, 48, 32, end - 1, 1, latent=True, scale=2.0, seed=end)
            check(pool, describe_pages(keys), None, [one])


def test_scores_of_any_size_are_weighed_without_overflow(isa):
    keys = numbers(128, 16)
    table = torch.arange(4, dtype=torch.int32)
    for scale in (1e-8, 30.0, 1e4):
        one = Sequence(keys, keys, table, 32, 3, 16, 16, 127, 1, latent=True, scale=scale)
        check(library.ThreadPool(2), describe_pages(keys), None, [one], tolerance=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_reaches_those_who_see_it_and_nobody_else(isa, form):
    for bad in (math.nan, math.inf):
        keys = numbers(128, 32)
        keys[100, 3] = bad
        one = Sequence(keys, keys, torch.arange(4, dtype=torch.int32), 32, 5, 32, 32, 60, 68, latent=True)
        pages = describe_pages(keys)
        form(library.ThreadPool(2), [one.item(pages, pages)])
        expected = one.expected()
        assert torch.equal(one.out.isnan().any(-1), expected.isnan().any(-1)), bad
        clean = ~expected.isnan().any(-1)
        torch.testing.assert_close(one.out.double()[clean], expected[clean], atol=2e-5, rtol=2e-5)


def test_many_tokens_sum_alike_on_any_number_of_threads(isa):
    """In tiles, with blocks of keys that a window begins and a page ends within."""
    keys, values = numbers(700, 40), numbers(700, 24, seed=1)
    pages, outputs = (describe_pages(keys), describe_pages(values)), []
    one = Sequence(keys, values, shuffled_table(100, 97, 2), 7, 2, 40, 24, 379, 300, window=260, seed=3)
    for threads in (1, 2, 5):
        attend_in_tiles(library.ThreadPool(threads), one.item(*pages))
        outputs.append(one.out.clone())
    torch.testing.assert_close(outputs[0].double(), one.expected(), atol=2e-5, rtol=2e-5)
    assert all(torch.equal(outputs[0], out) for out in outputs)


def test_a_key_infinitely_far_away_weighs_nothing(isa):
    keys, values = numbers(64, 16).abs(), numbers(64, 16, seed=1)
    one = Sequence(keys, values, torch.arange(2, dtype=torch.int32), 32, 4, 16, 16, 63, 1)
    one.q.abs_()
    keys[:40] = -math.inf  # the first block of some pieces has nothing else
    check(library.ThreadPool(2), describe_pages(keys), describe_pages(values), [one])


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_sees_nothing_gets_zeros(isa, form):
    keys = numbers(64, 16)
    table = torch.arange(2, dtype=torch.int32)
    one = Sequence(keys, keys, table, 32, 3, 16, 16, 10, 4, begin=12, latent=True)
    none = Sequence(keys, keys, table, 32, 3, 16, 16, 10, 2, begin=12, latent=True)
    pages = describe_pages(keys)
    for threads in (1, 3):
        one.out.fill_(7.0), none.out.fill_(7.0)
        form(library.ThreadPool(threads), [none.item(pages, pages), one.item(pages, pages), none.item(pages, pages)])
        assert not one.out[:2].any()
        assert not none.out.any()
        torch.testing.assert_close(one.out[2:].double(), one.expected()[2:], atol=2e-5, rtol=2e-5)
