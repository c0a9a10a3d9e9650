"""What a run hears of rewards that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import RewardError
from fathom.posttrain.rewards.failures import MonitoredJudge, failure_kind
from fathom.posttrain.rewards.judge import MAX_ANSWER_CHARS, Judge
from fathom.spec.rewards import FormatReward, FunctionReward, RewardSpec
from tests.posttrain.rewards.conftest import Ask

HERE = Path(__file__).parent
REWARDS: tuple[RewardSpec, ...] = (FunctionReward(name="mine", target="misbehaving:behave"), FormatReward())


def monitored(notes: list[str], rewards: tuple[RewardSpec, ...] = REWARDS) -> MonitoredJudge:
    judge = Judge(rewards, seconds=20.0, code_folders=[HERE])
    return MonitoredJudge(judge, rewards, note=notes.append, folder=HERE)


def test_a_kind_of_failure_is_noted_once_and_all_are_counted_at_the_end(ask: Ask) -> None:
    notes: list[str] = []
    with monitored(notes) as judge:
        assert [one.total for one in judge.judge([ask("raise"), ask("fine"), ask("raise")])] == [0.0, 0.25, 0.0]
        judge.judge([ask("raise"), ask("raise")])
        judge.judge([ask("nan"), ask("x" * (MAX_ANSWER_CHARS + 1))])
    raised = "crashed: ValueError: no reward (misbehaving.py, line 19)"
    assert notes == [
        f"reward mine: 2 of 3 answers count 0, since it failed: {raised}",
        "reward mine: 1 of 1 answers count 0, since it failed: not finite",
        "reward mine: 5 of 6 answers count 0, since it failed: 4 x crashed: ValueError (misbehaving.py, line 19), "
        "1 x not finite",
    ]


@pytest.mark.parametrize(
    ("answer", "said"), [("raise", "ValueError: no reward (misbehaving.py, line 19)"), ("text", "returned str")]
)
def test_a_reward_that_fails_at_every_answer_ends_the_run(ask: Ask, answer: str, said: str) -> None:
    notes: list[str] = []
    asked = [ask(answer), ask("x" * (MAX_ANSWER_CHARS + 1)), ask(answer)]
    with monitored(notes) as judge:
        assert judge.probe([ask("raise")])[0].failures
        with pytest.raises(RewardError) as caught:
            judge.judge(asked)
    message = str(caught.value)
    assert message.startswith("reward mine: failed at all 2 answers")
    assert said in message
    call = "print(misbehaving.behave('question', 'answer', 'reference'))"
    assert f'cd {HERE} && python -c "import misbehaving; {call}"' in message
    assert notes == []


@given(
    kind=st.sampled_from(["ValueError", "KeyError"]),
    text=st.text(),
    other=st.text(),
    place=st.sampled_from(["", " (mine.py, line 3)", " (mine.py, line 4)"]),
)
def test_kinds_of_failure_are_types_and_places(kind: str, text: str, other: str, place: str) -> None:
    found = failure_kind(f"crashed: {kind}: {text}{place}")
    assert found.startswith(f"crashed: {kind}")
    if place:
        assert found == failure_kind(f"crashed: {kind}: {other}{place}") == f"crashed: {kind}{place}"
