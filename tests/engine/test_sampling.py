"""Each filter against its definition written out, and draws that do not depend on the batch."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.engine.sampling import draw, filtered_probabilities, make_generator
from fathom.errors import SpecError
from fathom.spec.sampling import SamplingParams

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, 3.0]])


def survivors(params: SamplingParams) -> dict[int, float]:
    probabilities, ids = filtered_probabilities(LOGITS, [params])
    return {int(i): float(p) for i, p in zip(ids[0], probabilities[0], strict=True) if p > 0}


def softmax(values: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(v) for v in values.values())
    return {i: math.exp(v) / total for i, v in values.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = softmax({i: float(v) / temperature for i, v in enumerate(LOGITS[0])})
    assert survivors(SamplingParams(temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_top_k_keeps_the_k_best() -> None:
    assert survivors(SamplingParams(top_k=2)) == pytest.approx(softmax({4: 3.0, 0: 2.0}), rel=1e-5)


def test_top_k_above_the_vocabulary_keeps_all() -> None:
    assert len(survivors(SamplingParams(top_k=99))) == 5


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    whole = softmax({i: float(v) for i, v in enumerate(LOGITS[0])})
    order = sorted(whole, key=lambda i: -whole[i])
    for p in (0.1, 0.5, 0.65, 0.9, 0.99):
        kept, mass = [], 0.0
        for i in order:
            if mass >= p:
                break
            kept.append(i)
            mass += whole[i]
        assert set(survivors(SamplingParams(top_p=p))) == set(kept)


def test_min_p_drops_what_is_far_below_the_best() -> None:
    kept = survivors(SamplingParams(min_p=0.2))
    assert set(kept) == {4, 0}  # exp(-1) = 0.37 stays, exp(-2) = 0.14 goes
    assert sum(kept.values()) == pytest.approx(1.0)


def test_temperature_zero_is_the_best_token() -> None:
    generator = make_generator(0)
    mixed = [SamplingParams(temperature=0.0), SamplingParams(temperature=5.0, seed=1)]
    for _ in range(20):
        ids, _ = draw(LOGITS.expand(2, -1), mixed, [generator, generator])
        assert int(ids[0]) == 4


def test_logprobs_are_of_the_unfiltered_softmax() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, seed=3)
    ids, logprobs = draw(LOGITS, [params], [make_generator(3)])
    assert float(logprobs[0]) == pytest.approx(float(LOGITS.log_softmax(-1)[0, ids[0]]), rel=1e-6)


def test_draws_do_not_depend_on_the_batch() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(seed=i, temperature=1.3, top_p=0.9) for i in range(4)]
    together = [make_generator(i) for i in range(4)]
    batched = torch.stack([draw(logits, params, together)[0] for _ in range(8)], dim=1)
    for row in range(4):
        alone = make_generator(row)
        single = [int(draw(logits[row : row + 1], [params[row]], [alone])[0]) for _ in range(8)]
        assert single == batched[row].tolist()


def test_frequencies_follow_the_distribution() -> None:
    generator = make_generator(7)
    count = 4000
    ids, _ = draw(LOGITS.expand(count, -1), [SamplingParams()] * count, [generator] * count)
    seen = torch.bincount(ids, minlength=5) / count
    assert torch.allclose(seen, LOGITS.softmax(-1)[0], atol=0.03)


def test_a_filtered_token_is_never_drawn() -> None:
    generator = make_generator(1)
    ids, _ = draw(LOGITS.expand(500, -1), [SamplingParams(top_k=2)] * 500, [generator] * 500)
    assert set(ids.tolist()) == {0, 4}


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 1.5}, {"max_tokens": 0}, {"min_p": float("nan")}])
def test_parameters_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]
