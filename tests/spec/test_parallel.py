"""Plans of parallelism: what multiplies, what divides, and that the plans an error names are accepted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import ModelSpec
from fathom.spec.parallel import ParallelSpec

V2_LITE = preset("deepseek-v2-lite")


def named_plans(error: SpecError, near: ParallelSpec) -> list[ParallelSpec]:
    """The plans that an error's remedy names."""
    found = []
    for words in error.remedy.removeprefix("use ").split(", or "):
        fields = {axis: int(degree) for axis, degree in re.findall(r"(\w+) = (\d+)", words)}
        found.append(replace(ParallelSpec(**fields), sharding=near.sharding, schedule=near.schedule))
    return found


def test_one_process_and_many_take_the_same_table() -> None:
    plan = ParallelSpec()
    assert [plan.resolved(processes).shard for processes in (1, 2, 64)] == [1, 2, 64]


def test_shard_takes_what_other_axes_leave() -> None:
    plan = ParallelSpec(pipeline=2, tensor=2, expert=4).checked(64, V2_LITE)
    assert (plan.shard, plan.data) == (16, 16)


@pytest.mark.parametrize(
    ("fields", "processes", "model"),
    [
        ({"replicate": 2, "shard": 3}, 8, V2_LITE),
        ({"pipeline": 3}, 8, V2_LITE),
        ({"expert": 3}, 8, V2_LITE),
        ({"expert": 48}, 48, V2_LITE),
        ({"tensor": 32}, 64, V2_LITE),
        ({"pipeline": 64}, 64, V2_LITE),
        ({"context": 4, "expert": 2}, 8, V2_LITE),
        ({"expert": 2}, 8, preset("deepseek-llm-7b")),
    ],
)
def test_what_does_not_fit_is_refused_with_plans_that_do(
    fields: dict[str, int], processes: int, model: ModelSpec
) -> None:
    plan = ParallelSpec(**fields)
    with pytest.raises(SpecError, match=r"parallel") as refused:
        plan.checked(processes, model)
    named = named_plans(refused.value, plan)
    assert named
    for other in named:
        other.checked(processes, model)
