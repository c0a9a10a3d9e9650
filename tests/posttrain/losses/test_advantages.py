"""Advantages against the standard library's statistics, group by group and step by step."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from fathom.errors import DataError
from fathom.posttrain.losses import group_advantages, process_advantages
from fathom.spec.posttrain import AdvantageSpec

SPECS = [
    AdvantageSpec(scale=scale, std=std, eps=eps)  # type: ignore[arg-type]
    for scale, std, eps in itertools.product(("std", "none"), ("population", "sample"), (0.0, 1e-4))
]
REWARDS = [1.0, 0.0, 0.5, 1.0, -2.0, 3.0, 0.25, 0.25, 0.25, 4.0]
GROUPS = [7, 7, 3, 7, 3, 3, 5, 5, 5, 9]  # sizes 3, 3, 3 and 1, in no order


def normalised(value: float, group: list[float], spec: AdvantageSpec) -> float:
    if max(group) == min(group):
        return 0.0
    centred = value - statistics.fmean(group)
    if spec.scale == "none":
        return centred
    deviation = statistics.pstdev(group) if spec.std == "population" else statistics.stdev(group)
    return centred / (deviation + spec.eps)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_outcome_advantages_equal_the_statistics_of_each_group(spec: AdvantageSpec) -> None:
    found = group_advantages(torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(GROUPS), spec)
    members = {g: [r for r, other in zip(REWARDS, GROUPS, strict=True) if other == g] for g in GROUPS}
    expected = [normalised(r, members[g], spec) for r, g in zip(REWARDS, GROUPS, strict=True)]
    torch.testing.assert_close(found.values_B, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (found.zero_variance_groups, found.groups) == (2, 4)
    assert found.varied_B.tolist() == [g in (7, 3) for g in GROUPS]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_process_advantages_sum_the_steps_that_end_at_or_after_each_token(spec: AdvantageSpec) -> None:
    lengths = [4, 2, 5, 3, 1]
    groups = [0, 0, 1, 1, 1]
    steps = [[(1, 0.5), (3, 1.0)], [(1, -1.0)], [(0, 2.0), (2, 0.0), (4, 1.0)], [], [(0, 0.5)]]  # (last token, reward)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    members = {g: [r for i, answer in enumerate(steps) if groups[i] == g for _, r in answer] for g in groups}
    expected = [
        sum(normalised(r, members[groups[i]], spec) for end, r in answer if end >= t)
        for i, answer in enumerate(steps)
        for t in range(lengths[i])
    ]
    found = process_advantages(
        torch.tensor([r for answer in steps for _, r in answer], dtype=torch.float64),
        torch.tensor([starts[i] + end for i, answer in enumerate(steps) for end, _ in answer]),
        torch.tensor(groups),
        torch.tensor([i for i, length in enumerate(lengths) for _ in range(length)]),
        spec,
    )
    torch.testing.assert_close(found.values_N, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (found.zero_variance_groups, found.groups) == (0, 2)
    assert found.varied_B.all()


def several_kinds(spec: AdvantageSpec, steps: list[list[tuple[int, float, int]]], groups: list[int]) -> list[float]:
    """The advantage of each token of answers of four, of rewards (last token, value, kind), as it is documented."""
    found = []
    for answer, group in zip(steps, groups, strict=True):
        everyone = [step for other, g in zip(steps, groups, strict=True) if g == group for step in other]
        kinds = {kind: [value for _, value, k in everyone if k == kind] for kind in {k for _, _, k in everyone}}
        of_kind = statistics.variance if spec.std == "sample" else statistics.pvariance
        total = sum(of_kind(values) for values in kinds.values() if max(values) > min(values))
        deviation = total**0.5 + spec.eps if spec.scale == "std" and total else 1.0
        for token in range(4):
            later = [(value, kind) for end, value, kind in answer if end >= token]
            found.append(sum((value - statistics.fmean(kinds[kind])) / deviation for value, kind in later))
    return found


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rewards_of_several_kinds_are_each_compared_with_their_own(spec: AdvantageSpec) -> None:
    steps = [
        [(0, 1.0, 5), (2, 0.0, 5), (3, 2.0, 0)],
        [(1, 1.0, 5), (1, 1.0, 5), (3, 0.0, 0)],
        [(3, 2.0, 0)],
        [(2, 1.0, 5), (3, 1.5, 0)],
        [(2, 1.0, 5), (3, -1.0, 0)],
        [(3, 0.25, 0), (0, 7.0, 9)],
        [(3, 0.25, 0)],
    ]
    groups = [4, 4, 4, 2, 2, 8, 8]
    laid = [(4 * i + end, value, kind) for i, answer in enumerate(steps) for end, value, kind in answer]
    ends, values, kinds = (torch.tensor(column) for column in zip(*laid, strict=True))
    rows = torch.arange(7).repeat_interleave(4)
    found = process_advantages(values.double(), ends, torch.tensor(groups), rows, spec, kinds_Z=kinds)
    expected = torch.tensor(several_kinds(spec, steps, groups), dtype=torch.float64)
    torch.testing.assert_close(found.values_N, expected, rtol=0, atol=1e-12)
    assert (found.zero_variance_groups, found.groups) == (1, 3)
    assert found.varied_B.tolist() == [True] * 5 + [False] * 2


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_outcomes_alone_are_outcome_supervision(spec: AdvantageSpec) -> None:
    outcome = group_advantages(torch.tensor(REWARDS).double(), torch.tensor(GROUPS), spec)
    rows = torch.arange(10).repeat_interleave(3)
    ends = torch.arange(10) * 3 + 2
    alike = torch.ones(10, dtype=torch.float64)  # steps that are all right change nothing
    found = process_advantages(
        torch.cat([torch.tensor(REWARDS).double(), alike]),
        torch.cat([ends, ends - 1]),
        torch.tensor(GROUPS),
        rows,
        spec,
        kinds_Z=torch.tensor([0] * 10 + [1] * 10),
    )
    torch.testing.assert_close(found.values_N, outcome.values_B.repeat_interleave(3), rtol=0, atol=1e-12)
    assert torch.equal(found.varied_B, outcome.varied_B)


def test_order_of_answers_changes_nothing() -> None:
    order = torch.randperm(len(REWARDS), generator=torch.Generator().manual_seed(0))
    rewards, groups = torch.tensor(REWARDS), torch.tensor(GROUPS)
    straight = group_advantages(rewards, groups).values_B
    torch.testing.assert_close(group_advantages(rewards[order], groups[order]).values_B, straight[order])


def test_rewards_that_differ_by_rounding_only_have_no_variance() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    found = group_advantages(rewards, torch.zeros(3, dtype=torch.long), AdvantageSpec(eps=0.0))
    assert found.values_B.tolist() == [0, 0, 0]
    assert found.zero_variance_groups == 1


def test_a_small_but_real_difference_is_variance() -> None:
    found = group_advantages(torch.tensor([1.0, 1.001]), torch.zeros(2, dtype=torch.long), AdvantageSpec(eps=0.0))
    torch.testing.assert_close(found.values_B, torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-3)


def test_a_group_without_any_step_is_counted_as_having_no_variance() -> None:
    rows, groups = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1])
    found = process_advantages(torch.tensor([1.0, 0.0]), torch.tensor([1, 2]), groups, rows)
    torch.testing.assert_close(found.values_N, torch.tensor([1.0, 1.0, -1.0, 0.0]), atol=1e-4, rtol=0)
    assert (found.zero_variance_groups, found.groups) == (1, 2)
    nothing = process_advantages(torch.tensor([]), torch.tensor([], dtype=torch.long), groups, rows)
    assert nothing.values_N.tolist() == [0, 0, 0, 0]
    assert nothing.zero_variance_groups == 2


def test_whole_numbers_are_rewards_too() -> None:
    found = group_advantages(torch.tensor([1, 0]), torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found.values_B, torch.tensor([1.0, -1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_refused_by_its_row(bad: float) -> None:
    rewards = torch.tensor([0.0, 1.0, bad])
    with pytest.raises(DataError, match="rewards_B: row 2 is"):
        group_advantages(rewards, torch.zeros(3, dtype=torch.long))
    with pytest.raises(DataError, match="step_rewards_Z: row 2 is"):
        process_advantages(rewards, torch.tensor([0, 1, 2]), torch.zeros(1), torch.zeros(3, dtype=torch.long))


def test_answers_that_lie_scattered_and_steps_outside_are_refused() -> None:
    groups = torch.zeros(2, dtype=torch.long)
    with pytest.raises(DataError, match="row_N: an answer's tokens do not lie together"):
        process_advantages(torch.tensor([1.0]), torch.tensor([0]), groups, torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match="step_ends_Z: 1 to 3 leave the 3 tokens"):
        process_advantages(torch.tensor([1.0, 2.0]), torch.tensor([1, 3]), groups, torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match="groups_B"):
        group_advantages(torch.tensor([1.0]), groups)
