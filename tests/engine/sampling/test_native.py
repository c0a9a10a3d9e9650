"""Draws of the native library against those of ``draw``, which is the plainer code: the same tokens, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import c_void_p
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.engine.sampling.draw import SamplingFailure, SamplingMetadata, try_draw
from fathom.engine.sampling.native import NativeSampler, all_finite
from fathom.kernels.native import library
from fathom.spec.sampling import SamplingParams, TokenLogprob
from tests.engine.sampling.test_draw import Only

pytestmark = pytest.mark.usefixtures("native")

ways = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-300, 1e-6, 0.3, 1.0, 1.0, 1.8, 1e300])},
    optional={
        "top_k": st.sampled_from([0, 1, 2, 11, 40, 255, 256, 10**12]),
        "top_p": st.sampled_from([1e-9, 0.13, 0.5, 0.9, 0.99, 1.0]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.3]),
        "frequency_penalty": st.sampled_from([-0.4, 0.6]),
        "presence_penalty": st.sampled_from([-0.7, 0.1]),
        "logit_bias": st.sampled_from([((3, 2.5), (4, -1.0)), ((1, 100.0),), ((256, 1.0),)]),
        "min_tokens": st.sampled_from([0, 3]),
        "logprobs": st.sampled_from([None, 0, 1, 5, 10**12]),
    },
)
rows = st.lists(
    st.tuples(ways, st.sampled_from([None, None, (), (2, 31, 32), (254, 255), (9,)])), min_size=1, max_size=6
)


@pytest.fixture
def isas() -> Iterator[tuple[str, ...]]:
    """The instruction sets of this processor; the best is used again when the test ends."""
    before = library.current_isa()
    yield library.usable_isas()
    library.use_isa(before)


def assert_same(
    drawn: Sequence[TokenLogprob | SamplingFailure], plain: Sequence[TokenLogprob | SamplingFailure]
) -> None:
    for one, other in zip(drawn, plain, strict=True):
        if isinstance(one, SamplingFailure) or isinstance(other, SamplingFailure):
            assert one == other
            continue
        assert one.token_id == other.token_id
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        mine, theirs = [one.logprob, *(v for _, v in one.top)], [other.logprob, *(v for _, v in other.top)]
        assert mine == pytest.approx(theirs, rel=2e-6, abs=2e-6)


def logits_of(kind: str, count: int, vocab: int, seed: int) -> Tensor:
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "ties":
        return logits.round()
    if kind == "few":
        logits[:, 2:], logits[:, vocab // 2] = -torch.inf, 1.0
    if kind == "huge":
        logits *= 1e36
    if kind == "damaged":
        logits[0, seed % vocab] = (torch.nan, torch.inf, -torch.inf)[seed % 3]
    return logits


@given(
    vocab=st.sampled_from([5, 255, 256, 257, 700, 5003]),
    ways=rows,
    seed=st.integers(0, 999),
    kind=st.sampled_from(["spread", "spread", "ties", "few", "huge", "damaged"]),
    unused=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_native_draws_are_those_of_the_plainer_code(
    vocab: int, ways: list[tuple[dict[str, Any], tuple[int, ...] | None]], seed: int, kind: str, unused: bool
) -> None:
    logits = logits_of(kind, len(ways), vocab, seed)
    unused_ids_N = torch.tensor([3, *range(vocab - vocab // 4, vocab)]) if unused else None
    given = [
        SamplingMetadata(
            params=SamplingParams(**way, stop_token_ids=(2,)),
            prompt=(1, 2, 2),
            drawn=[4] * index,
            seed=seed - 500 * index,
            constraint=None if allowed is None else Only(*(token for token in allowed if token < vocab)),
        )
        for index, (way, allowed) in enumerate(ways)
    ]
    plain = try_draw(logits, given, unused_ids_N=unused_ids_N)
    assert_same(NativeSampler(vocab, unused_ids_N).draw(logits, given), plain)


@given(
    penalty=st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.floats(1e-3, 1e3),
            "presence_penalty": st.floats(-1e3, 1e3),
            "frequency_penalty": st.floats(-1e3, 1e3),
            "logit_bias": st.lists(st.tuples(st.integers(0, 39), st.floats(-1e39, 1e39)), max_size=4).map(tuple),
            "min_tokens": st.sampled_from([0, 2]),
        },
    ),
    prompt=st.lists(st.integers(0, 39), max_size=9),
    drawn=st.lists(st.integers(0, 39), max_size=9),
    drafts=st.integers(0, 3),
    scale=st.sampled_from([0.0, 1.0, 1e38]),
)
@settings(max_examples=60, deadline=None)
def test_native_penalties_biases_and_bans_are_those_of_the_plainer_code_to_the_last_bit(
    penalty: dict[str, Any], prompt: list[int], drawn: list[int], drafts: int, scale: float
) -> None:
    change = library.library().fathom_change_logits
    change.restype, change.argtypes = None, (c_void_p, c_void_p, c_void_p)
    params = SamplingParams(**penalty, stop_token_ids=(7, 41))
    logits = logits_of("spread", 1, 40, len(drawn))[0] * scale
    grown: list[int] = []
    row = SamplingMetadata(params=params, prompt=prompt, drawn=grown, seed=0, eos_ids=frozenset({5}))
    for count in range(len(drawn) + 1):
        for later in (row, row.with_drafts(drawn[count : count + drafts], None)):
            found, expected = logits.clone(), logits.clone()
            fresh = SamplingMetadata(params=params, prompt=prompt, drawn=later.drawn, seed=0, eos_ids=row.eos_ids)
            fresh.changes(40).apply(expected, later.drawn)
            change(later.changes(40).address(later.drawn), logits.data_ptr(), found.data_ptr())
            assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
        grown += drawn[count : count + 1]


@pytest.mark.parametrize("vocab", [17, 1000, 32_003])
def test_every_instruction_set_draws_the_same(vocab: int, isas: tuple[str, ...]) -> None:
    given = [
        SamplingMetadata(params=SamplingParams(logprobs=3, **way), prompt=(0,), drawn=[0] * seed, seed=seed)
        for seed in range(4)
        for way in ({}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 20, "min_p": 0.01})
    ]
    logits = logits_of("spread", len(given), vocab, 1)
    plain = try_draw(logits, given)
    for isa in isas:
        library.use_isa(isa)
        assert_same(NativeSampler(vocab).draw(logits, given), plain)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_damaged_logits_are_seen_wherever_they_are(bad: float, isas: tuple[str, ...]) -> None:
    given = [SamplingMetadata(params=SamplingParams(), prompt=(0,), drawn=[], seed=0)] * 2
    for isa in isas:
        library.use_isa(isa)
        for place in (0, 15, 16, 255, 256, 298):
            logits = logits_of("spread", 2, 299, place)
            logits[1, place] = bad
            good, other = NativeSampler(299).draw(logits, given)
            assert not isinstance(good, SamplingFailure)
            assert isinstance(other, SamplingFailure) is (bad != -torch.inf)
            assert not all_finite(logits)
            assert all_finite(logits[:1])


def test_rows_that_lie_apart_or_in_columns_are_read_where_they_are() -> None:
    logits = logits_of("spread", 6, 300, 0)
    given = [SamplingMetadata(params=SamplingParams(), prompt=(0,), drawn=[], seed=seed) for seed in range(3)]
    sampler, whole = NativeSampler(300), NativeSampler(300).draw(logits[::2].contiguous(), given)
    assert sampler.draw(logits[::2], given) == whole
    assert sampler.draw(logits[::2].T.contiguous().T, given) == whole
    assert sampler.draw(logits[:1].expand(3, -1), given)[0] == whole[0]
    assert sampler.draw(logits[4:5], given[2:]) == whole[2:]
