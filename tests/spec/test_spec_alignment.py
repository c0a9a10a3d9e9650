"""Steps after pretraining that contradict themselves are refused when they are made, by the field."""

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.spec.alignment import GrpoStep
from fathom.spec.posttrain import AdvantageSpec, PolicyLoss
from fathom.spec.problem import GymProblems
from fathom.spec.rewards import AccuracyReward, FunctionReward, ModelReward, RewardSpec, StepsReward
from fathom.spec.rollout import PolicySpec, RolloutSpec
from fathom.spec.train import AdamWSpec


def grpo(supervision: str, *rewards: RewardSpec) -> GrpoStep:
    policy = PolicySpec(
        optimizer=AdamWSpec(lr=1e-4),
        rollouts=1,
        rollout=RolloutSpec(questions=1, group_size=2, max_tokens=4),
        loss=PolicyLoss(advantage=AdvantageSpec(supervision=supervision)),  # type: ignore[arg-type]
    )
    return GrpoStep(policy=policy, problems=(GymProblems(dataset="chain_sum"),), rewards=rewards)


@pytest.mark.parametrize(
    "rewards",
    [
        (AccuracyReward(),),
        (AccuracyReward(), StepsReward(weight=0.0)),
        (ModelReward(step="rm"), FunctionReward(target="a:b")),
    ],
)
def test_process_supervision_without_scores_of_steps_is_refused(rewards: tuple[RewardSpec, ...]) -> None:
    with pytest.raises(SpecError, match=r'none of rewards does; add \{kind = "steps"\} to rewards') as caught:
        grpo("process", *rewards)
    assert caught.value.path == "policy.loss.advantage.supervision"
    grpo("outcome", *rewards)


@pytest.mark.parametrize(
    "reward", [StepsReward(weight=0.5), ModelReward(step="rm", steps=True), FunctionReward(target="a:b", steps=True)]
)
def test_either_supervision_takes_scores_of_steps(reward: RewardSpec) -> None:
    for supervision in ("process", "outcome"):
        assert grpo(supervision, AccuracyReward(), reward).rewards[1] == reward
