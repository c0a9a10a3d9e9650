"""Alarms over a stage's metrics: what they say, and when they are silent."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.train.alarms import ROLLOUTS, TRAINING, Alarms, worse_than_guessing
from fathom.train.measure import ExpertLoad

# lm_loss of the quickstart's stages as they were logged
PRETRAIN = (8.69, 7.64, 6.3, 5.41, 5.28, 6.5, 6.56, 4.57, 4.28, 4.07, 4.16, 4.47, 4.94, 4.94, 4.31, 2.86, 4.17, 4.16)
PRETRAIN += (4.89, 3.45, 4.07, 4.65, 4.14, 4.14, 3.43, 4.55, 3.9, 4.22, 5.16, 3.49, 4.2, 1.78, 4.3, 4.11, 3.95, 4.35)
PRETRAIN += (3.84, 2.19, 2.62, 4.23, 3.01, 4.55, 3.19, 3.23, 3.46, 3.63, 2.42, 2.95, 3.98, 2.94, 3.07, 2.07, 3.59)
LONG = (4.52, 0.64, 2.73, 2.36, 4.68, 4.58, 2.64, 2.86, 2.64, 0.61, 4.68, 4.62, 4.45, 2.66, 4.09)
TUNED = (2.51, 0.73, 0.59, 0.47, 0.55, 0.61, 0.73, 0.44, 0.34, 0.48, 0.33, 0.39, 0.56, 0.33, 0.36, 0.38, 0.38, 0.31)
TUNED += (0.34, 0.38, 0.37, 0.24, 0.09, 0.12, 0.24, 0.1, 0.16, 0.18, 0.29, 0.08, 0.12, 0.05, 0.08, 0.13, 0.04, 0.04)
TUNED += (0.12, 0.38, 0.09, 0.03, 0.03, 0.04, 0.11, 0.37, 0.06, 0.04, 0.07, 0.03, 0.06, 0.03)


def heard(lines: Sequence[dict[str, Any]], checks: Any = TRAINING, before: int = 0) -> tuple[list[str], list[str]]:
    """Return what a stage with these lines notes, and the names of the alarms that its last line holds."""
    notes: list[str] = []
    alarms = Alarms(checks, note=notes.append, before=lines[:before])
    last: dict[str, Any] = {}
    for number, line in enumerate(lines[before:], start=before + 1):
        last = alarms.add(number, line)
    alarms.end()
    return notes, last.get("alarms", [])


def losses(values: Sequence[float], **fields: float) -> list[dict[str, Any]]:
    return [{"lm_loss": value, "lr": 1e-3, "grad_norm": 1.0} | fields for value in values]


@pytest.mark.parametrize("values", [PRETRAIN, LONG, TUNED], ids=["pretrain", "long-context", "sft"])
def test_stages_that_learned_are_silent(values: Sequence[float]) -> None:
    assert heard(losses(values)) == ([], [])


def test_batches_of_two_kinds_are_no_divergence() -> None:
    draw = random.Random(1)
    mixed = [draw.choice((5.0, 5.1, 0.2, 5.2)) * (1 - step / 1000) for step in range(300)]
    assert heard(losses(mixed))[1] == []


def test_a_loss_that_stays_where_it_was_is_named_once_and_again_at_the_end() -> None:
    draw = random.Random(2)
    stuck = losses([8.31 + draw.gauss(0, 0.002) for _ in range(40)])
    notes, holding = heard(stuck)
    assert holding == ["constant_loss"]
    assert [note.partition(": the loss does not fall: 8.31")[0] for note in notes] == ["step 16", "at the end"]
    assert heard(stuck, before=30)[0][0].startswith("step 31: the loss does not fall")
    assert heard([line | {"lr": 0.0} for line in stuck])[1] == ["zero_rate"]


def test_a_loss_that_rises_again_is_named() -> None:
    draw = random.Random(3)
    down = [6.0 - 3.0 * (1 - math.exp(-step / 10)) + draw.gauss(0, 0.1) for step in range(60)]
    notes, holding = heard(losses([*down, *(3.0 + 0.1 * step for step in range(25))]))
    assert holding == ["diverging_loss"]
    assert len(notes) == 2
    assert "lower optimizer.lr" in notes[0]


# lm_loss over 1,024 tokens at a learning rate of 3, every second step
TOO_FAST = (6.9, 32.5, 174.6, 116.1, 87.4, 91.2, 114.9, 121.4, 103.7, 107.9, 116.3, 98.5, 99.9, 128.8, 128.4, 121.7)
TOO_FAST += (251.3, 116.8, 164.6, 132.4, 94.9, 142.8, 176.6, 152.5, 155.8, 120.7, 182.4, 127.7, 88.9, 76.1, 94.4)


def test_a_loss_above_that_of_guessing_is_named_however_it_jumps() -> None:
    checks = (worse_than_guessing(1024),)
    notes, holding = heard(losses(TOO_FAST), checks)
    assert holding == ["worse_than_guessing"]
    assert notes[0].startswith("step 4: the loss is 116, above the 6.93 of guessing each of 1,024 tokens alike; lower")
    for healthy in (PRETRAIN, LONG, TUNED, (7.5,) * 9):
        assert heard(losses(healthy), checks) == ([], [])


@given(start=st.floats(1, 12), fall=st.floats(0.05, 0.9), noise=st.floats(0, 0.05), seed=st.integers(0, 1000))
def test_a_loss_that_falls_is_never_constant_and_never_diverges(
    start: float, fall: float, noise: float, seed: int
) -> None:
    draw = random.Random(seed)
    values = [start * (1 - fall * step / 99) * (1 + draw.uniform(-noise, noise)) for step in range(100)]
    assert heard(losses(values))[1] == []


def test_a_gradient_of_zero_is_named() -> None:
    assert heard(losses((5.0, 5.0, 5.0), grad_norm=0.0))[1] == ["zero_gradient"]
    assert heard(losses((5.0, 5.0), grad_norm=0.0))[1] == []


def test_rollouts_without_signal_or_without_ends_are_named() -> None:
    line = {"zero_variance": 1.0, "finished": 0.0, "lr": 1e-4, "reward": 0.0}
    notes, holding = heard([line] * 5, ROLLOUTS)
    assert holding == ["no_signal", "cut_off"]
    assert len(notes) == 4
    assert heard([line, line, line | {"zero_variance": 0.9, "finished": 0.1}], ROLLOUTS) == ([], [])


def test_two_experts_of_eight_that_take_nearly_all_are_a_collapse() -> None:
    shares = [0.4, 0.38, 0.04, 0.04, 0.04, 0.04, 0.03, 0.03]
    entropy = -sum(share * math.log(share) for share in shares) / math.log(8)
    load = ExpertLoad([shares, [0.125] * 8], [entropy, 1.0], [3.2, 1.0])
    assert load.collapsed(2) == [0]
    line = {"collapsed_layers": ["layers.1"], "load_entropy_min": entropy, "load_max_over_mean": 3.2}
    other = line | {"collapsed_layers": ["layers.1", "layers.2"]}
    notes, holding = heard([line, line, line, other, other, other, line])
    assert holding == ["collapsed_routing"]
    assert [note.partition(":")[0] for note in notes] == ["step 3", "step 6", "at the end"]


def test_a_router_that_is_uneven_for_a_moment_has_not_collapsed() -> None:
    uneven = {"collapsed_layers": ["layers.1"], "load_entropy_min": 0.64, "load_max_over_mean": 3.3}
    other = uneven | {"collapsed_layers": ["layers.2"]}
    even = uneven | {"collapsed_layers": []}
    assert heard([even, uneven, uneven, even, uneven, other, uneven, other]) == ([], [])
