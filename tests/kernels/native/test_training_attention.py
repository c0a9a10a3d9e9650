"""Attention in training on every instruction set and any number of threads, against softmax query by query in float64.

X = P + U columns of each head: its key without the rotary part, then its value.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.kernels.native import library
from fathom.kernels.native.training_attention import attend, attend_backward

pytestmark = pytest.mark.usefixtures("native")

SCALE = 0.3


@dataclass
class Case:
    """Inputs and the gradient of the output."""

    q: Tensor
    kv: Tensor
    rope_key: Tensor
    grad: Tensor

    @classmethod
    def draw(cls, batch: int, tokens: int, heads: int, widths: tuple[int, int, int], seed: int = 0) -> "Case":
        nope, rope, value = widths
        generator = torch.Generator().manual_seed(seed)
        shapes = (heads, nope + rope), (heads, nope + value), (rope,), (heads, value)
        return cls(*(torch.randn(batch, tokens, *shape, generator=generator) for shape in shapes))

    @property
    def inputs(self) -> list[Tensor]:
        return [self.q, self.kv, self.rope_key]

    def found(self, threads: int = 2, scale: float = SCALE) -> list[Tensor]:
        """Output, log-sum-exp and gradients of the native library."""
        pool = library.ThreadPool(threads)
        out, lse = attend(pool, *self.inputs, scale)
        return [out, lse, *attend_backward(pool, self.grad, *self.inputs, out, lse, scale)]

    def expected(self, scale: float = SCALE, *, by_query: bool = False) -> list[Tensor]:
        """The same in float64; by query, each meets the keys that it sees and no others."""
        leaves = [x.double().requires_grad_() for x in self.inputs]
        q_BTHW, kv_BTHX, rope_key_BTR = leaves
        (tokens, heads), nope = q_BTHW.shape[1:3], q_BTHW.shape[-1] - rope_key_BTR.shape[-1]
        k_BTHW = torch.cat((kv_BTHX[..., :nope], rope_key_BTR[:, :, None].expand(-1, -1, heads, -1)), -1)
        outputs, sums = [], []
        for first in range(0, tokens, 1 if by_query else tokens):
            end = first + 1 if by_query else tokens
            scores_BHTS = scale * torch.einsum("bthw,bshw->bhts", q_BTHW[:, first:end], k_BTHW[:, :end])
            later_TS = torch.ones(scores_BHTS.shape[2:], dtype=torch.bool).triu(first + 1)
            scores_BHTS = scores_BHTS.masked_fill(later_TS, -math.inf)
            outputs.append(torch.einsum("bhts,bshu->bthu", scores_BHTS.softmax(-1), kv_BTHX[:, :end, :, nope:]))
            sums.append(scores_BHTS.logsumexp(-1))
        out_BTHU = torch.cat(outputs, 1)
        grads = torch.autograd.grad(out_BTHU, leaves, self.grad.double())
        return [out_BTHU.detach(), torch.cat(sums, -1).detach(), *grads]


def check(case: Case, tolerance: float = 1e-5, scale: float = SCALE) -> None:
    for mine, exact in zip(case.found(scale=scale), case.expected(scale), strict=True):
        largest = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
        torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("tokens", [1, 7, 65, 513])
@pytest.mark.parametrize(("heads", "widths"), [(1, (64, 32, 64)), (3, (21, 6, 13)), (5, (3, 1, 2))])
def test_values_and_gradients(isa, tokens, heads, widths):
    check(Case.draw(1 if tokens > 500 else 2, tokens, heads, widths))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape(data):
    library.use_isa(data.draw(st.sampled_from(library.usable_isas())))
    nope, rope, value = (data.draw(st.integers(least, 70)) for least in (0, 0, 1))
    tokens = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([96, 97, 191, 192, 193, 200])))
    batch, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    check(Case.draw(batch, tokens, heads, (nope if rope else max(1, nope), rope, value)))


def test_no_tokens_and_no_sequences():
    for batch, tokens in ((2, 0), (0, 3)):
        shapes = [tuple(x.shape) for x in Case.draw(batch, tokens, 2, (4, 2, 3)).found()]
        assert shapes == [
            (batch, tokens, 2, 3),
            (batch, 2, tokens),
            *((batch, tokens, *s) for s in ((2, 6), (2, 7), (2,))),
        ]


@pytest.mark.parametrize("tokens", [20, 450])
def test_heads_sum_alike_on_any_number_of_threads(isa, tokens):
    case = Case.draw(2, tokens, 3, (12, 5, 20))
    alone = case.found(threads=1)
    for threads in (2, 5, 9):
        assert all(map(torch.equal, alone, case.found(threads)))


def test_scores_of_any_size_are_weighed_without_overflow(isa):
    case = Case.draw(1, 420, 1, (16, 8, 16))
    check(case, scale=1e-8)
    check(case, 2e-3, scale=30.0)  # scores of hundreds, of which float32 keeps 5 digits after the point


@cache
def spoiled(name: str, bad: float, tokens: int, at: int) -> tuple[Case, list[Tensor]]:
    """A case with a number that is not finite in one token, and what is expected."""
    case = Case.draw(1, tokens, 2, (9, 4, 7))
    getattr(case, name)[0, at, ..., -at % 3] = bad
    return case, case.expected(by_query=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["q", "kv", "rope_key", "grad"])
def test_what_is_not_finite_reaches_those_who_see_it_and_nobody_else(isa, name, bad):
    for tokens, at in ((30, 17), (30, 6), (205, 199)):
        case, expected = spoiled(name, bad, tokens, at)
        for mine, exact in zip(case.found(), expected, strict=True):
            assert torch.equal(mine.isfinite(), exact.isfinite())
            clean, right = (x.double().where(exact.isfinite(), 0) for x in (mine, exact))
            torch.testing.assert_close(clean, right, rtol=1e-5, atol=1e-4)


def test_a_key_infinitely_far_away_weighs_nothing(isa):
    case = Case.draw(1, 200, 1, (9, 4, 7))
    case.q.abs_()
    case.kv[:, 3:190, :, 0] = -math.inf
    for mine, exact in zip(case.found()[:2], case.expected(by_query=True)[:2], strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens", "widths"), [(1, (1, 0, 1)), (13, (5, 3, 9)), (200, (20, 7, 33))])
def test_nothing_is_written_beside_the_results(isa, tokens, widths, monkeypatch):
    """Results and workspaces lie between numbers that stay; under ``make test-sanitizers`` reading there fails too."""
    frames = []

    def framed(size: int, dtype: torch.dtype) -> Tensor:
        frames.append(torch.full((size + 128,), 7, dtype=dtype))
        return frames[-1][64:-64]

    monkeypatch.setattr(Tensor, "new_empty", lambda x, *shape: framed(math.prod(shape), x.dtype).view(shape))
    monkeypatch.setattr(torch, "empty_like", lambda x: framed(x.numel(), x.dtype).view(x.shape))
    monkeypatch.setattr(
        "fathom.kernels.native.training_attention.aligned_bytes", lambda size: framed(size, torch.uint8)
    )
    case = Case.draw(2, tokens, 3, widths)
    case.found(threads=3)
    assert len(frames) == 7
    for frame in frames:
        assert bool((frame[:64] == 7).all())
        assert bool((frame[-64:] == 7).all())
