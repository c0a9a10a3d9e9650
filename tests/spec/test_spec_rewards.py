import math
from dataclasses import dataclass
from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.rewards import (
    AccuracyReward,
    CodeReward,
    FormatReward,
    FunctionReward,
    LanguageReward,
    ModelReward,
    RewardSpec,
    StepsReward,
    check_rewards,
    scores_steps,
)


@dataclass(frozen=True)
class Holder:
    rewards: tuple[RewardSpec, ...]


def test_every_kind_comes_back_from_its_table() -> None:
    rewards = (
        AccuracyReward(method="math"),
        FormatReward(style="think", weight=0.5),
        LanguageReward(name="words"),
        CodeReward(seconds=2.0, memory_mib=128),
        ModelReward(name="helpful", step="rm", reasoning_tokens=64),
        FunctionReward(target="a.b:c"),
        StepsReward(weight=0.25),
        ModelReward(name="process", step="rm", steps=True),
        FunctionReward(name="own", target="a.b:c", steps=True),
    )
    assert from_mapping(Holder, to_mapping(Holder(rewards))) == Holder(rewards)
    assert [scores_steps(reward) for reward in rewards] == [False] * 6 + [True] * 3


def test_a_reward_is_named_for_its_kind_unless_it_is_named() -> None:
    assert [AccuracyReward().name, CodeReward().name, ModelReward(step="rm").name] == ["accuracy", "code", "model"]
    assert ModelReward(name="safety", step="rm").name == "safety"


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ({"kind": "accuracy", "weight": -1}, "weight"),
        ({"kind": "accuracy", "weight": math.nan}, "weight"),
        ({"kind": "accuracy", "weight": math.inf}, "weight"),
        ({"kind": "accuracy", "method": "guess"}, "method"),
        ({"kind": "format", "style": "xml"}, "style"),
        ({"kind": "code", "seconds": 0}, "seconds"),
        ({"kind": "code", "memory_mib": 8}, "memory_mib"),
        ({"kind": "model"}, "step"),
        ({"kind": "model", "step": ""}, "step"),
        ({"kind": "model", "step": "rm", "reasoning_tokens": -1}, "reasoning_tokens"),
        ({"kind": "model", "step": "rm", "steps": True, "reasoning_tokens": 8}, "steps"),
        ({"kind": "steps", "weight": -1}, "weight"),
        ({"kind": "function", "target": "no_colon"}, "target"),
        ({"kind": "function", "target": "a b:c"}, "target"),
        ({"kind": "language", "name": "a/b"}, "name"),
        ({"kind": "luck"}, "kind"),
    ],
)
def test_a_wrong_field_is_located(table: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError, match=rf"^rewards\[0\]\.{path}"):
        from_mapping(Holder, {"rewards": [table]})


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ((), "empty"),
        ((FormatReward(), FormatReward(style="think")), "'format' is used twice"),
        ((FormatReward(weight=0.0),), "every weight is 0"),
    ],
)
def test_a_list_needs_rewards_of_different_names_and_a_weight(rewards: tuple[RewardSpec, ...], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        check_rewards("rewards", rewards)
