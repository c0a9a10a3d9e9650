"""Learning rates against the published tables."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.spec.mapping import from_mapping
from fathom.spec.train import AdamWSpec, BatchSpec, Constant, CosineDecay, Schedule, StepDecay, TrainSpec
from fathom.train.preflight import warmup_warning
from fathom.train.schedule import learning_rate, steps_left, total_steps

# V2: 2.4e-4, 2000 steps of warm-up, x0.316 at 60 % and again at 90 % of 8.1T tokens, batch 2304 to 9216 over 225B.
V2 = TrainSpec(
    sequence_length=4096,
    total_tokens=8_100_000_000_000,
    batch=BatchSpec(size=9216, micro_batch_size=1, initial_size=2304, ramp_tokens=225_000_000_000),
    optimizer=AdamWSpec(lr=2.4e-4),
    schedule=StepDecay(warmup_steps=2000),
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


SMALL = TrainSpec(
    sequence_length=8,
    total_tokens=8 * 4 * 500,
    batch=BatchSpec(size=4, micro_batch_size=2),
    optimizer=AdamWSpec(lr=1.0),
)


def test_without_a_number_of_steps_the_warm_up_is_a_share_of_the_stage() -> None:
    assert total_steps(SMALL) == 500
    assert [learning_rate(SMALL, step, 0) for step in (3, 15, 16)] == [3 / 15, 1.0, 1.0]
    tiny = replace(SMALL, total_tokens=8 * 4 * 5)
    assert learning_rate(tiny, 1, 0) == 1.0
    assert [schedule.warmup_of(10**6) for schedule in (Constant(), CosineDecay())] == [0, 0]
    assert Constant(warmup_fraction=0.1).warmup_of(40) == 4
    assert StepDecay(warmup_steps=7, warmup_fraction=0.5).warmup_of(40) == 7


@given(fraction=st.floats(0, 1), steps=st.integers(1, 10**7))
def test_a_warm_up_by_share_ends_within_the_stage(fraction: float, steps: int) -> None:
    warmup = StepDecay(warmup_fraction=fraction).warmup_of(steps)
    assert (warmup == 0) == (fraction == 0)
    assert warmup <= steps


@pytest.mark.parametrize("kind", [StepDecay, CosineDecay, Constant])
def test_specs_that_were_recorded_without_a_share_read_as_they_did(kind: type[Schedule]) -> None:
    for steps in (0, 40):
        former = {"kind": kind.kind, "warmup_steps": steps}
        assert from_mapping(kind, former).warmup_of(1000) == steps
    assert from_mapping(Constant, {"warmup_steps": 0}) == Constant()


def test_a_warm_up_as_long_as_the_stage_is_named_with_a_remedy_that_ends_it() -> None:
    for warmup, share in ((500, "100%"), (2000, "25%")):
        long = replace(SMALL, schedule=StepDecay(warmup_steps=warmup))
        found = warmup_warning("pretrain.train", long, total_steps(long))
        assert found is not None
        assert f"{warmup:,} steps in a stage of 500" in found
        assert share in found
        remedy = re.search(r"--set pretrain\.train\.schedule\.warmup_steps=(\d+)", found)
        assert remedy is not None
        shorter = replace(SMALL, schedule=StepDecay(warmup_steps=int(remedy[1])))
        assert warmup_warning("pretrain.train", shorter, 500) is None
    hopeless = replace(SMALL, schedule=StepDecay(warmup_steps=5001))
    with pytest.raises(SpecError, match=r"never exceeds 10\.0% of optimizer\.lr 1; use --set .*warmup_steps=15"):
        warmup_warning("pretrain.train", hopeless, 500)


@given(warmup=st.integers(0, 10**5), steps=st.integers(1, 10**5))
def test_what_is_said_of_a_warm_up_is_what_its_rates_are(warmup: int, steps: int) -> None:
    spec = replace(SMALL, total_tokens=32 * steps, schedule=Constant(warmup_steps=warmup))
    best = max(learning_rate(spec, step, 0) for step in (1, steps))
    try:
        found = warmup_warning("a.train", spec, steps)
    except SpecError:
        assert best < 0.1
        return
    assert best >= 0.1
    assert (found is not None) >= (best < 1)
