"""Learning rates against the published tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fathom.spec.train import AdamWSpec, BatchSpec, Constant, CosineDecay, StepDecay, TrainSpec
from fathom.train.schedule import learning_rate, steps_left

# V2: 2.4e-4, 2000 steps of warm-up, x0.316 at 60 % and again at 90 % of 8.1T tokens, batch 2304 to 9216 over 225B.
V2 = TrainSpec(
    sequence_length=4096,
    total_tokens=8_100_000_000_000,
    batch=BatchSpec(size=9216, micro_batch_size=1, initial_size=2304, ramp_tokens=225_000_000_000),
    optimizer=AdamWSpec(lr=2.4e-4),
    schedule=StepDecay(),
)


@pytest.mark.parametrize(
    ("step", "share", "rate"),
    [
        (0, 0.0, 0.0),
        (1, 0.0, 2.4e-4 / 2000),
        (1000, 0.001, 1.2e-4),
        (2000, 0.002, 2.4e-4),
        (50_000, 0.3, 2.4e-4),
        (90_000, 0.6, 2.4e-4 * 0.316),
        (100_000, 0.89999, 2.4e-4 * 0.316),
        (150_000, 0.9, 2.4e-4 * 0.316 * 0.316),
        (160_000, 1.0, 2.4e-4 * 0.316 * 0.316),
    ],
)
def test_v2_step_decay(step: int, share: float, rate: float) -> None:
    assert learning_rate(V2, step, round(share * V2.total_tokens)) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("total", [10, 70, 12_345_670, 5_700_000_000_000, 99_999_999_990])
@pytest.mark.parametrize("tenths", [6, 8, 9])
def test_a_milestone_takes_effect_exactly_at_its_share_of_tokens(total: int, tenths: int) -> None:
    spec = TrainSpec(
        sequence_length=1,
        total_tokens=total,
        batch=BatchSpec(size=1, micro_batch_size=1),
        optimizer=AdamWSpec(lr=1.0),
        schedule=StepDecay(warmup_steps=0, milestones=(tenths / 10,)),
    )
    edge = total * tenths // 10
    assert learning_rate(spec, 1, edge - 1) == 1.0
    assert learning_rate(spec, 1, edge) == 0.316


def test_cosine_and_constant() -> None:
    # Coder-V2: 2000 steps of warm-up, cosine to 10 %.
    cosine = replace(V2, schedule=CosineDecay(warmup_steps=2000, start=0.5, final=0.1))
    total = cosine.total_tokens
    assert learning_rate(cosine, 500, 0) == pytest.approx(2.4e-4 / 4)
    assert learning_rate(cosine, 9000, total // 2) == pytest.approx(2.4e-4)
    assert learning_rate(cosine, 9000, total * 3 // 4) == pytest.approx(2.4e-4 * 0.55)
    assert learning_rate(cosine, 9000, total * 5 // 8) == pytest.approx(
        2.4e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    )
    assert learning_rate(cosine, 9000, total) == pytest.approx(2.4e-5)
    assert learning_rate(cosine, 9000, total + 1000) == pytest.approx(2.4e-5)
    late = replace(V2, schedule=CosineDecay(start=1.0))
    assert learning_rate(late, 1, total) == 2.4e-4
    constant = replace(V2, schedule=Constant(warmup_steps=4))
    assert [learning_rate(constant, step, 0) / 2.4e-4 for step in (1, 4, 5)] == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("total", [160, 161, 999, 5000])
def test_steps_left_counts_what_the_loop_does(total: int) -> None:
    spec = TrainSpec(
        sequence_length=8,
        total_tokens=total,
        batch=BatchSpec(size=20, micro_batch_size=2, initial_size=4, ramp_tokens=700),
        optimizer=AdamWSpec(lr=1.0),
    )
    tokens = steps = 0
    while tokens < total:
        tokens += spec.batch.at(tokens) * 8
        steps += 1
    assert steps_left(spec, 0) == steps
    assert steps_left(spec, tokens) == 0
